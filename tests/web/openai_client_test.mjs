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
// Polls /stats until `condition` holds: how a cancelled request shows from outside.
async function eventually(condition) {
  for (let tries = 0; tries < 2000; ++tries) {
    const response = await fetch(`${server.url}/stats?layers=0`, { headers: { 'x-api-key': 'test-key' } });
    if (condition(await response.json())) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail('the statistics never showed it');
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
  await assert.rejects(client.chat.completions.create(chat('x', { n: 2 })), { code: 'unsupported' });
  await assert.rejects(client.chat.completions.create(chat('x', { model: 'other' })), OpenAI.NotFoundError);
  await assert.rejects(makeClient({ apiKey: 'wrong' }).models.list(), OpenAI.AuthenticationError);
  const long = real ? 'word '.repeat(20000) : '[too-long]';
  for (const stream of [false, true]) {
    await assert.rejects(client.chat.completions.create(chat(long, { stream })),
                         { status: 400, code: 'context_length_exceeded' });
  }
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
  await eventually((stats) => stats.requests_cancelled >= 1);
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
  await eventually((stats) => stats.queue_length === 1);
  const refused = await client.chat.completions.create(chat('hi')).catch((error) => error);
  assert.ok(refused instanceof OpenAI.RateLimitError);
  assert.ok(Number(refused.headers.get('retry-after')) >= 1);
  assert.equal(refused.code, 'queue_full');
  const retried = makeClient({ maxRetries: 5 }).chat.completions.create(chat('hi'));
  for (const controller of controllers) controller.abort();
  checkText((await retried).choices[0].message.content);
});
