#include "model/blocks/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace moraine {
namespace {

uint32_t FrequencyDim(const RopeConfig& config) {
  return config.frequency_dim > 0 ? config.frequency_dim : config.rotary_dim;
}

// The dimension that turns `rotations` times over the original positions.
double CorrectionDim(const RopeConfig& config, double rotations) {
  const double ratio = config.yarn->original_positions / (rotations * 2 * std::numbers::pi);
  return FrequencyDim(config) * std::log(ratio) / (2 * std::log(static_cast<double>(config.theta)));
}

}  // namespace

std::vector<float> InverseFrequencies(const RopeConfig& config) {
  std::vector<float> frequencies;
  for (uint32_t i = 0; i < config.rotary_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(FrequencyDim(config));
    frequencies.push_back(1.0f / std::pow(config.theta, exponent));
  }
  if (!config.yarn) return frequencies;
  const YarnConfig& yarn = *config.yarn;
  double low = CorrectionDim(config, yarn.beta_fast), high = CorrectionDim(config, yarn.beta_slow);
  if (yarn.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, FrequencyDim(config) - 1.0);
  if (low == high) high += 0.001;
  for (uint32_t i = 0; i < frequencies.size(); ++i) {
    const float ramp = std::clamp(static_cast<float>((i - low) / (high - low)), 0.0f, 1.0f);
    frequencies[i] = frequencies[i] / yarn.factor * ramp + frequencies[i] * (1 - ramp);
  }
  return frequencies;
}

RopeTable::RopeTable(const RopeConfig& config, uint32_t max_tokens)
    : config_(config),
      inverse_frequencies_(InverseFrequencies(config)),
      cos_(size_t{max_tokens} * inverse_frequencies_.size()),
      sin_(cos_.size()) {}

uint64_t RopeTable::Bytes(const RopeConfig& config, uint32_t max_tokens) {
  return uint64_t{max_tokens} * config.rotary_dim * sizeof(float);
}

void RopeTable::Prepare(uint32_t token, uint32_t first, uint32_t count) {
  const size_t half = inverse_frequencies_.size();
  const float factor = config_.yarn ? config_.yarn->attention_factor : 1.0f;
  for (uint32_t t = 0; t < count; ++t) {
    const float position = static_cast<float>(first + t);
    for (size_t i = 0; i < half; ++i) {
      const float angle = position * inverse_frequencies_[i];
      cos_[(token + t) * half + i] = std::cos(angle) * factor;
      sin_[(token + t) * half + i] = std::sin(angle) * factor;
    }
  }
  count_ = token + count;
}

void RopeTable::Apply(CpuBackend& backend, float* x, size_t x_stride, Range tokens, uint32_t heads,
                      uint32_t head_stride) const {
  CHECK(tokens.first + tokens.count <= count_, "tokens that Prepare knows nothing of");
  const size_t at = tokens.first * inverse_frequencies_.size();
  if (config_.interleaved) {
    backend.RopeInterleaved(x, x_stride, tokens.count, heads, head_stride, config_.rotary_dim,
                            &cos_[at], &sin_[at]);
  } else {
    backend.Rope(x, x_stride, tokens.count, heads, head_stride, config_.rotary_dim, &cos_[at],
                 &sin_[at]);
  }
}

}  // namespace moraine
