// Products of a stack of matrices, one a head, with few tokens: what latent attention does to a
// head's query before it attends to latents, and to what it attended to after.
//
//   y[t][h] = W_h x[t][h]
//
// As RunGemv (gemv.h): each weight is read once for up to 8 tokens and multiplied exactly with 16
// bits of x; sums are float32 in an order that depends on the shape only. A warp has one panel of
// 16 rows whole, as a head's matrix has few columns (DeepSeek: 128 or 512), so nothing is added up
// across warps.
//
// Units, pointers, threads, capture: as in gemv.h.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"

namespace moraine::gpu {

struct StackedGemv {
  // `count` matrices of `rows` x matrix.cols, each padded to whole panels, one below the other. q4,
  // q8, bf16.
  DeviceMatrix matrix;
  uint32_t count = 0, rows = 0;
  // Head h of token t: x + t * x_stride + h * x_head_stride; all multiples of 4.
  const float* x = nullptr;
  uint32_t x_stride = 0, x_head_stride = 0;
  uint32_t token_count = 0;
  float* y = nullptr;
  uint32_t y_stride = 0, y_head_stride = 0;
};
Status RunStackedGemv(const StackedGemv& gemv, Stream stream);

}  // namespace moraine::gpu
