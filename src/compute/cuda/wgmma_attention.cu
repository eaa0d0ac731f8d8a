// Causal attention of many tokens on Hopper, heads of 64 or 128 dimensions: one warp copies, two
// warpgroups compute (after Shah et al. 2024, FlashAttention-3, arXiv 2407.08608).
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
// Registers of a thread: 64 scores, as many sums of 128 dimensions, 32 words of weights.
#include <cuda.h>
#include <cuda_runtime.h>

#include "compute/cuda/attention_launch.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/cuda/hopper.cuh"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"
#include "compute/cuda/tensor_map.h"
#include "compute/cuda/wgmma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kTokens = 128, kPositions = 128, kPage = kKvPagePositions;
constexpr uint32_t kThreads = 384, kComputeThreads = 256;
// Registers a thread after the split: 128 x 24 + 256 x 240 of 65,536.
constexpr uint32_t kProducerRegisters = 24, kComputeRegisters = 240;
// 64 dimensions (128 bytes, the swizzle's width) of 128 tokens or positions.
constexpr uint32_t kBlockBytes = 128 * 128, kPageBlockBytes = kPage * 128;
constexpr uint32_t kStages = 2;

constexpr uint32_t TileBytes(int dim) { return dim / 64 * kBlockBytes; }
// Alignment, queries, keys and values of all stages, barriers.
constexpr uint32_t SharedBytes(int dim) { return 1024 + TileBytes(dim) * (1 + 2 * kStages) + 128; }

struct Parameters {
  CUtensorMap queries, keys, values;
  PrefillAttention attention;
  uint64_t operand_stride;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Which part of the work a block has.
struct Work {
  uint32_t head, kv_head, first_token, end;  // end: position after the block's last token

  __device__ explicit Work(const PrefillAttention& attention) {
    const uint32_t heads = attention.query_heads, tiles = gridDim.x / heads;
    const uint32_t tile = tiles - 1 - blockIdx.x / heads;
    head = blockIdx.x % heads;
    kv_head = head / (heads / attention.kv.kv_heads);
    first_token = tile * kTokens;
    end = attention.first_position + min(first_token + kTokens, attention.token_count);
  }
  __device__ uint32_t steps() const { return (end + kPositions - 1) / kPositions; }
};

// Shared addresses. Barriers: queries; then of each stage keys full, keys empty, values full,
// values empty.
template <int kDim>
struct Shared {
  uint32_t queries;

  __device__ uint32_t keys(uint32_t stage) const {
    return queries + TileBytes(kDim) * (1 + 2 * stage);
  }
  __device__ uint32_t values(uint32_t stage) const { return keys(stage) + TileBytes(kDim); }
  __device__ uint32_t queries_full() const { return queries + TileBytes(kDim) * (1 + 2 * kStages); }
  __device__ uint32_t keys_full(uint32_t stage) const { return queries_full() + 8 + stage * 32; }
  __device__ uint32_t keys_empty(uint32_t stage) const { return keys_full(stage) + 8; }
  __device__ uint32_t values_full(uint32_t stage) const { return keys_full(stage) + 16; }
  __device__ uint32_t values_empty(uint32_t stage) const { return keys_full(stage) + 24; }
};

// One thread.
template <int kDim>
__device__ void Produce(const Parameters& parameters, const Work& work,
                        const Shared<kDim>& shared) {
  const PagedKv& kv = parameters.attention.kv;
  ExpectBytes(shared.queries_full(), TileBytes(kDim));
  for (uint32_t c = 0; c < kDim / 64; ++c) {
    CopyBox(shared.queries + c * kBlockBytes, &parameters.queries, work.head * kDim + c * 64,
            work.first_token, shared.queries_full());
  }
  const uint32_t pages = (work.end + kPage - 1) / kPage;
  for (uint32_t i = 0; i < work.steps(); ++i) {
    const uint32_t first = (work.steps() - 1 - i) * 2, count = min(2u, pages - first);
    const uint32_t stage = i % kStages, parity = i / kStages % 2;
    uint32_t rows[2];
    for (uint32_t p = 0; p < count; ++p) {
      rows[p] = (kv.block_tables[first + p] * kv.kv_heads + work.kv_head) * kPage;
    }
    WaitPhase(shared.keys_empty(stage), parity ^ 1);
    ExpectBytes(shared.keys_full(stage), count * (kDim / 64) * kPageBlockBytes);
    for (uint32_t p = 0; p < count; ++p) {
      for (uint32_t c = 0; c < kDim / 64; ++c) {
        CopyBox(shared.keys(stage) + c * kBlockBytes + p * kPageBlockBytes, &parameters.keys,
                c * 64, rows[p], shared.keys_full(stage));
      }
    }
    WaitPhase(shared.values_empty(stage), parity ^ 1);
    ExpectBytes(shared.values_full(stage), count * (kDim / 64) * kPageBlockBytes);
    for (uint32_t p = 0; p < count; ++p) {
      for (uint32_t c = 0; c < kDim / 64; ++c) {
        CopyBox(shared.values(stage) + c * kBlockBytes + p * kPageBlockBytes, &parameters.values,
                c * 64, rows[p], shared.values_full(stage));
      }
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
template <int kDim>
__device__ void ClearValues(uint32_t values, uint32_t visible) {
  for (uint32_t i = threadIdx.x - 128 + visible * 8; i < kPositions * 8; i += kComputeThreads) {
    for (uint32_t c = 0; c < kDim / 64; ++c) {
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
template <int kDim>
struct Warpgroup {
  float scores[kPositions / 2];
  float out[kDim / 2] = {};
  uint32_t weights[kPositions / 16][4];
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  __device__ __forceinline__ void StartScores(uint32_t queries, uint32_t keys) {
    WgmmaFence();
#pragma unroll
    for (uint32_t k = 0; k < kDim / 16; ++k) {
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
    for (uint32_t i = 0; i < kDim / 2; ++i) out[i] *= factor[i / 2 % 2];
  }
  // Rows g and g + 8, `first` is row g. Lanes trade words, so that each has 8 bytes in operand
  // order.
  __device__ __forceinline__ void Store(const Parameters& parameters, const Work& work,
                                        uint32_t first, uint32_t lane) {
    const uint32_t t = lane % 4;
    const uint64_t column = uint64_t{work.head} * kDim + t % 2 * 8 + t / 2 * 4;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      float total = sum[r] + __shfl_xor_sync(~0u, sum[r], 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float factor = 1 / total;
      const uint32_t row = first + 8 * r;
      uint16_t* const to = parameters.attention.operand + row * parameters.operand_stride + column;
#pragma unroll
      for (uint32_t n = 0; n < kDim / 16; ++n) {
        const float* low = out + 8 * n + 2 * r;
        const uint32_t words[2] = {PackBf16(low[0] * factor, low[1] * factor),
                                   PackBf16(low[4] * factor, low[5] * factor)};
        const uint32_t got = __shfl_xor_sync(~0u, t < 2 ? words[1] : words[0], 2);
        if (row >= parameters.attention.token_count) continue;
        *reinterpret_cast<uint2*>(to + n * 16) =
            t < 2 ? make_uint2(words[0], got) : make_uint2(got, words[1]);
      }
    }
  }
};

template <int kDim>
__device__ void Compute(const Parameters& parameters, const Work& work,
                        const Shared<kDim>& shared) {
  const PrefillAttention& attention = parameters.attention;
  const uint32_t warp = Uniform(threadIdx.x / 32) - 4, lane = threadIdx.x % 32;
  const uint32_t half = warp / 4;
  const uint32_t first = work.first_token + half * 64;  // token of the warpgroup
  const uint32_t row = first + warp % 4 * 16 + lane / 4;
  const uint32_t position = attention.first_position + row;
  const uint32_t queries = shared.queries + half * 64 * 128;
  const float scale = attention.scale * 1.4426950408889634f;
  const uint32_t steps = Uniform(work.steps());
  // Every warp tells the copier for itself.
  Warpgroup<kDim> group;
  float factor[2];
  const auto softmax = [&](uint32_t i) {
    const uint32_t begin = (steps - 1 - i) * kPositions;
    const bool masked = begin + kPositions > attention.first_position + first + 1;
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
    ClearValues<kDim>(shared.values(0), work.end % kPositions);
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
  group.Store(parameters, work, row, lane);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    AttendCausally(const __grid_constant__ Parameters parameters) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char raw[];
  const uint32_t address = SharedAddress(raw);
  const Shared<kDim> shared{address + (1024 - address % 1024) % 1024};
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
  const Work work(parameters.attention);
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    if (threadIdx.x == 0) Produce<kDim>(parameters, work, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
    Compute<kDim>(parameters, work, shared);
  }
#endif
}

// Rows of `cols` bf16 as boxes of 64 columns x box_rows.
cudaError_t FillMap(EncodeTensorMap encode, const uint16_t* data, uint64_t cols, uint64_t rows,
                    uint32_t box_rows, CUtensorMap* map) {
  const cuuint64_t sizes[2] = {cols, rows}, strides[1] = {cols * 2};
  const cuuint32_t box[2] = {64, box_rows}, steps[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<uint16_t*>(data), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <int kDim>
cudaError_t Launch(const PrefillAttention& attention, Stream stream) {
  constexpr uint32_t kShared = SharedBytes(kDim);
  static_assert(kShared <= 227 * 1024);
  EncodeTensorMap encode = nullptr;
  if (const cudaError_t error = FindEncodeTensorMap(&encode); error != cudaSuccess) return error;
  const uint32_t width = attention.query_heads * kDim;
  // How many pages the pools have is not known here, nor needed: block tables name those there are.
  constexpr uint64_t kAnyRows = uint64_t{1} << 31;
  Parameters parameters;
  parameters.attention = attention;
  parameters.operand_stride = OperandStride(width);
  cudaError_t error = FillMap(encode, attention.queries, width, attention.token_count, kTokens,
                              &parameters.queries);
  if (error == cudaSuccess) {
    error = FillMap(encode, attention.kv.keys, kDim, kAnyRows, kPage, &parameters.keys);
  }
  if (error == cudaSuccess) {
    error = FillMap(encode, attention.kv.values, kDim, kAnyRows, kPage, &parameters.values);
  }
  if (error == cudaSuccess) error = AllowShared(AttendCausally<kDim>, kShared);
  if (error != cudaSuccess) return error;
  const uint32_t tiles = CeilDivide(attention.token_count, kTokens);
  AttendCausally<kDim><<<tiles * attention.query_heads, kThreads, kShared, stream>>>(parameters);
  return cudaGetLastError();
}

}  // namespace

Status LaunchWgmmaAttention(const PrefillAttention& attention, Stream stream) {
  return Checked(
      attention.kv.head_dim == 64 ? Launch<64>(attention, stream) : Launch<128>(attention, stream),
      "attention of many tokens");
}

}  // namespace moraine::gpu
