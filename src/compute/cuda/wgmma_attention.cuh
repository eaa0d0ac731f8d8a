// What the attentions of many tokens on Hopper share (wgmma_attention.cu, wgmma_latent.cu): one
// warp copies, two warpgroups compute (after Shah et al. 2024, FlashAttention-3, arXiv 2407.08608).
//
// A block has 128 tokens of one query head, a warpgroup 64; a step is two pages, 128 positions,
// from the last to the first, so that the mask is met at the start. Queries, keys and values come
// by tensor copies; of keys and values two steps are there or on their way. Scores of the next step
// are multiplied while the values of this one are, and softmax runs beside the latter:
//
//   scores(0); softmax(0)
//   start scores(i + 1); start out += weights(i) values(i); wait for the scores; softmax(i + 1);
//   wait for the values; scale out
//
// Registers of a thread: 64 scores, as many sums of 128 value dimensions, 32 words of weights.
//
// A Source says what is copied, by one thread:
//   CopyQueries(work, to, barrier)              128 tokens x kKey dimensions
//   Row(work, page)                             where page `page` of the sequence lies; read ahead
//   CopyKeys(work, page, row, to, barrier)      its 64 positions x kKey
//   CopyValues(work, page, row, to, barrier)    the same x kValue
// in blocks of 64 dimensions with the 128-byte swizzle, kBlockBytes apart. Internal to
// compute/cuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/hopper.cuh"
#include "compute/cuda/mma.cuh"
#include "compute/cuda/tensor_map.h"
#include "compute/cuda/wgmma.cuh"

namespace moraine::gpu::wgmma_attention {

inline constexpr uint32_t kTokens = 128, kPositions = 128, kPage = kKvPagePositions;
inline constexpr uint32_t kThreads = 384, kComputeThreads = 256;
// Registers a thread after the split: 128 x 24 + 256 x 240 of 65,536.
inline constexpr uint32_t kProducerRegisters = 24, kComputeRegisters = 240;
// 64 dimensions (128 bytes, the swizzle's width) of 128 tokens or positions.
inline constexpr uint32_t kBlockBytes = 128 * 128, kPageBlockBytes = kPage * 128;
inline constexpr uint32_t kStages = 2;

constexpr uint32_t TileBytes(int dim) { return dim / 64 * kBlockBytes; }
// Alignment, queries, keys and values of all stages, barriers.
constexpr uint32_t SharedBytes(int key, int value) {
  return 1024 + TileBytes(key) + kStages * (TileBytes(key) + TileBytes(value)) + 128;
}

// Where a block's output goes, and whose scores it scales.
struct Output {
  uint16_t* operand;
  uint64_t stride;
  uint32_t token_count, first_position;
  float scale;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Which part of the work a block has.
struct Work {
  uint32_t head, first_token, end;  // end: position after the block's last token

  __device__ Work(const Output& output, uint32_t heads) {
    const uint32_t tiles = gridDim.x / heads, tile = tiles - 1 - blockIdx.x / heads;
    head = blockIdx.x % heads;
    first_token = tile * kTokens;
    end = output.first_position + min(first_token + kTokens, output.token_count);
  }
  __device__ uint32_t steps() const { return (end + kPositions - 1) / kPositions; }
};

// Shared addresses. Barriers: queries; then of each stage keys full, keys empty, values full,
// values empty.
template <int kKey, int kValue>
struct Shared {
  static constexpr uint32_t kStageBytes = TileBytes(kKey) + TileBytes(kValue);
  uint32_t queries;

  __device__ uint32_t keys(uint32_t stage) const {
    return queries + TileBytes(kKey) + stage * kStageBytes;
  }
  __device__ uint32_t values(uint32_t stage) const { return keys(stage) + TileBytes(kKey); }
  __device__ uint32_t queries_full() const { return keys(kStages); }
  __device__ uint32_t keys_full(uint32_t stage) const { return queries_full() + 8 + stage * 32; }
  __device__ uint32_t keys_empty(uint32_t stage) const { return keys_full(stage) + 8; }
  __device__ uint32_t values_full(uint32_t stage) const { return keys_full(stage) + 16; }
  __device__ uint32_t values_empty(uint32_t stage) const { return keys_full(stage) + 24; }
};

// One thread.
template <int kKey, int kValue, typename Source>
__device__ void Produce(const Source& source, const Work& work,
                        const Shared<kKey, kValue>& shared) {
  ExpectBytes(shared.queries_full(), TileBytes(kKey));
  source.CopyQueries(work, shared.queries, shared.queries_full());
  const uint32_t pages = (work.end + kPage - 1) / kPage;
  for (uint32_t i = 0; i < work.steps(); ++i) {
    const uint32_t first = (work.steps() - 1 - i) * 2, count = min(2u, pages - first);
    const uint32_t stage = i % kStages, parity = i / kStages % 2;
    uint32_t rows[2];
    for (uint32_t p = 0; p < count; ++p) rows[p] = source.Row(work, first + p);
    WaitPhase(shared.keys_empty(stage), parity ^ 1);
    ExpectBytes(shared.keys_full(stage), count * (kKey / 64) * kPageBlockBytes);
    for (uint32_t p = 0; p < count; ++p) {
      source.CopyKeys(work, first + p, rows[p], shared.keys(stage) + p * kPageBlockBytes,
                      shared.keys_full(stage));
    }
    WaitPhase(shared.values_empty(stage), parity ^ 1);
    ExpectBytes(shared.values_full(stage), count * (kValue / 64) * kPageBlockBytes);
    for (uint32_t p = 0; p < count; ++p) {
      source.CopyValues(work, first + p, rows[p], shared.values(stage) + p * kPageBlockBytes,
                        shared.values_full(stage));
    }
  }
}

template <int kCount>
__device__ void Settle(float (&values)[kCount]) {
  // Keeps the compiler from reading sums before the wait.
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// What a page has past the last position may be anything, NaN too, which a weight of 0 does not
// undo. Both warpgroups, before the first product with values.
template <int kValue>
__device__ void ClearValues(uint32_t values, uint32_t visible) {
  for (uint32_t i = threadIdx.x - 128 + visible * 8; i < kPositions * 8; i += kComputeThreads) {
    for (uint32_t c = 0; c < kValue / 64; ++c) {
      asm volatile(
          "st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(values + c * kBlockBytes + i * 16),
          "r"(0)
          : "memory");
    }
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("barrier.cta.sync 2, %0;" ::"n"(kComputeThreads) : "memory");
}

// 64 tokens of a warpgroup; a thread has rows g and g + 8 of its warp's 16. Element 4b + 2r + e of
// scores and sums: column 8b + 2t + e of row g + 8r.
template <int kKey, int kValue>
struct Warpgroup {
  float scores[kPositions / 2];
  float out[kValue / 2] = {};
  uint32_t weights[kPositions / 16][4];
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  __device__ __forceinline__ void StartScores(uint32_t queries, uint32_t keys) {
    WgmmaFence();
#pragma unroll
    for (uint32_t k = 0; k < kKey / 16; ++k) {
      const uint32_t block = k / 4 * kBlockBytes;
      WgmmaShared(scores, OperandDescriptor(queries + block) + k % 4 * 2,
                  OperandDescriptor(keys + block) + k % 4 * 2, k > 0);
    }
    WgmmaCommit();
  }
  __device__ __forceinline__ void StartValues(uint32_t values) {
    WgmmaFence();
    const uint64_t b = TransposedDescriptor(values, kBlockBytes);
#pragma unroll
    for (uint32_t k = 0; k < kPositions / 16; ++k) WgmmaTransposed(out, weights[k], b + k * 128);
    WgmmaCommit();
  }
  // Scores become weights, float32; factor: by which what was summed up before shrinks.
  __device__ __forceinline__ void Softmax(uint32_t position, uint32_t begin, bool masked,
                                          float scale, float (&factor)[2]) {
    if (masked) {
#pragma unroll
      for (uint32_t i = 0; i < kPositions / 2; ++i) {
        const uint32_t column = begin + i / 4 * 8 + i % 2;  // begin has 2t in it
        if (column > position + i / 2 % 2 * 8) scores[i] = -INFINITY;
      }
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      float highest = maximum[r];
#pragma unroll
      for (uint32_t i = 2 * r; i < kPositions / 2; i += 4) {
        highest = fmaxf(highest, fmaxf(scores[i], scores[i + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float offset = highest == -INFINITY ? 0 : highest * scale;
      factor[r] = Exp2(maximum[r] * scale - offset);
      maximum[r] = highest;
      float added = 0;
#pragma unroll
      for (uint32_t i = 2 * r; i < kPositions / 2; i += 4) {
#pragma unroll
        for (uint32_t e = i; e < i + 2; ++e) {
          scores[e] = Exp2(fmaf(scores[e], scale, -offset));
          added += scores[e];
        }
      }
      sum[r] = sum[r] * factor[r] + added;
    }
  }
  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (uint32_t k = 0; k < kPositions / 16; ++k) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        weights[k][i] = PackBf16(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
      }
    }
  }
  __device__ __forceinline__ void Scale(const float (&factor)[2]) {
#pragma unroll
    for (uint32_t i = 0; i < kValue / 2; ++i) out[i] *= factor[i / 2 % 2];
  }
  // Rows g and g + 8, `first` is row g. Lanes trade words, so that each has 8 bytes in operand
  // order.
  __device__ __forceinline__ void Store(const Output& output, const Work& work, uint32_t first,
                                        uint32_t lane) {
    const uint32_t t = lane % 4;
    const uint64_t column = uint64_t{work.head} * kValue + t % 2 * 8 + t / 2 * 4;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      float total = sum[r] + __shfl_xor_sync(~0u, sum[r], 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float factor = 1 / total;
      const uint32_t row = first + 8 * r;
      uint16_t* const to = output.operand + row * output.stride + column;
#pragma unroll
      for (uint32_t n = 0; n < kValue / 16; ++n) {
        const float* low = out + 8 * n + 2 * r;
        const uint32_t words[2] = {PackBf16(low[0] * factor, low[1] * factor),
                                   PackBf16(low[4] * factor, low[5] * factor)};
        const uint32_t got = __shfl_xor_sync(~0u, t < 2 ? words[1] : words[0], 2);
        if (row >= output.token_count) continue;
        *reinterpret_cast<uint2*>(to + n * 16) =
            t < 2 ? make_uint2(words[0], got) : make_uint2(got, words[1]);
      }
    }
  }
};

template <int kKey, int kValue>
__device__ void Compute(const Output& output, const Work& work,
                        const Shared<kKey, kValue>& shared) {
  const uint32_t warp = Uniform(threadIdx.x / 32) - 4, lane = threadIdx.x % 32;
  const uint32_t half = warp / 4;
  const uint32_t first = work.first_token + half * 64;  // token of the warpgroup
  const uint32_t row = first + warp % 4 * 16 + lane / 4;
  const uint32_t position = output.first_position + row;
  const uint32_t queries = shared.queries + half * 64 * 128;
  const float scale = output.scale * 1.4426950408889634f;
  const uint32_t steps = Uniform(work.steps());
  // Every warp tells the copier for itself.
  Warpgroup<kKey, kValue> group;
  float factor[2];
  const auto softmax = [&](uint32_t i) {
    const uint32_t begin = (steps - 1 - i) * kPositions;
    const bool masked = begin + kPositions > output.first_position + first + 1;
    group.Softmax(position, begin + lane % 4 * 2, masked, scale, factor);
  };

  WaitPhase(shared.queries_full(), 0);
  WaitPhase(shared.keys_full(0), 0);
  group.StartScores(queries, shared.keys(0));
  WgmmaWait<0>();
  Settle(group.scores);
  ArriveIf(lane == 0, shared.keys_empty(0));
  softmax(0);
  group.PackWeights();
  if (work.end % kPositions != 0) {
    WaitPhase(shared.values_full(0), 0);
    ClearValues<kValue>(shared.values(0), work.end % kPositions);
  }
  for (uint32_t i = 1; i < steps; ++i) {
    const uint32_t stage = i % kStages, before = (i - 1) % kStages;
    WaitPhase(shared.keys_full(stage), i / kStages % 2);
    group.StartScores(queries, shared.keys(stage));
    WaitPhase(shared.values_full(before), (i - 1) / kStages % 2);
    group.StartValues(shared.values(before));
    WgmmaWait<1>();
    Settle(group.scores);
    ArriveIf(lane == 0, shared.keys_empty(stage));
    softmax(i);
    WgmmaWait<0>();
    Settle(group.out);
    ArriveIf(lane == 0, shared.values_empty(before));
    group.Scale(factor);
    group.PackWeights();
  }
  const uint32_t stage = (steps - 1) % kStages;
  WaitPhase(shared.values_full(stage), (steps - 1) / kStages % 2);
  group.StartValues(shared.values(stage));
  WgmmaWait<0>();
  Settle(group.out);
  group.Store(output, work, row, lane);
}

// All threads of a block.
template <int kKey, int kValue, typename Source>
__device__ void Attend(const Source& source, const Output& output, uint32_t heads) {
  extern __shared__ unsigned char raw[];
  const uint32_t address = SharedAddress(raw);
  const Shared<kKey, kValue> shared{address + (1024 - address % 1024) % 1024};
  if (threadIdx.x == 0) {
    InitBarrier(shared.queries_full(), 1);
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      InitBarrier(shared.keys_full(stage), 1);
      InitBarrier(shared.keys_empty(stage), kComputeThreads / 32);
      InitBarrier(shared.values_full(stage), 1);
      InitBarrier(shared.values_empty(stage), kComputeThreads / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const Work work(output, heads);
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    if (threadIdx.x == 0) Produce<kKey, kValue>(source, work, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
    Compute(output, work, shared);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// Rows of `cols` bf16, `stride` elements apart, as boxes of 64 columns x box_rows.
inline cudaError_t FillMap(EncodeTensorMap encode, const uint16_t* data, uint64_t cols,
                           uint64_t stride, uint64_t rows, uint32_t box_rows, CUtensorMap* map) {
  const cuuint64_t sizes[2] = {cols, rows}, strides[1] = {stride * 2};
  const cuuint32_t box[2] = {64, box_rows}, steps[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<uint16_t*>(data), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
// How many pages a pool has is not known here, nor needed: block tables name those there are.
inline constexpr uint64_t kAnyRows = uint64_t{1} << 31;

}  // namespace moraine::gpu::wgmma_attention
