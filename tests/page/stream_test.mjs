// The residency stream of the real server, as the page reads it: every step has its times in one frame, and the map
// goes on while a chunk of a prompt is computed.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { applyFrame, FrameSplitter } from './frame.js';
import { API_KEY, startServer } from './page_server.mjs';

const HEADERS = { authorization: `Bearer ${API_KEY}`, 'content-type': 'application/json' };

// Calls onPicture(picture) for each frame, until stop().
async function watch(url, onPicture) {
  const abort = new AbortController();
  const response = await fetch(`${url}/residency/stream`, { headers: HEADERS, signal: abort.signal });
  assert.equal(response.status, 200);
  const reading = (async () => {
    const splitter = new FrameSplitter();
    let picture = null;
    for await (const bytes of response.body) {
      for (const frame of splitter.push(bytes)) {
        picture = applyFrame(picture, frame);
        onPicture(picture);
      }
    }
  })().catch((error) => { if (!abort.signal.aborted) throw error; });
  return async () => {
    abort.abort();
    await reading;
  };
}

async function complete(url, body) {
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST', headers: HEADERS, body: JSON.stringify({ temperature: 0, ignore_eos: true, ...body }) });
  assert.equal(response.status, 200);
  return (await response.json()).usage;
}

async function until(condition, what) {
  for (const deadline = Date.now() + 30_000; !condition();) {
    assert.ok(Date.now() < deadline, what);
    await new Promise((resolve) => { setTimeout(resolve, 20); });
  }
}

test('every step is in one frame, however many there were since the last', async () => {
  const server = await startServer();
  try {
    const decoded = [];  // tokens of each decode step
    let chunks = 0;
    const stop = await watch(server.url, ({ steps }) => {
      for (const step of steps) {
        if (step.decode) decoded.push(step.tokens);
        else ++chunks;
      }
    });
    let expected = 0;
    // Of some milliseconds each, and requests that end between two frames.
    for (const tokens of [40, 1, 2, 7, 60]) {
      const usage = await complete(server.url, { prompt: 'Once upon a time', max_tokens: tokens });
      expected += usage.completion_tokens - 1;  // the first comes with the prompt
    }
    await until(() => decoded.length >= expected, `${decoded.length} decode steps of ${expected}`);
    await stop();
    assert.equal(decoded.length, expected);
    assert.ok(decoded.every((tokens) => tokens === 1));
    assert.equal(chunks, 5);
  } finally {
    await server.stop();
  }
});

test('the map goes on while a chunk of a prompt is computed', async () => {
  // Slow enough for several frames, on any machine: one thread, without vector instructions.
  const server = await startServer(['--isa', 'scalar', '--threads', '1', '--prefill-chunk', '2048']);
  try {
    let before = null, changed = 0, done = false;
    const stop = await watch(server.url, (picture) => {
      const cells = Buffer.from(picture.states).toString('latin1');
      const { prefill_tokens: tokens, prefill_misses: misses } = picture.numbers;
      // No chunk has ended: what is new is of the one that is being computed.
      if (tokens === 0 && misses > 0 && before !== null && cells !== before) ++changed;
      done ||= tokens > 0;
      before = cells;
    });
    await until(() => before !== null, 'no frame');
    const words = Array.from({ length: 1500 }, (_, i) => 1000 + (i * 37) % 1500);
    const { prompt_tokens: tokens } = await complete(server.url, { prompt: words, max_tokens: 1 });
    await until(() => done, 'the chunk never ends');
    await stop();
    assert.equal(tokens, 1500);
    assert.ok(changed >= 2, `${changed} frames in the middle of the chunk`);
  } finally {
    await server.stop();
  }
});
