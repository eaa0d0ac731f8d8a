// Products of matrices with few tokens (decode): bound by reading each weight once.
//
//   RunGemv         y[t] (+)= W n(x[t])                                  q, k, v; o; the vocabulary
//   RunGateUpGemv   silu(W_gate n(x)) * (W_up n(x)) of each (token, rank)'s expert
//   RunDownGemv     out[t] (+)= sum over ranks, in order, of weight x W_down activated
//
// n is an RMSNorm (or nothing) that every block computes for itself: 8 KiB from the L2 cache
// instead of a launch between two products.
//
// Weights are the A operand of mma.sync as in the grouped GEMM, but their codes go there exact
// (small integers are exact in bf16) and the scale multiplies the float32 sum of its 32 columns.
// x is the B operand, each token as two columns, bf16 of x and bf16 of what is left: products of
// a weight without rounding and of 16 bits of x. Four tokens fill the 8 columns. f32 matrices are
// multiplied by ordinary fused multiply-adds.
//
// The columns of 16 rows are split over the warps of a block and summed in a fixed order that
// depends on the matrix' shape only: a token's result does not depend on the others, and two runs
// give the same bits.
//
// Everything that changes from token to token is read from device memory, the launch depends on
// shapes only, and nothing waits: a call can be captured into a CUDA graph. Units: strides count
// elements. All pointers are device pointers; x is 16-byte aligned. kUnsupported for encodings
// other than q4, q8, bf16 (and f32 in RunGemv). Thread-safe.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"
#include "compute/encoding.h"

namespace moraine::gpu {

// More tokens are right, but read the weights once for every 8 of them.
inline constexpr uint32_t kGemvTokens = 8;

// Rows of float32, normalised where `norm` is given: x * norm / sqrt(mean(x^2) + epsilon).
struct GemvInput {
  const float* x = nullptr;
  uint32_t stride = 0;          // a multiple of 4
  const float* norm = nullptr;  // `cols` weights; null: x as it is
  float epsilon = 0;
};

struct Gemv {
  DeviceMatrix matrix;
  GemvInput input;
  uint32_t token_count = 0;
  float* y = nullptr;  // token_count x matrix.rows; may not be the input
  uint32_t y_stride = 0;
  bool add = false;  // to what y has: the residual
};
Status RunGemv(const Gemv& gemv, Stream stream);

// Floats between rows of `activated`.
constexpr uint32_t ActivatedStride(uint32_t intermediate) {
  return TileCount(intermediate) * kTileCols;
}

struct ExpertGemv {
  ExpertLayout layout;  // no biases
  // By expert. Null for one that is not here: its (token, rank) pairs are left out of the sum.
  const std::byte* const* records = nullptr;
  const uint32_t* experts = nullptr;    // token_count x top_k
  uint32_t token_count = 0, top_k = 0;  // top_k <= 32
  GemvInput input;                      // gate and up's, one row a token
  float* activated = nullptr;           // token_count x top_k rows of ActivatedStride floats
  const float* weights = nullptr;       // token_count x top_k; down's
  float* out = nullptr;                 // token_count x layout.hidden
  uint32_t out_stride = 0;
  bool add = false;
};
// Writes `activated`, padding included; rows of experts that are not here stay as they are.
Status RunGateUpGemv(const ExpertGemv& gemv, Stream stream);
// Reads `activated`, writes `out`.
Status RunDownGemv(const ExpertGemv& gemv, Stream stream);

}  // namespace moraine::gpu
