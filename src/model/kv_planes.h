// KvPlanes: keys and values of one layer of one sequence, by head, positions side by side.
//
// Heads are far apart and the positions of one are not, because a task of attention reads all positions of
// one head: a stream, not a few hundred bytes out of every position's kilobytes.
//
// float32 by default, because exact is the default: the reference's logits are float32. bf16 and q8
// (compute/kv_format.h) hold 2 and nearly 4 times as many tokens in the same memory and change results.
#pragma once

#include <cstdint>

#include "compute/cpu_backend.h"
#include "compute/kv_format.h"

namespace moraine {

class KvPlanes {
 public:
  static uint64_t BytesPerPosition(uint32_t heads, uint32_t head_dim, KvFormat format) {
    return uint64_t{2} * heads * KvHeadBytes(format, head_dim);
  }
  // data: BytesPerPosition x max_positions, not owned.
  KvPlanes(std::byte* data, uint32_t heads, uint32_t head_dim, KvFormat format,
           uint32_t max_positions);

  // count positions from `first` on; keys and values are heads x head_dim floats each.
  void Write(uint32_t first, uint32_t count, const float* keys, const float* values);
  KvView view() const { return {format_, data_, data_ + plane_bytes_, strides_}; }

 private:
  std::byte* data_;
  KvFormat format_;
  uint32_t heads_, head_dim_, max_positions_;
  KvStrides strides_;
  size_t plane_bytes_;  // of all keys
};

}  // namespace moraine
