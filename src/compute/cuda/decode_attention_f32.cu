// RunDecodeAttention over a float32 cache: float32 throughout, for results that are compared with a
// reference, not for speed. A block has one query head of one token, its warps take positions in
// turn.
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/attention_launch.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

// 256: the largest head_dim of gpu_attention.h.
constexpr uint32_t kWarps = 8, kMaxHeadDim = 256, kPerLane = kMaxHeadDim / 32;

__global__ void __launch_bounds__(kWarps * 32) AttendInFloat(const DecodeAttention attention) {
  __shared__ float maxima[kWarps], sums[kWarps], values[kWarps][kMaxHeadDim];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t head = blockIdx.x, token = blockIdx.y;
  const PagedKv& kv = attention.kv;
  const uint32_t dim = kv.head_dim, kv_head = head / (attention.query_heads / kv.kv_heads);
  const uint32_t* table = kv.block_tables + uint64_t{token} * kv.table_stride;
  const uint64_t place = (uint64_t{token} * attention.query_heads + head) * dim;
  const uint32_t length = attention.positions[token] + 1;
  constexpr float kLog2e = 1.4426950408889634f;

  float query[kPerLane] = {}, out[kPerLane] = {};
#pragma unroll
  for (uint32_t i = 0; i < kPerLane; ++i) {
    const uint32_t d = i * 32 + lane;
    if (d < dim) query[i] = attention.queries[place + d] * (attention.scale * kLog2e);
  }
  float maximum = -INFINITY, sum = 0;
  for (uint32_t position = warp; position < length; position += kWarps) {
    const uint64_t page = table[position / kKvPagePositions];
    const uint64_t at =
        ((page * kv.kv_heads + kv_head) * kKvPagePositions + position % kKvPagePositions) * dim;
    float score = 0;
#pragma unroll
    for (uint32_t i = 0; i < kPerLane; ++i) {
      const uint32_t d = i * 32 + lane;
      if (d < dim) score += query[i] * kv.keys_f32[at + d];
    }
    score = WarpSum(score);
    const float highest = fmaxf(maximum, score);
    const float factor = Exp2(maximum - highest), weight = Exp2(score - highest);
    maximum = highest;
    sum = sum * factor + weight;
#pragma unroll
    for (uint32_t i = 0; i < kPerLane; ++i) {
      const uint32_t d = i * 32 + lane;
      if (d < dim) out[i] = out[i] * factor + weight * kv.values_f32[at + d];
    }
  }
  if (lane == 0) maxima[warp] = maximum, sums[warp] = sum;
#pragma unroll
  for (uint32_t i = 0; i < kPerLane; ++i) {
    const uint32_t d = i * 32 + lane;
    if (d < dim) values[warp][d] = out[i];
  }
  __syncthreads();
  float highest = -INFINITY;
  for (uint32_t w = 0; w < kWarps; ++w) highest = fmaxf(highest, maxima[w]);
  for (uint32_t d = threadIdx.x; d < dim; d += kWarps * 32) {
    float total = 0, value = 0;
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float factor = Exp2(maxima[w] - highest);
      total += sums[w] * factor;
      value += values[w][d] * factor;
    }
    attention.out[place + d] = value / total;
  }
}

}  // namespace

Status LaunchDecodeAttentionF32(const DecodeAttention& attention, Stream stream) {
  if (attention.kv.head_dim > kMaxHeadDim) {
    return Unsupported("attention with heads of " + std::to_string(attention.kv.head_dim) +
                       " dimensions on the GPU");
  }
  const dim3 grid(attention.query_heads, attention.token_count);
  AttendInFloat<<<grid, kWarps * 32, 0, stream>>>(attention);
  return Checked(cudaGetLastError(), "attention over a float32 cache");
}

}  // namespace moraine::gpu
