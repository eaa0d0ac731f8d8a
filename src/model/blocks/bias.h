// Adds a bias to rows of a matrix product's output.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace moraine {

// x[t] += bias for `rows` rows of bias.size() values, x_stride apart; nothing for an empty bias.
inline void AddBias(float* x, size_t x_stride, std::span<const float> bias, uint32_t rows) {
  for (uint32_t t = 0; t < rows; ++t) {
    float* row = x + t * x_stride;
    for (size_t i = 0; i < bias.size(); ++i) row[i] += bias[i];
  }
}

}  // namespace moraine
