// What decode attention has in common whatever the format of its cache: how the past of a token is
// cut into runs, and how what blocks and warps have found over their parts is added up. Internal to
// compute/cuda.
//
// A block has 8 query heads of one KV head and a run of pages, its warps take every so many-th unit
// of 16 positions. The last block of a head to finish adds the runs up, in order: one launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {

// Runs of a past, at most: with 4 KV heads one wave of 132 multiprocessors.
constexpr uint32_t kRuns = kDecodeRuns;
constexpr uint32_t kHeads = 8;  // query heads of a block
constexpr uint32_t kUnit = 16;  // positions
constexpr uint32_t kPageUnits = kKvPagePositions / kUnit;
constexpr float kLog2e = 1.4426950408889634f;

// The state of one head over some positions: values weighed by 2^(score - maximum), the largest
// score, the sum of those weights; two floats of padding.
constexpr uint32_t StateFloats(uint32_t head_dim) { return DecodeStateFloats(head_dim); }

// A block's part of a token's attention.
struct RunWork {
  uint32_t token, run, runs;
  uint32_t kv_head, head, head_count;  // head: the first, among all query heads
  uint32_t begin, units_end;           // units
  uint32_t end;                        // position
  const uint32_t* table;

  __device__ explicit RunWork(const DecodeAttention& attention) {
    const PagedKv& kv = attention.kv;
    token = blockIdx.z, run = blockIdx.x;
    const uint32_t group = attention.query_heads / kv.kv_heads;
    const uint32_t slices = (group + kHeads - 1) / kHeads;
    const uint32_t slice = blockIdx.y % slices;
    kv_head = blockIdx.y / slices;
    head = kv_head * group + slice * kHeads;
    head_count = min(kHeads, group - slice * kHeads);
    const uint32_t length = attention.positions[token] + 1;
    const uint32_t pages = (length + kKvPagePositions - 1) / kKvPagePositions;
    const uint32_t run_pages = (pages + kRuns - 1) / kRuns;
    runs = (pages + run_pages - 1) / run_pages;
    begin = run * run_pages * kPageUnits;
    end = min((run + 1) * run_pages * kKvPagePositions, length);
    units_end = (end + kUnit - 1) / kUnit;
    table = kv.block_tables + uint64_t{token} * kv.table_stride;
  }
  __device__ bool any() const { return run < runs; }
  // Of the first head, among the heads of all tokens.
  __device__ uint64_t place(const DecodeAttention& attention) const {
    return uint64_t{token} * attention.query_heads + head;
  }
};

// Adds up to 32 states of each head, in order; all but the first may be empty (maximum -infinity,
// sum 0, values 0). kOfOtherBlocks: they are not in this multiprocessor's cache.
struct Totals {
  float factors[kHeads][32];
  float maximum[kHeads], sum[kHeads];
};
template <int kDim, bool kOfOtherBlocks>
class Merger {
 public:
  // State i of head h begins at states + h * head_stride + i * stride. All threads; a barrier
  // before.
  __device__ Merger(const float* states, uint32_t head_stride, uint32_t stride, uint32_t count,
                    uint32_t head_count, Totals& totals)
      : states_(states),
        head_stride_(head_stride),
        stride_(stride),
        count_(count),
        totals_(totals) {
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t h = threadIdx.x / 32; h < head_count; h += blockDim.x / 32) {
      const float* state = states + h * head_stride + lane * stride + kDim;
      const float maximum = lane < count ? Read(state) : -INFINITY;
      const float sum = lane < count ? Read(state + 1) : 0;
      float highest = maximum;
      for (int step = 16; step > 0; step /= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
      }
      const float factor = Exp2(maximum - highest), total = WarpSum(sum * factor);
      totals.factors[h][lane] = factor;
      if (lane == 0) totals.maximum[h] = highest, totals.sum[h] = total;
    }
    __syncthreads();
  }

  // Dimensions d .. d + 3 of head h.
  __device__ float4 Values(uint32_t h, uint32_t d) const {
    const float* from = states_ + h * head_stride_ + d;
    float4 value = {};
#pragma unroll 8
    for (uint32_t i = 0; i < count_; ++i) {
      const auto* at = reinterpret_cast<const float4*>(from + i * stride_);
      const float4 v = kOfOtherBlocks ? __ldcg(at) : *at;
      const float factor = totals_.factors[h][i];
      value.x = __fmaf_rn(v.x, factor, value.x), value.y = __fmaf_rn(v.y, factor, value.y);
      value.z = __fmaf_rn(v.z, factor, value.z), value.w = __fmaf_rn(v.w, factor, value.w);
    }
    return value;
  }

 private:
  __device__ static float Read(const float* from) { return kOfOtherBlocks ? __ldcg(from) : *from; }

  const float* states_;
  uint32_t head_stride_, stride_, count_;
  const Totals& totals_;
};

__device__ inline float4 Times(const float4& v, float factor) {
  return make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
}

// A run's states of its warps, each of kHeads heads, in shared memory -> the token's output, by the last block
// of a head. All threads; a barrier before.
template <int kDim, uint32_t kWarps>
__device__ void FinishRun(const DecodeAttention& attention, const RunWork& work,
                          const float* states, Totals& totals, uint32_t* counters,
                          float* run_states) {
  constexpr uint32_t kThreads = kWarps * 32, kState = StateFloats(kDim);
  __shared__ bool last;
  const uint32_t runs = work.runs, head_count = work.head_count;
  float* const out = attention.out + work.place(attention) * kDim;
  float* const of_head = run_states + work.place(attention) * kRuns * kState;  // of all runs
  {
    const Merger<kDim, false> merger(states, kState, kHeads * kState, kWarps, head_count, totals);
    for (uint32_t i = threadIdx.x * 4; i < head_count * kDim; i += kThreads * 4) {
      const uint32_t h = i / kDim, d = i % kDim;
      const float4 values = merger.Values(h, d);
      float* const state = of_head + (h * kRuns + work.run) * kState;
      if (runs == 1) {
        *reinterpret_cast<float4*>(out + i) = Times(values, 1 / totals.sum[h]);
      } else {
        *reinterpret_cast<float4*>(state + d) = values;
        if (d == 0) state[kDim] = totals.maximum[h], state[kDim + 1] = totals.sum[h];
      }
    }
  }
  if (runs == 1) return;
  __threadfence();
  __syncthreads();
  uint32_t* const counter = counters + work.token * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) last = atomicAdd(counter, 1) == runs - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) *counter = 0;
  const Merger<kDim, true> merger(of_head, kRuns * kState, kState, runs, head_count, totals);
  for (uint32_t i = threadIdx.x * 4; i < head_count * kDim; i += kThreads * 4) {
    const uint32_t h = i / kDim;
    *reinterpret_cast<float4*>(out + i) = Times(merger.Values(h, i % kDim), 1 / totals.sum[h]);
  }
}

// Counters come first, one a token, KV head and 8 query heads: as many whatever the call, so that
// no call's states lie where another's counters are.
inline Status LaunchRuns(void (*kernel)(DecodeAttention, uint32_t*, float*), uint32_t warps,
                         uint32_t shared_bytes, const DecodeAttention& attention, Stream stream) {
  constexpr uint32_t kCounterBytes = kDecodeCounters * sizeof(uint32_t);
  const uint32_t kv_heads = attention.kv.kv_heads;
  const uint32_t slices = CeilDivide(attention.query_heads / kv_heads, kHeads);
  RETURN_IF_ERROR(Checked(AllowShared(kernel, shared_bytes), "attention of one token"));
  auto* const scratch = static_cast<unsigned char*>(attention.scratch);
  auto* const states = reinterpret_cast<float*>(scratch + kCounterBytes);
  if (kv_heads * slices * attention.token_count > kDecodeCounters) {
    return Unsupported("attention of " + std::to_string(attention.token_count) + " tokens of " +
                       std::to_string(attention.query_heads) + " heads, one by one");
  }
  const dim3 grid(kRuns, kv_heads * slices, attention.token_count);
  return Checked(LaunchChained(kernel, grid, warps * 32, shared_bytes, stream, attention,
                               reinterpret_cast<uint32_t*>(scratch), states),
                 "attention of one token");
}

}  // namespace moraine::gpu
