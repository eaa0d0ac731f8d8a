// Multi-head latent attention on the device (DeepSeek-V2, arXiv 2405.04434): a position has one
// latent of `rank` values and one rotated key of `rope` values for all heads together, in a paged
// cache.
//
//   RunLatentRows              projections -> norm of the latent, RoPE of its key and of the
//                              queries; latents and keys into the cache
//   RunLatentDecodeAttention   single tokens, absorbed: a head's query has been multiplied by its
//                              k_up, keys are the cache's rows, values their first `rank` columns
//   GatherLatents, RunLatentPrefillAttention
//                              many tokens of one sequence, not absorbed: latents of all positions
//                              are gathered, multiplied to keys and values of some heads
//                              (GroupedGemm::Dense), then attention has 320 operations a head,
//                              query and position (DeepSeek) instead of 1088
//
// Why prompts are not absorbed here, other than on the CPU: tensor cores bound them, and keys and
// values cost 10 % of attention at 8192 tokens. That they are rounded to bf16 once more is what
// many tokens do everywhere (docs/gpu.md).
//
// The cache of one layer is a pool of pages of 64 positions, of rank + rope values each, latent
// first:
//
//   element (page, position in page, dimension) at
//   (page * 64 + position % 64) * (rank + rope) + dimension
//
// Single tokens: 16 heads are the rows of a tensor core's tile, as all read the same latents;
// queries and weights are two bf16 each, so 16 bits, sums float32. Float32 caches are multiplied in
// float32.
//
// Sizes that there are kernels for: HasLatentKernels. Two runs give the same bits; a token's do not
// depend on the others. Units, pointers, threads, capture: as in gemv.h; bf16 is passed as its 16
// bits.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/grouped_gemm.h"

namespace moraine::gpu {

// Of one head, but for the latent, which all share.
struct LatentSizes {
  uint32_t rank = 0, rope = 0;   // of a position in the cache
  uint32_t nope = 0, value = 0;  // of a head's key that is not rotated, and of its value
  bool operator==(const LatentSizes&) const = default;
};
// DeepSeek-V2, V3 and Kimi-K2; and what small test models have.
inline constexpr LatentSizes kLatentSizes[] = {{512, 64, 128, 128}, {64, 16, 32, 32}};
constexpr bool HasLatentKernels(const LatentSizes& sizes) {
  for (const LatentSizes& known : kLatentSizes) {
    if (sizes == known) return true;
  }
  return false;
}

// One layer's: a pool in bf16 or in float32, 16-byte aligned. Block tables as in PagedKv.
struct LatentCache {
  uint16_t* bf16 = nullptr;
  float* f32 = nullptr;
  uint32_t rank = 0, rope = 0;
  const uint32_t* block_tables = nullptr;
  uint32_t table_stride = 0;

  constexpr uint32_t width() const { return rank + rope; }
};
constexpr uint64_t LatentPageElements(uint32_t rank, uint32_t rope) {
  return uint64_t{kKvPagePositions} * (rank + rope);
}

struct LatentRows {
  const float* latents = nullptr;  // rows of rank + rope values as projected
  uint32_t latent_stride = 0;
  uint32_t token_count = 0, heads = 0, nope = 0;
  const float* norm = nullptr;  // `rank` weights
  float epsilon = 0;
  // rope / 2 values a position; pairs as in HeadRows.
  const float* cos = nullptr;
  const float* sin = nullptr;
  bool interleaved = false;
  const uint32_t* positions = nullptr;  // of each token; null: first_position + t
  uint32_t first_position = 0;
  LatentCache cache;
  // Rows of heads x (nope + rope). Of many tokens, turned in place:
  uint16_t* queries_bf16 = nullptr;
  // or of few, whose turned part goes to columns rank .. rank + rope - 1 of rows of heads x (rank +
  // rope):
  const float* queries_f32 = nullptr;
  uint32_t query_stride = 0;
  float* absorbed = nullptr;
};
Status RunLatentRows(const LatentRows& rows, Stream stream);

struct LatentDecodeAttention {
  const float* queries = nullptr;  // token_count rows of heads x (rank + rope)
  uint32_t token_count = 0, heads = 0;
  const uint32_t* positions = nullptr;  // of each token: it attends to 0 .. positions[t]
  LatentCache cache;
  float scale = 0;
  // LatentDecodeScratchBytes, not shared by calls that run at the same time.
  void* scratch = nullptr;
  float* out = nullptr;  // token_count rows of heads x rank
};
Status RunLatentDecodeAttention(const LatentDecodeAttention& attention, Stream stream);

inline constexpr uint32_t kLatentHeads = 16;  // of a block
// Parts of a past, at most: with those of the heads a wave of blocks.
constexpr uint32_t LatentRuns(uint32_t heads) {
  const uint32_t slices = (heads + kLatentHeads - 1) / kLatentHeads;
  return slices >= 8 ? 16 : slices >= 2 ? 32 : 128;
}
constexpr uint32_t LatentStateFloats(uint32_t rank) { return rank + 4; }
constexpr uint64_t LatentDecodeScratchBytes(uint32_t max_tokens, uint32_t heads, uint32_t rank) {
  return uint64_t{max_tokens} * heads * LatentRuns(heads) * LatentStateFloats(rank) *
         sizeof(float);
}

// operand: position_count rows of OperandStride(rank), positions 0 .. of a sequence, in operand
// order. Of a cache in bf16.
Status GatherLatents(const LatentCache& cache, uint32_t position_count, uint16_t* operand,
                     Stream stream);

struct LatentPrefillAttention {
  // Of `heads` heads, maybe not all there are. Row t of a head at queries + t * query_stride + head
  // * (nope + rope): rotated part last.
  const uint16_t* queries = nullptr;
  uint32_t query_stride = 0;
  uint32_t token_count = 0, heads = 0;
  uint32_t first_position = 0;
  // Of all positions up to the last token's: rows of heads x nope, and of heads x value.
  const uint16_t* keys = nullptr;
  const uint16_t* values = nullptr;
  LatentSizes sizes;
  LatentCache cache;  // rotated keys; table_stride 0
  float scale = 0;
  // Rows in operand order, operand_stride apart, of which heads x value columns are written.
  uint16_t* operand = nullptr;
  uint64_t operand_stride = 0;
  GemmPath path = GemmPath::kBest;  // wgmma: Hopper, DeepSeek's sizes
};
Status RunLatentPrefillAttention(const LatentPrefillAttention& attention, Stream stream);

}  // namespace moraine::gpu
