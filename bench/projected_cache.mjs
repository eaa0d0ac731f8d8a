// How far the web page's projection of another cache size is from the truth: serves a store with several budgets, asks
// each the same questions, and projects from every size to every other.
//
//   node bench/projected_cache.mjs build/release/moraine STORE [SHARE...]     shares of the experts, in percent
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { applyFrame, FrameSplitter } from '../web/src/data/frame.js';
import { figures } from '../web/src/data/figures.js';
import { heatShares, projectHitRate } from '../web/src/data/projection.js';

const [binary, store, ...given] = process.argv.slice(2);
const shares = given.length > 0 ? given : ['15', '25', '50', '75'];
const QUESTIONS = ['What is the capital of France?', 'Tell me a story.', 'What is 7 plus 5?', 'What is the opposite of hot?',
  'Tell me a story about the sea.', 'How many letters are in house?', 'What is the capital of Italy?', 'Tell me another story.'];

function serve(share) {
  const child = spawn(binary, ['serve', store, '--port', '0', '--ram-budget', `${share}%`], { stdio: ['ignore', 'pipe', 'inherit'] });
  return new Promise((resolve, reject) => {
    child.on('exit', (code) => reject(new Error(`moraine ended with ${code}`)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      const url = line.match(/http:\/\/[0-9.:]+/);
      if (url) resolve({ child, url: url[0] });
    });
  });
}

async function picture(url) {
  const response = await fetch(`${url}/residency/stream`);
  const reader = response.body.getReader();
  const splitter = new FrameSplitter();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error('the stream ended without a frame');
    const [frame] = splitter.push(value);
    if (!frame) continue;
    await reader.cancel();
    return applyFrame(null, frame);
  }
}

async function ask(url, content) {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST', headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ messages: [{ role: 'user', content }], temperature: 0, max_tokens: 200, ignore_eos: true }),
  });
  if (!response.ok) throw new Error(await response.text());
  await response.json();
}

async function measure(share) {
  const { child, url } = await serve(share);
  try {
    for (const question of QUESTIONS) await ask(url, question);
    const { numbers, heats } = await picture(url);
    const zero = Object.fromEntries(Object.keys(numbers).map((name) => [name, 0]));
    const { decodeHitRate, tokens } = figures(zero, numbers);
    return { share, tokens, slots: numbers.slot_count - numbers.ring_slots, hitRate: decodeHitRate, heats: heatShares(heats) };
  } finally {
    child.removeAllListeners('exit');  // which is no surprise now
    const ended = new Promise((resolve) => { child.on('exit', resolve); });
    child.kill('SIGTERM');
    await ended;  // the next one opens the same store
  }
}

const runs = [];
for (const share of shares) runs.push(await measure(share));
console.log(`decode tokens: ${runs.map(({ tokens }) => tokens).join(', ')}`);
console.log(`| cache (slots) | measured hit % | ${runs.map(({ slots }) => `projected from ${slots}`).join(' | ')} |`);
console.log(`|--:|--:|${'--:|'.repeat(runs.length)}`);
for (const run of runs) {
  const projected = runs.map((from) => (100 * projectHitRate(from.heats, run.slots, from)).toFixed(1));
  console.log(`| ${run.slots} | ${(100 * run.hitRate).toFixed(1)} | ${projected.join(' | ')} |`);
}
