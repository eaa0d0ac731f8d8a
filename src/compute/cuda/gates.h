// Rows weighed by the sigmoid of others: gated attention (a gate a value) and gated shared experts (a gate a row).
//
//   x[t][c] *= sigmoid(gate[t][c])       or, with one gate a row, *= sigmoid(gate[t])
//
// Units, pointers, threads, capture: as in row_ops.h. Float32 until the result is stored.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"

namespace moraine::gpu {

struct GateRows {
  // In place, one of the two.
  uint16_t* operand = nullptr;  // bf16, OperandStride(cols) a row, in operand order
  float* f32 = nullptr;         // `stride` apart
  uint32_t stride = 0;
  uint32_t token_count = 0, cols = 0;
  // One of the two; gate_cols: `cols`, or 1.
  const uint16_t* gate_bf16 = nullptr;
  const float* gate_f32 = nullptr;
  uint32_t gate_stride = 0, gate_cols = 0;
};
Status RunGateRows(const GateRows& rows, Stream stream);

}  // namespace moraine::gpu
