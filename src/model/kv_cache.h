// KvCache: keys and values of one sequence, by layer and head, positions side by side.
//
// Heads are far apart and the positions of one are not, because a task of attention reads all positions of
// one head: a stream, not a few hundred bytes out of every position's kilobytes.
//
// float32 by default, because exact is the default: the reference's logits are float32. bf16 and q8
// (compute/kv_format.h) hold 2 and nearly 4 times as many tokens in the same memory and change results.
// Memory is reserved for the whole context at once but committed by the kernel only as positions are written.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "compute/cpu_backend.h"
#include "compute/kv_format.h"
#include "memory/host_arena.h"
#include "model/config.h"

namespace moraine {

class KvCache {
 public:
  static uint64_t BytesFor(const ModelConfig& config, uint32_t max_positions,
                           KvFormat format = KvFormat::kF32);
  static Result<KvCache> Allocate(const ModelConfig& config, uint32_t max_positions,
                                  KvFormat format = KvFormat::kF32);

  // count positions from `first` on; keys and values are kv_heads x head_dim floats each.
  void Write(uint32_t layer, uint32_t first, uint32_t count, const float* keys,
             const float* values);
  KvView layer(uint32_t index) const;
  KvFormat format() const { return format_; }
  uint32_t max_positions() const { return max_positions_; }

  uint32_t length() const { return length_; }
  // Positions at and beyond the new length may be written again.
  void set_length(uint32_t length) {
    CHECK(length <= max_positions_);
    length_ = length;
  }

 private:
  HostArena arena_;
  KvFormat format_ = KvFormat::kF32;
  uint32_t heads_ = 0, head_dim_ = 0;
  KvStrides strides_;
  size_t plane_bytes_ = 0;  // of a layer's keys
  uint32_t max_positions_ = 0, length_ = 0;
};

}  // namespace moraine
