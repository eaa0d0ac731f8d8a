// RopeTable: cosines and sines of a chunk's positions for one RopeConfig. Layers with the same config
// share one. Sources: Su et al. 2021 (RoFormer); transformers, modeling_rope_utils.py, for YaRN.
#pragma once

#include <cstdint>
#include <vector>

#include "compute/cpu_backend.h"
#include "model/config.h"

namespace moraine {

// Angle of each pair of dimensions per position, in float32 as transformers computes it: other
// roundings move the logits.
std::vector<float> InverseFrequencies(const RopeConfig& config);

class RopeTable {
 public:
  RopeTable(const RopeConfig& config, uint32_t max_tokens);
  static uint64_t Bytes(const RopeConfig& config, uint32_t max_tokens);

  const RopeConfig& config() const { return config_; }
  // For the positions first .. first + count - 1.
  void Prepare(uint32_t first, uint32_t count) { Prepare(0, first, count); }
  // The same for the tokens from `token` on, where a batch has several sequences: one after the other.
  void Prepare(uint32_t token, uint32_t first, uint32_t count);
  struct Range {
    uint32_t first = 0, count = 0;  // of the tokens that Prepare was called with
  };
  // Rotates, in place, the first rotary_dim of `heads` heads, head_stride floats apart, of these
  // tokens, x_stride floats apart; x is the first of them.
  void Apply(CpuBackend& backend, float* x, size_t x_stride, Range tokens, uint32_t heads,
             uint32_t head_stride) const;

 private:
  const RopeConfig config_;
  const std::vector<float> inverse_frequencies_;
  std::vector<float> cos_, sin_;
  uint32_t count_ = 0;  // of tokens that are prepared
};

}  // namespace moraine
