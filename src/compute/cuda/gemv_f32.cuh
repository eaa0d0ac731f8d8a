// Products of float32 matrices with few tokens, in float32: the router's, above all. A block owns 8
// rows (a 32-byte sector of each column of a tile); a lane 4 of them and every 256th column.
// Internal to compute/cuda.
#pragma once

#include <cstdint>

#include "compute/cuda/gemv_tiles.cuh"

namespace moraine::gpu {

inline constexpr uint32_t kF32Rows = 8, kF32Warps = 16, kF32Threads = kF32Warps * 32;
// Columns that a block reads at once: two lanes each.
inline constexpr uint32_t kF32Columns = kF32Threads / 2;

constexpr uint32_t F32StagedBytes(uint32_t tokens, uint32_t cols) {
  return tokens * TileCount(cols) * kTileCols * 4;
}

template <int kTokens>
struct F32Scratch {
  float partial[kF32Warps][kTokens][kF32Rows];
  float squares[kTokens][kF32Warps];
};

// Rows 8 unit .. 8 unit + 7 of W n(x): the sum of token threadIdx.x / 8, row threadIdx.x % 8 in the
// first 8 kTokens threads. x: F32StagedBytes of shared memory.
template <int kTokens>
__device__ float F32RowSums(const DeviceMatrix& matrix, const GemvInput& input,
                            uint32_t token_count, uint32_t unit, float* x,
                            F32Scratch<kTokens>& scratch) {
  constexpr int kBatch = 8;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t cols = matrix.cols, padded = TileCount(cols) * kTileCols;
  const float* panel = reinterpret_cast<const float*>(matrix.data) +
                       uint64_t{unit / 2} * padded * kTileRows + unit % 2 * 8 + lane % 2 * 4;
  const uint32_t first = warp * 16 + lane / 2;
  float4 words[kBatch];
  const auto load = [&](uint32_t base) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const uint32_t c = base + i * kF32Columns;
      if (c < padded) words[i] = __ldcs(reinterpret_cast<const float4*>(panel + c * kTileRows));
    }
  };
  LetNextStart();
  load(first);
  const RowStager stager(input, cols);
  WaitForPrevious();
  stager.Stage(0, token_count, padded, scratch.squares[0],
               [&](uint32_t t, uint32_t c, const float4& v) {
                 *reinterpret_cast<float4*>(x + t * padded + c) = v;
               });
  __syncthreads();
  float sums[kTokens][4] = {};
  for (uint32_t base = first; base < padded; base += kBatch * kF32Columns) {
    if (base != first) load(base);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const uint32_t c = base + i * kF32Columns;
      if (c >= padded) continue;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (t >= token_count) continue;
        const float value = x[t * padded + c];
        sums[t][0] = fmaf(words[i].x, value, sums[t][0]);
        sums[t][1] = fmaf(words[i].y, value, sums[t][1]);
        sums[t][2] = fmaf(words[i].z, value, sums[t][2]);
        sums[t][3] = fmaf(words[i].w, value, sums[t][3]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float sum = sums[t][i];
      for (int step = 2; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (lane < 2) scratch.partial[warp][t][lane * 4 + i] = sum;
    }
  }
  __syncthreads();
  float total = 0;
  if (threadIdx.x < kTokens * kF32Rows) {
    for (uint32_t w = 0; w < kF32Warps; ++w) {
      total += scratch.partial[w][threadIdx.x / kF32Rows][threadIdx.x % kF32Rows];
    }
  }
  return total;
}

// In gemv_f32.cu; at most kGemvTokens.
Status LaunchF32Gemv(const Gemv& gemv, Stream stream);

}  // namespace moraine::gpu
