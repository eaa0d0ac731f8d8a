// Causal attention of many tokens from Ampere up: mma.sync, keys and values a page at a time by
// cp.async.
//
// A block has 128 tokens (64 of large heads) of one query head, a warp 16 of them; a step is a page
// of 64 positions, whose keys and values lie in shared memory twice, one being filled. Softmax is
// online (Milakov and Gimelshein 2018; Dao 2023, FlashAttention-2): each row keeps its largest
// score and its sum, in powers of two.
//
// Blocks of the last tokens, which see most, come first; the heads that share keys side by side.
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/attention_launch.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kPage = kKvPagePositions;

template <int kDim>
struct Shape {
  static constexpr uint32_t kWarps = kDim > 128 ? 4 : 8;
  static constexpr uint32_t kThreads = kWarps * 32, kTokens = kWarps * 16;
  static constexpr uint32_t kChunks = kDim / 8;  // of 16 bytes in a row
  static constexpr uint32_t kTileBytes = kPage * kDim * 2;
  static constexpr uint32_t kSharedBytes = 4 * kTileBytes;
  // Byte of a chunk of a row: XORed with the row within 8 chunks, as far as there are 8.
  __device__ static uint32_t At(uint32_t row, uint32_t chunk) {
    const uint32_t low = chunk % 8, high = chunk - low;
    const uint32_t left = kChunks - high;
    const uint32_t mask = left >= 8 ? 7 : left >= 4 ? 3 : left >= 2 ? 1 : 0;
    return (row * kChunks + high + (low ^ (row & mask))) * 16;
  }
};

// 16 tokens of a head in one warp.
template <int kDim>
struct Rows {
  uint32_t queries[kDim / 16][4];
  float out[kDim / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // of rows g and g + 8
  uint32_t lane;

  // Token rows from `first` on, `count` of them there are.
  __device__ void Load(const uint16_t* queries_of_head, uint64_t stride, uint32_t first,
                       uint32_t count) {
    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = first + g + i % 2 * 8;
        const uint16_t* from = queries_of_head + row * stride + s * 16 + i / 2 * 8 + 2 * t;
        queries[s][i] = row < count ? *reinterpret_cast<const uint32_t*>(from) : 0;
      }
    }
  }

  // One page. position: of row g; begin: of the page; scale: with log2(e).
  __device__ void Add(uint32_t keys, uint32_t values, uint32_t position, uint32_t begin,
                      float scale) {
    const uint32_t t = lane % 4;
    float scores[kPage / 8][4] = {};
#pragma unroll
    for (uint32_t s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (uint32_t n = 0; n < kPage / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(
            keys + Shape<kDim>::At(n * 16 + lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2), b);
        Mma(scores[2 * n], queries[s], b[0], b[1]);
        Mma(scores[2 * n + 1], queries[s], b[2], b[3]);
      }
    }
    if (begin + kPage > position - lane / 4 + 1) Mask(scores, position, begin + 2 * t);
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = maximum[r];
#pragma unroll
      for (uint32_t n = 0; n < kPage / 8; ++n) {
        highest = fmaxf(highest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float offset = highest == -INFINITY ? 0 : highest * scale;
      factor[r] = Exp2(maximum[r] * scale - offset);
      maximum[r] = highest;
      float added = 0;
#pragma unroll
      for (uint32_t n = 0; n < kPage / 8; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          scores[n][e] = Exp2(fmaf(scores[n][e], scale, -offset));
          added += scores[n][e];
        }
      }
      sum[r] = sum[r] * factor[r] + added;
    }
#pragma unroll
    for (uint32_t n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[n][e] *= factor[e / 2];
    }
#pragma unroll
    for (uint32_t s = 0; s < kPage / 16; ++s) {
      const float* first = scores[2 * s];
      const float* second = scores[2 * s + 1];
      const uint32_t a[4] = {PackBf16(first[0], first[1]), PackBf16(first[2], first[3]),
                             PackBf16(second[0], second[1]), PackBf16(second[2], second[3])};
#pragma unroll
      for (uint32_t n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        LoadTransposed(
            values + Shape<kDim>::At(s * 16 + lane / 8 % 2 * 8 + lane % 8, 2 * n + lane / 16), b);
        Mma(out[2 * n], a, b[0], b[1]);
        Mma(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  __device__ static void Mask(float (&scores)[kPage / 8][4], uint32_t position, uint32_t begin) {
#pragma unroll
    for (uint32_t n = 0; n < kPage / 8; ++n) {
#pragma unroll
      for (uint32_t e = 0; e < 4; ++e) {
        if (begin + n * 8 + e % 2 > position + e / 2 * 8) scores[n][e] = -INFINITY;
      }
    }
  }

  // column: of the head's first dimension in the operand.
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
      for (uint32_t n = 0; n < kDim / 8; ++n) {
        uint16_t* const to =
            operand + row * stride + OperandPosition(column + n * 8 + lane % 4 * 2);
        *reinterpret_cast<uint32_t*>(to) =
            PackBf16(out[n][2 * r] * factor, out[n][2 * r + 1] * factor);
      }
    }
  }
};

template <int kDim>
__device__ void CopyPage(const PagedKv& kv, uint32_t kv_head, uint32_t page_index, uint32_t stage) {
  using Size = Shape<kDim>;
  const uint64_t page = kv.block_tables[page_index];
  const uint64_t at = (page * kv.kv_heads + kv_head) * kPage * kDim;
  for (uint32_t i = threadIdx.x; i < kPage * Size::kChunks; i += Size::kThreads) {
    const uint32_t to = Size::At(i / Size::kChunks, i % Size::kChunks);
    CopyChunk(stage + to, kv.keys + at + i * 8);
    CopyChunk(stage + Size::kTileBytes + to, kv.values + at + i * 8);
  }
}

template <int kDim>
__global__ void __launch_bounds__(Shape<kDim>::kThreads, 1)
    AttendCausally(const PrefillAttention attention, uint64_t operand_stride) {
  using Size = Shape<kDim>;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t warp = threadIdx.x / 32, heads = attention.query_heads;
  const uint32_t tiles = gridDim.x / heads, tile = tiles - 1 - blockIdx.x / heads;
  const uint32_t head = blockIdx.x % heads, kv_head = head / (heads / attention.kv.kv_heads);
  const uint32_t first = tile * Size::kTokens + warp * 16;
  const uint64_t row_stride = uint64_t{heads} * kDim;
  Rows<kDim> rows;
  rows.lane = threadIdx.x % 32;
  rows.Load(attention.queries + uint64_t{head} * kDim, row_stride, first, attention.token_count);

  const uint32_t end = attention.first_position +
                       min((tile + 1) * Size::kTokens, attention.token_count);  // position
  const uint32_t pages = (end + kPage - 1) / kPage;
  const uint32_t position = attention.first_position + first + rows.lane / 4;
  const float scale = attention.scale * 1.4426950408889634f;
  const uint32_t stages = SharedAddress(shared);
  CopyPage<kDim>(attention.kv, kv_head, 0, stages);
  CommitCopies();
  for (uint32_t page = 0; page < pages; ++page) {
    const uint32_t stage = stages + page % 2 * 2 * Size::kTileBytes;
    if (page + 1 < pages) {
      CopyPage<kDim>(attention.kv, kv_head, page + 1,
                     stages + (page + 1) % 2 * 2 * Size::kTileBytes);
    }
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();
    if (page + 1 == pages && end % kPage != 0) {
      // What the page has past the last token may be anything, NaN too, which a weight of 0 does
      // not undo.
      for (uint32_t i = end % kPage * Size::kChunks + threadIdx.x; i < kPage * Size::kChunks;
           i += Size::kThreads) {
        const uint32_t at = Size::At(i / Size::kChunks, i % Size::kChunks);
        asm volatile(
            "st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(stage + Size::kTileBytes + at), "r"(0)
            : "memory");
      }
      __syncthreads();
    }
    if (page * kPage <= attention.first_position + first + 15) {
      rows.Add(stage, stage + Size::kTileBytes, position, page * kPage, scale);
    }
    __syncthreads();
  }
  rows.Store(attention.operand, operand_stride, head * kDim, first, attention.token_count);
  if (head + 1 < heads) return;
  const uint32_t begin = heads * kDim, padding = operand_stride - begin;
  for (uint32_t i = threadIdx.x; i < padding * Size::kTokens; i += Size::kThreads) {
    const uint32_t row = tile * Size::kTokens + i / padding;
    if (row < attention.token_count)
      attention.operand[row * operand_stride + begin + i % padding] = 0;
  }
}

template <int kDim>
Status Launch(const PrefillAttention& attention, Stream stream) {
  using Size = Shape<kDim>;
  const auto kernel = AttendCausally<kDim>;
  RETURN_IF_ERROR(Checked(AllowShared(kernel, Size::kSharedBytes), "attention of many tokens"));
  const uint32_t tiles = CeilDivide(attention.token_count, Size::kTokens);
  kernel<<<tiles * attention.query_heads, Size::kThreads, Size::kSharedBytes, stream>>>(
      attention, OperandStride(attention.query_heads * kDim));
  return Checked(cudaGetLastError(), "attention of many tokens");
}

}  // namespace

Status LaunchMmaSyncAttention(const PrefillAttention& attention, Stream stream) {
  switch (attention.kv.head_dim) {
    case 16:
      return Launch<16>(attention, stream);
    case 32:
      return Launch<32>(attention, stream);
    case 64:
      return Launch<64>(attention, stream);
    case 96:
      return Launch<96>(attention, stream);
    case 128:
      return Launch<128>(attention, stream);
    case 256:
      return Launch<256>(attention, stream);
    default:
      break;
  }
  return Unsupported("attention with heads of " + std::to_string(attention.kv.head_dim) +
                     " dimensions on the GPU");
}

}  // namespace moraine::gpu
