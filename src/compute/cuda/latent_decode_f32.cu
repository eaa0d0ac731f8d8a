// RunLatentDecodeAttention over a float32 cache: float32 throughout, for results that are compared
// with a reference, not for speed. A block has one head of one token, its warps take positions in
// turn.
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/latent_launch.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kWarps = 8, kMaxRank = 512, kMaxRope = 64;
constexpr uint32_t kPerLane = kMaxRank / 32, kRopePerLane = kMaxRope / 32;

__global__ void __launch_bounds__(kWarps * 32)
    AttendInFloat(const LatentDecodeAttention attention) {
  __shared__ float maxima[kWarps], sums[kWarps], values[kWarps][kMaxRank];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t head = blockIdx.x, token = blockIdx.y;
  const LatentCache& cache = attention.cache;
  const uint32_t rank = cache.rank, width = cache.width();
  const uint32_t* table = cache.block_tables + uint64_t{token} * cache.table_stride;
  const uint64_t place = uint64_t{token} * attention.heads + head;
  const uint32_t length = attention.positions[token] + 1;
  const float scale = attention.scale * 1.4426950408889634f;

  // Dimension i * 32 + lane of the latent's part, and of the rotated one.
  float query[kPerLane] = {}, turned[kRopePerLane] = {}, out[kPerLane] = {};
  const float* const from = attention.queries + place * width;
#pragma unroll
  for (uint32_t i = 0; i < kPerLane; ++i) {
    if (i * 32 + lane < rank) query[i] = from[i * 32 + lane] * scale;
  }
#pragma unroll
  for (uint32_t i = 0; i < kRopePerLane; ++i) {
    if (i * 32 + lane < cache.rope) turned[i] = from[rank + i * 32 + lane] * scale;
  }
  float maximum = -INFINITY, sum = 0;
  for (uint32_t position = warp; position < length; position += kWarps) {
    const uint64_t page = table[position / kKvPagePositions];
    const float* const key =
        cache.f32 + (page * kKvPagePositions + position % kKvPagePositions) * width;
    float latent[kPerLane] = {}, score = 0;
#pragma unroll
    for (uint32_t i = 0; i < kPerLane; ++i) {
      if (i * 32 + lane < rank) latent[i] = key[i * 32 + lane];
      score += query[i] * latent[i];
    }
#pragma unroll
    for (uint32_t i = 0; i < kRopePerLane; ++i) {
      if (i * 32 + lane < cache.rope) score += turned[i] * key[rank + i * 32 + lane];
    }
    score = WarpSum(score);
    const float highest = fmaxf(maximum, score);
    const float factor = Exp2(maximum - highest), weight = Exp2(score - highest);
    maximum = highest;
    sum = sum * factor + weight;
#pragma unroll
    for (uint32_t i = 0; i < kPerLane; ++i) out[i] = out[i] * factor + weight * latent[i];
  }
  if (lane == 0) maxima[warp] = maximum, sums[warp] = sum;
#pragma unroll
  for (uint32_t i = 0; i < kPerLane; ++i) values[warp][i * 32 + lane] = out[i];
  __syncthreads();
  float highest = -INFINITY;
  for (uint32_t w = 0; w < kWarps; ++w) highest = fmaxf(highest, maxima[w]);
  for (uint32_t d = threadIdx.x; d < rank; d += kWarps * 32) {
    float total = 0, value = 0;
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float factor = Exp2(maxima[w] - highest);
      total += sums[w] * factor;
      value += values[w][d] * factor;
    }
    attention.out[place * rank + d] = value / total;
  }
}

}  // namespace

Status LaunchLatentDecodeF32(const LatentDecodeAttention& attention, Stream stream) {
  if (attention.cache.rank > kMaxRank || attention.cache.rope > kMaxRope) {
    return Unsupported("attention over latents of " + std::to_string(attention.cache.rank) + " + " +
                       std::to_string(attention.cache.rope) + " values on the GPU");
  }
  const dim3 grid(attention.heads, attention.token_count);
  AttendInFloat<<<grid, kWarps * 32, 0, stream>>>(attention);
  return Checked(cudaGetLastError(), "attention over a float32 cache of latents");
}

}  // namespace moraine::gpu
