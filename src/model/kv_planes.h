// KvPlanes: keys and values of one layer of one sequence: in each block the keys of all heads, then the
// values, by head, positions side by side.
//
// Heads are apart and the positions of one are not, because a task of attention reads all positions of one
// head: a stream of a block each (32 KiB at 128 dimensions), not a few hundred bytes out of every
// position's kilobytes.
//
// float32 by default, because exact is the default: the reference's logits are float32. bf16, q8
// and fp8 (compute/kv_format.h) hold 2 and nearly 4 times as many tokens in the same memory and change results.
#pragma once

#include <cstdint>

#include "compute/cpu_backend.h"
#include "compute/kv_format.h"
#include "model/sequence_state.h"

namespace moraine {

class KvPlanes {
 public:
  static uint64_t BytesPerPosition(uint32_t heads, uint32_t head_dim, KvFormat format) {
    return uint64_t{2} * heads * KvHeadBytes(format, head_dim);
  }
  // blocks: of BytesPerPosition a position, not owned.
  KvPlanes(const PositionBlocks& blocks, uint32_t heads, uint32_t head_dim, KvFormat format);

  // count positions from `first` on; keys and values are heads x head_dim floats each.
  void Write(uint32_t first, uint32_t count, const float* keys, const float* values) const;
  KvView view() const {
    return {format_, blocks_.first, blocks_.first + plane_bytes_, strides_, blocks_.blocks,
            blocks_.block_bytes};
  }

 private:
  PositionBlocks blocks_;
  KvFormat format_;
  uint32_t heads_, head_dim_;
  KvStrides strides_;
  size_t plane_bytes_;  // of a block's keys
};

}  // namespace moraine
