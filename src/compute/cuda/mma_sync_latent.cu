// Causal attention of many tokens with keys and values multiplied from latents, from Ampere up:
// mma.sync.
//
// As mma_sync_attention.cu, but keys come from two places (a head's own part, and the rotated part
// that all heads share, from the cache's pages) and are wider than values. A block has 128 tokens
// of one head, a warp 16 of them; a step is 64 positions, which lie in shared memory twice, one
// part being filled.
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/latent_launch.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kStep = kKvPagePositions;
constexpr uint32_t kWarps = 8, kThreads = kWarps * 32, kTokens = kWarps * 16;

// Rows in shared memory are an odd number of 16 bytes apart, so that 8 of them are in different
// banks.
template <int kNope, int kRope, int kValue>
struct Sizes {
  static constexpr uint32_t kKey = kNope + kRope;
  static constexpr uint32_t kNopeChunks = kNope / 8, kRopeChunks = kRope / 8;
  static constexpr uint32_t kKeyChunks = kKey / 8, kValueChunks = kValue / 8;
  static constexpr uint32_t kKeyRow = (kKeyChunks + 1) * 16, kValueRow = (kValueChunks + 1) * 16;
  static constexpr uint32_t kStageBytes = kStep * (kKeyRow + kValueRow);
  static constexpr uint32_t kSharedBytes = 2 * kStageBytes;
  static_assert(kNope % 16 == 0 && kRope % 16 == 0 && kValue % 16 == 0);
};

__device__ void CopyChunkIf(bool there, uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

// Positions begin .. begin + 63, those from `end` on as zeros: there is nothing, or NaN.
template <typename Size>
__device__ void CopyStep(const LatentPrefillAttention& attention, uint32_t head, uint32_t begin,
                         uint32_t end, uint32_t stage) {
  const uint64_t row = uint64_t{begin} * attention.heads + head;
  const uint32_t nope = attention.sizes.nope, value = attention.sizes.value;
  for (uint32_t i = threadIdx.x; i < kStep * Size::kNopeChunks; i += kThreads) {
    const uint32_t p = i / Size::kNopeChunks, chunk = i % Size::kNopeChunks;
    const bool there = begin + p < end;
    const uint64_t from = (row + uint64_t{there ? p : 0} * attention.heads) * nope + chunk * 8;
    CopyChunkIf(there, stage + p * Size::kKeyRow + chunk * 16, attention.keys + from);
  }
  const uint64_t page = attention.cache.block_tables[begin / kKvPagePositions];
  const uint16_t* const turned = attention.cache.bf16 +
                                 page * kKvPagePositions * attention.cache.width() +
                                 attention.cache.rank;
  for (uint32_t i = threadIdx.x; i < kStep * Size::kRopeChunks; i += kThreads) {
    const uint32_t p = i / Size::kRopeChunks, chunk = i % Size::kRopeChunks;
    CopyChunkIf(begin + p < end,
                stage + p * Size::kKeyRow + (Size::kNopeChunks + chunk) * 16,
                turned + p * attention.cache.width() + chunk * 8);
  }
  const uint32_t values = stage + kStep * Size::kKeyRow;
  for (uint32_t i = threadIdx.x; i < kStep * Size::kValueChunks; i += kThreads) {
    const uint32_t p = i / Size::kValueChunks, chunk = i % Size::kValueChunks;
    const bool there = begin + p < end;
    const uint64_t from = (row + uint64_t{there ? p : 0} * attention.heads) * value + chunk * 8;
    CopyChunkIf(there, values + p * Size::kValueRow + chunk * 16, attention.values + from);
  }
}

// 16 tokens of a head in one warp.
template <int kNope, int kRope, int kValue>
struct Rows {
  using Size = Sizes<kNope, kRope, kValue>;
  uint32_t queries[Size::kKey / 16][4];
  float out[kValue / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // of rows g and g + 8
  uint32_t lane;

  // Token rows from `first` on, `count` of them there are.
  __device__ void Load(const uint16_t* queries_of_head, uint64_t stride, uint32_t first,
                       uint32_t count) {
    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t s = 0; s < Size::kKey / 16; ++s) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = first + g + i % 2 * 8;
        const uint16_t* from = queries_of_head + row * stride + s * 16 + i / 2 * 8 + 2 * t;
        queries[s][i] = row < count ? *reinterpret_cast<const uint32_t*>(from) : 0;
      }
    }
  }

  // position: of row g; begin: of the step; scale: with log2(e).
  __device__ void Add(uint32_t stage, uint32_t position, uint32_t begin, float scale) {
    float scores[kStep / 8][4] = {};
#pragma unroll
    for (uint32_t s = 0; s < Size::kKey / 16; ++s) {
#pragma unroll
      for (uint32_t n = 0; n < kStep / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(stage + (n * 16 + lane / 16 * 8 + lane % 8) * Size::kKeyRow +
                         (2 * s + lane / 8 % 2) * 16,
                     b);
        Mma(scores[2 * n], queries[s], b[0], b[1]);
        Mma(scores[2 * n + 1], queries[s], b[2], b[3]);
      }
    }
    if (begin + kStep > position - lane / 4 + 1) Mask(scores, position, begin + lane % 4 * 2);
#pragma unroll
    for (int r = 0; r < 2; ++r) Softmax(scores, r, scale);
    const uint32_t values = stage + kStep * Size::kKeyRow;
#pragma unroll
    for (uint32_t s = 0; s < kStep / 16; ++s) {
      const float* first = scores[2 * s];
      const float* second = scores[2 * s + 1];
      const uint32_t a[4] = {PackBf16(first[0], first[1]), PackBf16(first[2], first[3]),
                             PackBf16(second[0], second[1]), PackBf16(second[2], second[3])};
#pragma unroll
      for (uint32_t n = 0; n < kValue / 16; ++n) {
        uint32_t b[4];
        LoadTransposed(values + (s * 16 + lane / 8 % 2 * 8 + lane % 8) * Size::kValueRow +
                           (2 * n + lane / 16) * 16,
                       b);
        Mma(out[2 * n], a, b[0], b[1]);
        Mma(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  __device__ static void Mask(float (&scores)[kStep / 8][4], uint32_t position, uint32_t begin) {
#pragma unroll
    for (uint32_t n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (uint32_t e = 0; e < 4; ++e) {
        if (begin + n * 8 + e % 2 > position + e / 2 * 8) scores[n][e] = -INFINITY;
      }
    }
  }
  // Scores of row g + 8 r become weights; what was summed up before shrinks.
  __device__ void Softmax(float (&scores)[kStep / 8][4], int r, float scale) {
    float highest = maximum[r];
#pragma unroll
    for (uint32_t n = 0; n < kStep / 8; ++n) {
      highest = fmaxf(highest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    const float offset = highest == -INFINITY ? 0 : highest * scale;
    const float factor = Exp2(maximum[r] * scale - offset);
    maximum[r] = highest;
    float added = 0;
#pragma unroll
    for (uint32_t n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        scores[n][e] = Exp2(fmaf(scores[n][e], scale, -offset));
        added += scores[n][e];
      }
    }
    sum[r] = sum[r] * factor + added;
#pragma unroll
    for (uint32_t n = 0; n < kValue / 8; ++n) {
      out[n][2 * r] *= factor, out[n][2 * r + 1] *= factor;
    }
  }

  // column: of the head's first value in the operand.
  __device__ void Store(uint16_t* operand, uint64_t stride, uint32_t column, uint32_t first,
                        uint32_t count) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      float total = sum[r] + __shfl_xor_sync(~0u, sum[r], 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const uint32_t row = first + lane / 4 + r * 8;
      if (row >= count) continue;
      const float factor = 1 / total;
#pragma unroll
      for (uint32_t n = 0; n < kValue / 8; ++n) {
        uint16_t* const to =
            operand + row * stride + OperandPosition(column + n * 8 + lane % 4 * 2);
        *reinterpret_cast<uint32_t*>(to) =
            PackBf16(out[n][2 * r] * factor, out[n][2 * r + 1] * factor);
      }
    }
  }
};

template <int kNope, int kRope, int kValue>
__global__ void __launch_bounds__(kThreads, 1)
    AttendToProjected(const LatentPrefillAttention attention) {
  using Size = Sizes<kNope, kRope, kValue>;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t warp = threadIdx.x / 32, heads = attention.heads;
  const uint32_t tiles = gridDim.x / heads, tile = tiles - 1 - blockIdx.x / heads;
  const uint32_t head = blockIdx.x % heads, first = tile * kTokens + warp * 16;
  Rows<kNope, kRope, kValue> rows;
  rows.lane = threadIdx.x % 32;
  rows.Load(attention.queries + uint64_t{head} * Size::kKey, attention.query_stride, first,
            attention.token_count);
  const uint32_t end =
      attention.first_position + min((tile + 1) * kTokens, attention.token_count);  // position
  const uint32_t position = attention.first_position + first + rows.lane / 4;
  const float scale = attention.scale * 1.4426950408889634f;
  const uint32_t stages = SharedAddress(shared);
  CopyStep<Size>(attention, head, 0, end, stages);
  CommitCopies();
  for (uint32_t begin = 0, step = 0; begin < end; begin += kStep, ++step) {
    const uint32_t stage = stages + step % 2 * Size::kStageBytes;
    if (begin + kStep < end) {
      CopyStep<Size>(attention, head, begin + kStep, end,
                     stages + (step + 1) % 2 * Size::kStageBytes);
    }
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();
    if (begin <= attention.first_position + first + 15) {
      rows.Add(stage, position, begin, scale);
    }
    __syncthreads();
  }
  rows.Store(attention.operand, attention.operand_stride, head * kValue, first,
             attention.token_count);
}

template <int kNope, int kRope, int kValue>
Status Launch(const LatentPrefillAttention& attention, Stream stream) {
  constexpr uint32_t kShared = Sizes<kNope, kRope, kValue>::kSharedBytes;
  const auto kernel = AttendToProjected<kNope, kRope, kValue>;
  RETURN_IF_ERROR(Checked(AllowShared(kernel, kShared), "attention of many tokens"));
  const uint32_t tiles = CeilDivide(attention.token_count, kTokens);
  kernel<<<tiles * attention.heads, kThreads, kShared, stream>>>(attention);
  return Checked(cudaGetLastError(), "attention of many tokens");
}

}  // namespace

Status LaunchMmaSyncLatent(const LatentPrefillAttention& attention, Stream stream) {
  const LatentSizes& sizes = attention.sizes;
  if (sizes.nope == 128 && sizes.rope == 64 && sizes.value == 128) {
    return Launch<128, 64, 128>(attention, stream);
  }
  if (sizes.nope == 32 && sizes.rope == 16 && sizes.value == 32) {
    return Launch<32, 16, 32>(attention, stream);
  }
  return Unsupported("latent attention with heads of " + std::to_string(sizes.nope) + " + " +
                     std::to_string(sizes.rope) + " dimensions on the GPU");
}

}  // namespace moraine::gpu
