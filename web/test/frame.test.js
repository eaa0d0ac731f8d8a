import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { applyFrame, FrameSplitter, RESIDENCE_MASK } from '../src/data/frame.js';
import { History } from '../src/data/history.js';

// The vectors that the server's encoder is tested with.
const path = process.env.RESIDENCY_FRAMES ?? new URL('../../tests/page/residency_frames.json', import.meta.url);
const vectors = JSON.parse(readFileSync(path, 'utf8'));
const streams = vectors.map(({ frame }) => Uint8Array.from(Buffer.from(frame, 'hex')));
const frames = streams.map((bytes) => bytes.subarray(4));

function expectPicture(picture, vector, full) {
  assert.equal(picture.sequence, vector.sequence);
  for (const [name, value] of Object.entries(picture.numbers)) assert.equal(value, vector.numbers[name] ?? 0, name);
  picture.layers.forEach((layer, i) => {
    const { layer: number, experts } = picture.header.layers[i];
    assert.deepEqual({ layer: number, experts, ...layer }, vector.layers[i]);
  });
  assert.deepEqual([...picture.states], vector.cells.map((cell) => (full ? cell & RESIDENCE_MASK : cell)));
  assert.deepEqual([...picture.heats], vector.heats);
  assert.deepEqual(picture.steps, vector.steps);
}

test('frames are decoded to what the vectors say', () => {
  let picture = null;
  vectors.forEach((vector, i) => {
    picture = applyFrame(picture, frames[i]);
    expectPicture(picture, vector, i === 0);
  });
});

test('a frame that is cut off anywhere, or too long, is an error and nothing else', () => {
  for (const [i, frame] of frames.entries()) {
    const before = i === 0 ? null : applyFrame(null, frames[0]);
    for (let length = 0; length < frame.length; length += frame.length > 200 ? 7 : 1) {
      assert.throws(() => applyFrame(before?.clone(), frame.subarray(0, length)), Error, `${i}: ${length} bytes`);
    }
    assert.throws(() => applyFrame(before?.clone(), Uint8Array.from([...frame, 0])), /1 bytes too many/);
  }
});

test('a stream begins with a full frame of a known version', () => {
  assert.throws(() => applyFrame(null, frames[1]), /does not begin with a full frame/);
  const other = Buffer.from(frames[0]).toString('latin1').replace('"version":1', '"version":2');
  assert.throws(() => applyFrame(null, Uint8Array.from(Buffer.from(other, 'latin1'))), /expected version 1, found 2/);
});

test('the splitter finds frames however the bytes are cut', () => {
  const keepAlive = new Uint8Array(4);
  const all = Buffer.concat([streams[0], keepAlive, ...streams.slice(1)]);
  for (const size of [1, 3, 100, all.length]) {
    const splitter = new FrameSplitter();
    const found = [];
    for (let at = 0; at < all.length; at += size) found.push(...splitter.push(all.subarray(at, at + size)));
    assert.deepEqual(found.map((frame) => Buffer.from(frame).toString('hex')),
                     frames.map((frame) => Buffer.from(frame).toString('hex')), `pieces of ${size}`);
  }
});

test('any moment of the history is rebuilt', () => {
  const history = new History();
  const snapshots = [];
  for (let i = 0; i < 130; ++i) {
    // After the full frame the last two in turn: counters go up and down, cells change back and forth.
    history.push(frames[i === 0 ? 0 : 1 + (i % 2)]);
    const { states, heats, numbers } = history.live.clone();
    snapshots.push({ states, heats, numbers });
  }
  for (const moment of [0, 1, 49, 50, 51, 77, 128, 129]) {
    const { states, heats, numbers } = history.at(moment);
    assert.deepEqual({ states, heats, numbers }, snapshots[moment], `moment ${moment}`);
  }
  assert.deepEqual(history.countersBefore(129, 3).numbers, snapshots[126].numbers);
  assert.deepEqual(history.countersBefore(60, 3).numbers, snapshots[57].numbers);
});

test('the history forgets the oldest moments when it is full', () => {
  const history = new History(2000);
  history.push(frames[0]);
  for (let i = 0; i < 400; ++i) history.push(frames[1 + (i % 2)]);
  assert.ok(history.bytes <= 2000 + frames[0].length, `${history.bytes} bytes`);
  assert.ok(history.first > 0);
  assert.equal(history.length, 401);
  assert.deepEqual(history.at(0).numbers, history.at(history.first).numbers);
});
