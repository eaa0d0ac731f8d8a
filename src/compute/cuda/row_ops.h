// What is done to rows between products: embedding, norms, the activation of a dense feed-forward.
// All are bound by memory: each element is read and written once. Sums of squares are float32, in
// a fixed order that depends on the width only.
//
// Units: strides count elements, bf16 is passed as its 16 bits and rounded to nearest even. All
// pointers are device pointers, rows 16-byte aligned. Calls enqueue on `stream`, wait for nothing
// and can be captured. Thread-safe.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"

namespace moraine::gpu {

// x[t] = row tokens[t] of the matrix, exact values. Any of q4, q8, bf16 and f32.
struct Embedding {
  DeviceMatrix matrix;
  const int32_t* tokens = nullptr;  // each within the matrix' rows
  uint32_t token_count = 0;
  float* x = nullptr;
  uint32_t x_stride = 0;  // >= cols
};
Status RunEmbedding(const Embedding& embedding, Stream stream);

// x += addend, if there is one; then the RMSNorm x * weight / sqrt(mean(x^2) + epsilon), float32
// until it is written, to each output that is not null.
struct RowNorm {
  float* x = nullptr;  // written only if there is an addend
  uint32_t x_stride = 0;
  const float* addend = nullptr;
  uint32_t addend_stride = 0;
  const float* weight = nullptr;
  float epsilon = 0;
  uint32_t token_count = 0, cols = 0;
  uint16_t* operand = nullptr;  // OperandStride(cols) a row, in operand order, padding zeros
  uint16_t* natural = nullptr;  // `cols` a row: what GroupedGemm::GatherOperand reads
  float* normed = nullptr;      // `cols` a row
};
Status RunRowNorm(const RowNorm& norm, Stream stream);

// silu(gate) * up of rows that have gate's `intermediate` values, then up's: prefill's, bf16 to
// bf16 in operand order, and decode's, float32 to float32.
struct GatedRows {
  const uint16_t* bf16 = nullptr;  // one of the two
  const float* f32 = nullptr;
  uint32_t stride = 0;
  uint32_t token_count = 0, intermediate = 0;
  uint16_t* operand = nullptr;  // for bf16: OperandStride(intermediate) a row
  float* activated = nullptr;   // for f32: `intermediate` a row
};
Status RunGatedRows(const GatedRows& rows, Stream stream);

}  // namespace moraine::gpu
