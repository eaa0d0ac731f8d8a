// The live residency stream: frames of bytes -> a picture. The format, and the writing side, are in
// src/server/residency_frame.h; tests/page/residency_frames.json has vectors for both.
//
// A full frame is the difference from the empty picture, a delta frame the difference from the frame
// before it: one rule decodes both.

const FULL = 1;
const VERSION = 1;

// What a state byte says. The low three bits are the residence, an index into header.residences.
export const RESIDENCE_MASK = 7;
export const USED = 8;       // named by a lookup since the frame before
export const MISSED = 16;    // and at least once it was not there
export const EVICTED = 32;   // left memory since the frame before

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }
  byte() {
    if (this.at >= this.bytes.length) throw new RangeError(`frame: cut off at byte ${this.at}`);
    return this.bytes[this.at++];
  }
  // Exact up to 2^53; multiplication, because shifts are of 32 bits.
  varint() {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = this.byte();
      value += (byte & 127) * factor;
      if (byte < 128) return value;
      if (factor > 2 ** 56) throw new RangeError(`frame: number too long at byte ${this.at}`);
    }
  }
  difference() {
    const value = this.varint();
    return value % 2 === 1 ? -(value + 1) / 2 : value / 2;
  }
  span(length) {
    if (length > this.bytes.length - this.at) {
      throw new RangeError(`frame: ${length} bytes wanted at ${this.at}, ${this.bytes.length - this.at} left`);
    }
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }
}

// What the experts, the layers and the counters are at one moment.
export class Picture {
  constructor(header) {
    this.header = header;
    this.sequence = 0;
    this.numbers = Object.fromEntries(header.numbers.map((name) => [name, 0]));
    this.layers = header.layers.map(() => Object.fromEntries(header.layer_numbers.map((name) => [name, 0])));
    const cells = header.layers.reduce((sum, layer) => sum + layer.experts, 0);
    this.states = new Uint8Array(cells);
    this.heats = new Uint8Array(cells);
    this.steps = [];  // computed since the frame before
  }

  clone() {
    const copy = Object.create(Picture.prototype);
    copy.header = this.header;
    copy.sequence = this.sequence;
    copy.numbers = { ...this.numbers };
    copy.layers = this.layers.map((layer) => ({ ...layer }));
    copy.states = this.states.slice();
    copy.heats = this.heats.slice();
    copy.steps = this.steps;
    return copy;
  }

  apply(reader) {
    for (const name of this.header.numbers) this.numbers[name] += reader.difference();
    for (const layer of this.layers) {
      for (const name of this.header.layer_numbers) layer[name] += reader.difference();
    }
    this.applyCells(reader);
    this.steps = [];
    for (let left = reader.varint(); left > 0; --left) {
      const step = {};
      for (const name of this.header.step_numbers) step[name] = reader.varint();
      this.steps.push(step);
    }
    if (reader.at !== reader.bytes.length) {
      throw new RangeError(`frame: ${reader.bytes.length - reader.at} bytes too many`);
    }
  }

  applyCells(reader) {
    let cell = 0;
    for (let runs = reader.varint(); runs > 0; --runs) {
      cell += reader.varint();
      const length = reader.varint();
      if (cell + length > this.states.length) throw new RangeError('frame: more cells than experts');
      this.states.set(reader.span(length), cell);
      this.heats.set(reader.span(length), cell);
      cell += length;
    }
  }
}

// The picture after the frame; `before` is changed in place by a delta and not used by a full frame.
export function applyFrame(before, bytes) {
  const reader = new Reader(bytes);
  const kind = reader.byte();
  const sequence = reader.varint();
  let picture = before;
  if (kind === FULL) {
    const header = JSON.parse(new TextDecoder().decode(reader.span(reader.varint())));
    if (header.version !== VERSION) {
      throw new Error(`residency stream: expected version ${VERSION}, found ${header.version}; reload the page`);
    }
    picture = new Picture(header);
  } else if (!before) {
    throw new Error('residency stream: it does not begin with a full frame');
  }
  picture.sequence = sequence;
  picture.apply(reader);
  return picture;
}

// Cuts a byte stream into frames: a little-endian length of four bytes, then so many bytes.
export class FrameSplitter {
  constructor() {
    this.rest = new Uint8Array(0);
  }
  // The frames that are complete now. Empty ones only keep the connection alive.
  push(bytes) {
    const all = new Uint8Array(this.rest.length + bytes.length);
    all.set(this.rest);
    all.set(bytes, this.rest.length);
    const view = new DataView(all.buffer);
    const frames = [];
    let at = 0;
    while (all.length - at >= 4) {
      const length = view.getUint32(at, true);
      if (all.length - at - 4 < length) break;
      if (length > 0) frames.push(all.slice(at + 4, at + 4 + length));
      at += 4 + length;
    }
    this.rest = all.slice(at);
    return frames;
  }
}
