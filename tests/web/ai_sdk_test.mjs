// The AI SDK with its openai-compatible provider, against the fake server and against `moraine serve`
// with the demo model: there, what comes out of a constraint must follow its schema.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';
import { startServer } from './server_process.mjs';

const real = process.env.MORAINE_BIN !== undefined;
let server, model;

before(async () => {
  server = await startServer();
  const provider = createOpenAICompatible({
    name: 'moraine', baseURL: `${server.url}/v1`, apiKey: 'test-key', includeUsage: true,
    supportsStructuredOutputs: true,
  });
  const list = await (await fetch(`${server.url}/v1/models`, { headers: { 'x-api-key': 'test-key' } })).json();
  model = provider(list.data[0].id);
});
after(async () => {
  assert.equal(await server.stop(), 0);
});

const said = (text) => (real ? 'Tell me about Paris' : `[say]${text}[/say]`);
const options = { maxRetries: 0, temperature: 0, maxOutputTokens: real ? 400 : 1000 };

test('text, whole and streamed', async () => {
  const prompt = real ? 'Hello' : 'hi';
  const short = { ...options, maxOutputTokens: 8 };
  const whole = await generateText({ model, prompt, ...short });
  assert.ok(whole.text.length > 0);
  assert.ok(whole.usage.outputTokens > 0 && whole.usage.outputTokens <= 8);
  const stream = streamText({ model, prompt, ...short });
  let text = '';
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, whole.text);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
});

const schema = z.object({
  city: z.string().max(20),
  kind: z.enum(['town', 'capital']),
  people: z.number().int().min(1).max(99),
  sights: z.array(z.string().max(12)).max(2),
});

test('an object that follows its schema', async () => {
  const prompt = said('{"city": "Paris", "kind": "capital", "people": 2, "sights": ["Louvre"]}');
  const { object } = await generateObject({ model, schema, prompt, ...options });
  schema.parse(object);
  if (!real) assert.equal(object.city, 'Paris');
  const stream = streamObject({ model, schema, prompt, ...options });
  for await (const partial of stream.partialObjectStream) assert.equal(typeof partial, 'object');
  assert.deepEqual(await stream.object, object);
});

const call = '<think>I look.</think>One moment.<tool_call>\n' +
  '{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>';

test('tools and reasoning', { skip: real && 'the demo template has no tools' }, async () => {
  const tools = {
    weather: tool({ inputSchema: z.object({ city: z.string() }), execute: async ({ city }) => `${city}: sunny` }),
  };
  const whole = await generateText({ model, tools, prompt: said(call), ...options });
  assert.equal(whole.finishReason, 'tool-calls');
  assert.equal(whole.reasoningText, 'I look.');
  assert.equal(whole.toolResults[0].output, 'Paris: sunny');
  const stream = streamText({ model, tools, prompt: said(call), ...options });
  const parts = [];
  for await (const part of stream.fullStream) parts.push(part.type);
  for (const type of ['reasoning-delta', 'text-delta', 'tool-input-delta', 'tool-call', 'tool-result']) {
    assert.ok(parts.includes(type), `no ${type} in ${parts}`);
  }
  assert.ok(!parts.includes('error'));
});

test('errors are errors', async () => {
  const long = real ? 'word '.repeat(20000) : '[too-long]';
  await assert.rejects(generateText({ model, prompt: long, ...options }),
                       (error) => error.statusCode === 400 && !error.isRetryable);
  if (real) return;
  const stream = streamText({ model, prompt: '[fail]', ...options, onError: () => {} });
  let failed = false;
  for await (const part of stream.fullStream) failed ||= part.type === 'error';
  assert.ok(failed);
});
