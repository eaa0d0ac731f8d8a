// The official client against the server, as people use it. Runs against the fake server (every answer
// known) or, with MORAINE_BIN and MORAINE_STORE, against `moraine serve`, where the text is not known
// but its shape is.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import OpenAI from 'openai';
import { startServer } from './server_process.mjs';

const real = process.env.MORAINE_BIN !== undefined;
const text = 'Hello, wörld!';
let server, client, model;

function makeClient(options = {}) {
  return new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'test-key', maxRetries: 0, ...options });
}
function chat(content, more = {}) {
  return { model, messages: [{ role: 'user', content }], max_tokens: 8, temperature: 0, ...more };
}
function checkText(found) {
  if (real) assert.ok(found.length > 0);
  else assert.equal(found, text);
}
before(async () => {
  server = await startServer();
  client = makeClient();
});
after(async () => {
  assert.equal(await server.stop(), 0);
});

test('models', async () => {
  const list = await client.models.list();
  assert.equal(list.data.length, 1);
  model = list.data[0].id;
  assert.equal((await client.models.retrieve(model)).id, model);
  await assert.rejects(client.models.retrieve('other'), OpenAI.NotFoundError);
});

test('chat', async () => {
  const { data: answer, request_id: id } =
    await client.chat.completions.create(chat('Once upon a time')).withResponse();
  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.choices[0].message.role, 'assistant');
  checkText(answer.choices[0].message.content);
  assert.ok(['stop', 'length'].includes(answer.choices[0].finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer.usage.completion_tokens > 0 && answer.usage.completion_tokens <= 8);
  assert.equal(typeof answer.usage.prompt_tokens_details.cached_tokens, 'number');
  assert.equal(id, answer.id);
});

test('chat stream says the same', async () => {
  const request = chat('Tell me a story');
  const whole = await client.chat.completions.create(request);
  const stream = await client.chat.completions.create(
    { ...request, stream: true, stream_options: { include_usage: true } });
  let content = '';
  let usage, finish;
  const ids = new Set();
  for await (const chunk of stream) {
    ids.add(`${chunk.id} ${chunk.created}`);
    content += chunk.choices[0]?.delta.content ?? '';
    finish ??= chunk.choices[0]?.finish_reason;
    usage ??= chunk.usage;
  }
  assert.equal(ids.size, 1);
  assert.equal(content, whole.choices[0].message.content);
  assert.equal(finish, whole.choices[0].finish_reason);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(usage.prompt_tokens, whole.usage.prompt_tokens);
});

test('.stream() helper', async () => {
  const runner = client.chat.completions.stream(chat('Hello'));
  let deltas = '';
  runner.on('content', (delta) => { deltas += delta; });
  const final = await runner.finalChatCompletion();
  assert.equal(deltas, final.choices[0].message.content);
  checkText(deltas);
});

test('completions', async () => {
  const request = { model, prompt: 'Once', max_tokens: 6, temperature: 0 };
  const whole = await client.completions.create(request);
  checkText(whole.choices[0].text);
  let streamed = '';
  for await (const chunk of await client.completions.create({ ...request, stream: true })) {
    streamed += chunk.choices[0].text;
  }
  assert.equal(streamed, whole.choices[0].text);
});

test('log-probabilities', async () => {
  const answer = await client.chat.completions.create(
    chat('Hello', { logprobs: true, top_logprobs: 1, max_tokens: 3 }));
  const content = answer.choices[0].logprobs.content;
  assert.equal(content.length, answer.usage.completion_tokens);
  for (const entry of content) {
    assert.ok(entry.logprob <= 0);
    assert.equal(entry.top_logprobs.length, 1);
    assert.ok(Array.isArray(entry.bytes));
  }
});

test('errors have their classes and fields', async () => {
  await assert.rejects(client.chat.completions.create(chat('x', { temperature: 9 })), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, 'temperature');
    assert.equal(error.type, 'invalid_request_error');
    return true;
  });
  await assert.rejects(client.chat.completions.create(chat('x', { best_of: 2 })), { code: 'unsupported' });
  await assert.rejects(client.chat.completions.create(chat('x', { model: 'other' })), OpenAI.NotFoundError);
  await assert.rejects(makeClient({ apiKey: 'wrong' }).models.list(), OpenAI.AuthenticationError);
  const long = real ? 'word '.repeat(20000) : '[too-long]';
  for (const stream of [false, true]) {
    await assert.rejects(client.chat.completions.create(chat(long, { stream })),
                         { status: 400, code: 'context_length_exceeded' });
  }
});

const call = '<think>Hm.</think><tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>';
const tools = [{
  type: 'function',
  function: {
    name: 'get_weather',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
}];

test('tools, streamed by the helper', { skip: real && 'the demo template has no tools' }, async () => {
  const request = chat(`[say]${call}[/say]`, { tools, max_tokens: 500, tool_choice: 'required' });
  const whole = await client.chat.completions.create(request);
  const expected = whole.choices[0].message.tool_calls[0];
  assert.deepEqual(JSON.parse(expected.function.arguments), { city: 'Köln' });
  assert.equal(whole.choices[0].message.reasoning_content, 'Hm.');
  assert.equal(whole.choices[0].finish_reason, 'tool_calls');
  const final = await client.chat.completions.stream(request).finalChatCompletion();
  const found = final.choices[0].message.tool_calls[0];
  assert.equal(found.function.name, 'get_weather');
  assert.equal(found.function.arguments, expected.function.arguments);
});

test('tools run by the helper', { skip: real && 'the demo template has no tools' }, async () => {
  const asked = [];
  const runner = client.chat.completions.runTools(chat(`[say-once][say]${call}[/say]`, {
    max_tokens: 500,
    tools: [{
      type: 'function',
      function: {
        name: 'get_weather', parse: JSON.parse, parameters: tools[0].function.parameters,
        function: ({ city }) => { asked.push(city); return 'sunny'; },
      },
    }],
  }));
  checkText(await runner.finalContent());
  assert.deepEqual(asked, ['Köln']);
});

test('JSON that follows a schema', async () => {
  const schema = {
    type: 'object', additionalProperties: false, required: ['name', 'age', 'pets'],
    properties: {
      name: { type: 'string', maxLength: 20 }, age: { type: 'integer', minimum: 0, maximum: 120 },
      pets: { type: 'array', maxItems: 2, items: { enum: ['cat', 'dog'] } },
    },
  };
  const request = chat(real ? 'Who are you?' : '[say]{"name": "Ann", "age": 7, "pets": ["cat"]}[/say]', {
    max_tokens: 300, response_format: { type: 'json_schema', json_schema: { name: 'person', strict: true, schema } },
  });
  const whole = await client.chat.completions.create(request);
  const person = JSON.parse(whole.choices[0].message.content);
  assert.deepEqual(Object.keys(person), ['name', 'age', 'pets']);
  assert.ok(Number.isInteger(person.age) && person.age <= 120 && person.name.length <= 20);
  assert.equal(whole.choices[0].finish_reason, 'stop');
  const final = await client.chat.completions.stream(request).finalChatCompletion();
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  for (const temperature of real ? [1, 2] : []) {  // whatever is drawn, it is JSON
    for (let seed = 0; seed < 4; ++seed) {
      const drawn = await client.chat.completions.create({ ...request, temperature, seed });
      JSON.parse(drawn.choices[0].message.content);
    }
  }
  await assert.rejects(client.chat.completions.create({
    ...request, response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { not: {} } } },
  }), { code: 'unsupported', param: 'response_format' });
});

test('responses', async () => {
  const request = { model, input: 'Hello', max_output_tokens: 8, temperature: 0 };
  const whole = await client.responses.create(request);
  checkText(whole.output_text);
  const stream = client.responses.stream(request);
  let text = '';
  stream.on('response.output_text.delta', (event) => { text += event.delta; });
  const final = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(final.output_text, whole.output_text);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
  await assert.rejects(client.responses.create({ ...request, previous_response_id: 'x' }), { code: 'unsupported' });
  if (real) return;
  const called = await client.responses.create({
    model, input: `[say]${call}[/say]`, tools: [{ type: 'function', ...tools[0].function, strict: true }],
  });
  const item = called.output.find((entry) => entry.type === 'function_call');
  assert.deepEqual(JSON.parse(item.arguments), { city: 'Köln' });
  const failing = await client.responses.create({ model, input: '[fail]', stream: true });
  await assert.rejects(async () => {
    for await (const event of failing) assert.notEqual(event.type, 'response.completed');
  }, OpenAI.APIError);
});

// A request that goes on for long: until it is cancelled (fake), or for 3000 tokens.
function longRequest() {
  return real ? chat('Tell me a very long story', { max_tokens: 3000, ignore_eos: true }) : chat('[hold]');
}

test('abort in mid-stream cancels, and the next one runs', async () => {
  const stream = await client.chat.completions.create({ ...longRequest(), stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta.content) break;  // leaving the loop aborts
  }
  await server.eventually((stats) => stats.requests_cancelled >= 1);
  checkText((await client.chat.completions.create(chat('hi'))).choices[0].message.content);
});

test('a failure in mid-stream is an APIError', { skip: real && 'needs the fake' }, async () => {
  const stream = await client.chat.completions.create(chat('[fail]', { stream: true }));
  let content = '';
  await assert.rejects(async () => {
    for await (const chunk of stream) content += chunk.choices[0]?.delta.content ?? '';
  }, (error) => {
    assert.ok(error instanceof OpenAI.APIError);
    assert.equal(error.code, 'io_error');
    return true;
  });
  assert.equal(content, 'Hello,');
  await assert.rejects(client.chat.completions.create(chat('[fail-first]')), OpenAI.InternalServerError);
});

// One request runs, one waits, the third gets 429.
test('a full queue: 429, and the client comes back by itself', async () => {
  const controllers = [];
  for (let i = 0; i < 2; ++i) {
    const controller = new AbortController();
    controllers.push(controller);
    const stream = client.chat.completions.create({ ...longRequest(), stream: true },
                                                  { signal: controller.signal });
    // The first one answers when it has started; the second one only waits.
    if (i === 0) await (await stream)[Symbol.asyncIterator]().next();
    else stream.catch(() => {});
  }
  await server.eventually((stats) => stats.queue_length === 1);
  const refused = await client.chat.completions.create(chat('hi')).catch((error) => error);
  assert.ok(refused instanceof OpenAI.RateLimitError);
  assert.ok(Number(refused.headers.get('retry-after')) >= 1);
  assert.equal(refused.code, 'queue_full');
  const retried = makeClient({ maxRetries: 5 }).chat.completions.create(chat('hi'));
  for (const controller of controllers) controller.abort();
  checkText((await retried).choices[0].message.content);
});
