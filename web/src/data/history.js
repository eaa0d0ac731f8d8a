// What the stream has told so far: every frame as it came, and a whole picture now and then, from which
// any moment is rebuilt. Bounded in bytes: the oldest go first.
import { applyFrame } from './frame.js';

const KEY_EVERY = 50;  // frames; a moment costs at most this many deltas, some 2 ms for 20,000 experts
const RECENT = 16;     // moments whose counters are at hand

export class History {
  constructor(limitBytes = 32 << 20) {
    this.limitBytes = limitBytes;
    this.clear();
  }

  clear() {
    this.live = null;
    this.first = 0;   // number of the oldest moment that is kept
    this.groups = []; // { start, picture, frames: [bytes] }; the first frame of a group is in its picture
    this.bytes = 0;
    this.length = 0;  // moments so far, forgotten ones too
    this.recent = []; // { numbers, layers } of the last moments
  }

  push(frame) {
    this.live = applyFrame(this.live, frame);
    const group = this.groups.at(-1);
    const isFull = frame[0] === 1;
    if (!group || isFull || group.frames.length >= KEY_EVERY) {
      const picture = this.live.clone();
      this.groups.push({ start: this.length, picture, frames: [frame] });
      this.bytes += frame.length + 2 * picture.states.length;
    } else {
      group.frames.push(frame);
      this.bytes += frame.length;
    }
    ++this.length;
    this.recent.push({ numbers: { ...this.live.numbers }, layers: this.live.layers.map((layer) => ({ ...layer })) });
    if (this.recent.length > RECENT) this.recent.shift();
    while (this.bytes > this.limitBytes && this.groups.length > 1) this.forget();
  }

  forget() {
    const gone = this.groups.shift();
    this.bytes -= 2 * gone.picture.states.length + gone.frames.reduce((sum, frame) => sum + frame.length, 0);
    this.first = this.groups[0].start;
  }

  // Only the counters, as they were `ago` moments (at most RECENT - 1) before `moment`.
  countersBefore(moment, ago) {
    const fromEnd = this.length - 1 - moment + ago;
    if (fromEnd < this.recent.length) return this.recent.at(-1 - fromEnd);
    return this.at(Math.max(this.first, moment - ago));
  }

  // The picture at a moment, first <= moment < length. The live one is not copied: do not change it.
  at(moment) {
    if (moment >= this.length - 1) return this.live;
    const wanted = Math.max(moment, this.first);
    const group = this.groups.findLast((candidate) => candidate.start <= wanted);
    let picture = group.picture.clone();
    for (let i = 1; i <= wanted - group.start; ++i) picture = applyFrame(picture, group.frames[i]);
    return picture;
  }
}
