// What some families do to the rows of the query, key and value projections before anything else: biases, and
// norms over all heads together (OLMoE, MiniMax-M2; norms of single heads are RunHeads').
//
//   x[t][begin .. begin + cols) = n(x[t][begin .. begin + cols) + bias)      for each part, in place
//
// Bound by memory, a row is read twice (the second time from the L2 cache) and written once. Sums of squares are
// float32 in a fixed order that depends on the width only; a row does not depend on the others.
//
// Units, pointers, threads, capture: as in row_ops.h.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"

namespace moraine::gpu {

struct ProjectionRows {
  struct Part {
    uint32_t begin = 0, cols = 0;
    const float* bias = nullptr;  // `cols`; null: none
    const float* norm = nullptr;  // `cols` weights of an RMSNorm over the part; null: none
    constexpr bool empty() const { return bias == nullptr && norm == nullptr; }
  };
  uint16_t* bf16 = nullptr;  // one of the two: prefill's
  float* f32 = nullptr;      // and decode's
  uint32_t stride = 0;
  uint32_t token_count = 0;
  float epsilon = 0;
  Part parts[3] = {};  // empty ones cost nothing
};
Status RunProjectionRows(const ProjectionRows& rows, Stream stream);

}  // namespace moraine::gpu
