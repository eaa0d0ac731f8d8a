// KvMirror: of two caches with the same blocks, the CPU's and the GPU's, which positions of a block are the
// same in both.
//
// A block is written from its beginning on, by whichever of the two computes the tokens, and is given from
// sequence to sequence with whatever is in it; so for each block the number of leading positions that agree is
// all there is to know. Whoever writes says so before (BeginWrite); the GPU's chunks, which come back to
// the CPU, also after (EndDeviceWrite). A chunk that has failed in between agrees nowhere from its first
// position on.
//
// Cost: a byte a block. Threads: thread-compatible.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "compute/kv_format.h"

namespace moraine {

class KvMirror {
 public:
  explicit KvMirror(uint32_t blocks) : same_(blocks, 0) {}

  // `blocks`: a sequence's. Its positions from `first` on are about to be written on one of both sides.
  void BeginWrite(const uint32_t* blocks, uint32_t first, uint32_t count) {
    for (uint32_t i = first / kKvBlockPositions; i * kKvBlockPositions < first + count; ++i) {
      uint8_t& same = same_[blocks[i]];
      same = std::min(same, Index(first, i));
    }
  }
  // They have been written on the device, on what agreed before them, and copied back.
  void EndDeviceWrite(const uint32_t* blocks, uint32_t first, uint32_t count) {
    for (uint32_t i = first / kKvBlockPositions; i * kKvBlockPositions < first + count; ++i) {
      same_[blocks[i]] = Index(first + count, i);
    }
  }
  // The blocks that the device lacks something of, of a sequence of `length` positions. They are about to be
  // copied to it, and count as copied.
  void TakeStale(const uint32_t* blocks, uint32_t length, std::vector<uint32_t>* stale) {
    stale->clear();
    for (uint32_t i = 0; i * kKvBlockPositions < length; ++i) {
      uint8_t& same = same_[blocks[i]];
      if (same >= Index(length, i)) continue;
      same = Index(length, i);
      stale->push_back(blocks[i]);
    }
  }

 private:
  // Positions of block i that lie before `position`.
  static uint8_t Index(uint32_t position, uint32_t i) {
    const uint32_t begin = i * kKvBlockPositions;
    return static_cast<uint8_t>(position <= begin ? 0
                                                  : std::min(position - begin, kKvBlockPositions));
  }

  std::vector<uint8_t> same_;
};

}  // namespace moraine
