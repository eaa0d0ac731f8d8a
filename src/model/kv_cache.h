// KvCache: keys and values of one sequence, float32, contiguous by layer and position.
//
// float32 because exact is the default: the reference's logits are float32. Memory is reserved for
// the whole context at once but committed by the kernel only as positions are written.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "memory/host_arena.h"
#include "model/config.h"

namespace moraine {

class KvCache {
 public:
  static uint64_t BytesFor(const ModelConfig& config, uint32_t max_positions);
  static Result<KvCache> Allocate(const ModelConfig& config, uint32_t max_positions);

  // Floats between two positions of one layer.
  size_t stride() const { return stride_; }
  float* keys(uint32_t layer) { return base_ + 2 * layer * layer_floats_; }
  float* values(uint32_t layer) { return base_ + (2 * layer + 1) * layer_floats_; }
  uint32_t max_positions() const { return max_positions_; }

  uint32_t length() const { return length_; }
  // Positions at and beyond the new length may be written again.
  void set_length(uint32_t length) {
    CHECK(length <= max_positions_);
    length_ = length;
  }

 private:
  HostArena arena_;
  float* base_ = nullptr;
  size_t stride_ = 0, layer_floats_ = 0;
  uint32_t max_positions_ = 0, length_ = 0;
};

}  // namespace moraine
