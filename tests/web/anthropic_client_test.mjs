// The official Anthropic client against the fake server, where every answer is known.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import Anthropic from '@anthropic-ai/sdk';
import { startServer } from './server_process.mjs';

let server, client;
const model = 'fake model';
const tools = [{ name: 'get_weather', input_schema: { type: 'object', properties: { city: { type: 'string' } } } }];
const call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>';

function makeClient(options = {}) {
  return new Anthropic({ baseURL: server.url, apiKey: 'test-key', maxRetries: 0, ...options });
}
function message(content, more = {}) {
  return { model, max_tokens: 500, messages: [{ role: 'user', content }], ...more };
}

before(async () => {
  server = await startServer();
  client = makeClient();
});
after(async () => {
  assert.equal(await server.stop(), 0);
});

test('a message', async () => {
  const answer = await client.messages.create(message('hi'));
  assert.equal(answer.type, 'message');
  assert.deepEqual(answer.content, [{ type: 'text', text: 'Hello, wörld!' }]);
  assert.equal(answer.stop_reason, 'end_turn');
  assert.ok(answer.usage.input_tokens > 0 && answer.usage.output_tokens === 5);
  assert.equal((await client.messages.create(message('hi', { max_tokens: 2 }))).stop_reason, 'max_tokens');
});

test('tokens are counted', async () => {
  const counted = await client.messages.countTokens({ model, messages: [{ role: 'user', content: 'hi' }] });
  assert.equal(counted.input_tokens, 9);
});

test('a stream says the same', async () => {
  const request = message(`[say]<think>Hm.</think>Wait.${call}[/say]`, { tools });
  const whole = await client.messages.create(request);
  const stream = client.messages.stream(request);
  let text = '', json = '';
  stream.on('text', (delta) => { text += delta; });
  stream.on('inputJson', (delta) => { json += delta; });
  const final = await stream.finalMessage();
  assert.equal(text, 'Wait.');
  assert.deepEqual(JSON.parse(json), { city: 'Köln' });
  assert.deepEqual(final.content.map((block) => block.type), ['thinking', 'text', 'tool_use']);
  assert.equal(final.content[0].thinking, 'Hm.');
  assert.deepEqual(final.content[2].input, whole.content[2].input);
  assert.equal(final.stop_reason, 'tool_use');
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test('a tool is used and its result goes back', async () => {
  const first = await client.messages.create(
    message(`[say]${call}[/say]`, { tools, tool_choice: { type: 'any' } }));
  assert.equal(first.stop_reason, 'tool_use');
  const use = first.content.find((block) => block.type === 'tool_use');
  const second = await client.messages.create({
    model, max_tokens: 500, tools,
    messages: [
      { role: 'user', content: 'weather?' },
      { role: 'assistant', content: first.content },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: use.id, content: 'sunny' }] },
    ],
  });
  assert.equal(second.content[0].text, 'Hello, wörld!');
});

test('errors have their classes', async () => {
  await assert.rejects(client.messages.create(message('x', { temperature: 9 })), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError);
    assert.equal(error.error.error.type, 'invalid_request_error');
    return true;
  });
  await assert.rejects(client.messages.create(message('x', { model: 'other' })), Anthropic.NotFoundError);
  await assert.rejects(makeClient({ apiKey: 'wrong' }).messages.create(message('x')), Anthropic.AuthenticationError);
  await assert.rejects(client.messages.create(message('[fail-first]')), Anthropic.InternalServerError);
  const stream = await client.messages.create(message('[fail]', { stream: true }));
  await assert.rejects(async () => {
    for await (const event of stream) assert.ok(event.type);
  }, Anthropic.APIError);
});

test('abort, and a full queue is retried', async () => {
  const streams = [];
  for (let i = 0; i < 2; ++i) {
    const stream = client.messages.stream(message('[hold]'));
    stream.on('error', () => {});
    stream.on('abort', () => {});
    streams.push(stream);
    if (i === 0) await new Promise((resolve) => stream.on('text', resolve));
  }
  await server.eventually((stats) => stats.queue_length === 1);
  await assert.rejects(client.messages.create(message('hi')), Anthropic.RateLimitError);
  const retried = makeClient({ maxRetries: 5 }).messages.create(message('hi'));
  for (const stream of streams) stream.abort();
  assert.equal((await retried).content[0].text, 'Hello, wörld!');
});
