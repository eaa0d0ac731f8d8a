// Grouped-query attention on the device over a paged KV cache.
//
//   RunHeads             projections -> norm of each query and key head -> RoPE -> queries, and
//                        keys and values into the cache
//   RunPrefillAttention  many tokens of one sequence, causal over all that is in the cache
//   RunDecodeAttention   one token of each of several sequences (or several tokens of one), the
//                        past split over blocks
//   ExpandKv             pages in fp8 as pages in bf16, for RunPrefillAttention
//
// The cache of one layer is a pool of pages of 64 positions, keys and values apart:
//
//   element (page, kv_head, position in page, dimension) at
//   ((page * kv_heads + kv_head) * 64 + position % 64) * head_dim + dimension
//
// so that a head's part of a page is one run of bytes, which a bulk copy or a tensor copy takes
// as a tile. Which pages a sequence has is its block table: entry p has positions 64 p .. 64 p +
// 63. Layers of a model share block tables where each has a pool of its own of the same pages.
//
// In fp8 (compute/e4m3.h) a head's part of a page is 64 x head_dim codes, then 64 scales of a byte: the run of
// bytes that the CPU has (compute/kv_format.h). Unpacking is exact in bf16, so that many tokens are computed
// over a copy of the sequence's past in bf16, which costs the bytes, and one token over the codes themselves.
//
// Rounding: norms and RoPE in float32; keys and values bf16 or what fp8 makes of
// their float32; prefill's queries bf16. Scores and
// sums are float32, the weights of values bf16 before their product (decode: two bf16 each, as
// queries are, so 16 bits). Prefill's output is bf16, decode's float32. The sum of weights is of
// the unrounded ones. Two runs give the same bits. Softmax runs in powers of two.
//
// head_dim: 16, 32, 64, 96, 128 or 256; kUnsupported for others, and for prefill over a cache in
// float32 or fp8. Units, pointers, threads, capture: as in gemv.h; bf16 is passed as its 16 bits.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/grouped_gemm.h"

namespace moraine::gpu {

inline constexpr uint32_t kKvPagePositions = 64;

// Elements of one page of keys (or of values) of one layer.
constexpr uint64_t KvPageElements(uint32_t kv_heads, uint32_t head_dim) {
  return uint64_t{kKvPagePositions} * kv_heads * head_dim;
}

// Bytes of one head's part of a page in fp8, and of a page of keys (or of values) of one layer.
constexpr uint64_t Fp8HeadBytes(uint32_t head_dim) {
  return uint64_t{kKvPagePositions} * (head_dim + 1);
}
constexpr uint64_t Fp8PageBytes(uint32_t kv_heads, uint32_t head_dim) {
  return kv_heads * Fp8HeadBytes(head_dim);
}

// One layer's cache: 16-byte aligned pools in bf16, in fp8, or in float32, which RunHeads and
// RunDecodeAttention have, for comparing with a reference: no tensor cores, queries and weights not
// rounded either.
struct PagedKv {
  uint16_t* keys = nullptr;
  uint16_t* values = nullptr;
  uint32_t kv_heads = 0, head_dim = 0;
  // Token t's table begins at block_tables + t * table_stride; 0: all tokens are of one sequence.
  const uint32_t* block_tables = nullptr;
  uint32_t table_stride = 0;
  float* keys_f32 = nullptr;  // instead of keys and values
  float* values_f32 = nullptr;
  uint8_t* keys_fp8 = nullptr;  // or these
  uint8_t* values_fp8 = nullptr;
};

// Rows of query_heads x head_dim queries, kv_heads x head_dim keys, as many values.
struct HeadRows {
  const uint16_t* bf16 = nullptr;  // one of the two: prefill's
  const float* f32 = nullptr;      // and decode's
  uint32_t stride = 0;
  uint32_t token_count = 0, query_heads = 0;
  const float* q_norm = nullptr;  // head_dim weights; null: no norm
  const float* k_norm = nullptr;
  float epsilon = 0;
  // rotary_dim / 2 values a position: dimension i turns with i + rotary_dim / 2, or interleaved 2i
  // with 2i + 1.
  const float* cos = nullptr;
  const float* sin = nullptr;
  uint32_t rotary_dim = 0;
  bool interleaved = false;
  // Of each token, on the device; null: first_position + t.
  const uint32_t* positions = nullptr;
  uint32_t first_position = 0;
  PagedKv kv;
  // Rows of query_heads x head_dim, one of the two.
  uint16_t* queries_bf16 = nullptr;
  float* queries_f32 = nullptr;
};
Status RunHeads(const HeadRows& rows, Stream stream);

struct PrefillAttention {
  const uint16_t* queries = nullptr;  // token_count rows of query_heads x head_dim
  uint32_t token_count = 0, query_heads = 0;
  uint32_t first_position = 0;  // of the first token; the cache has all up to the last token's
  PagedKv kv;                   // table_stride 0
  float scale = 0;
  uint16_t* operand = nullptr;      // rows of OperandStride(query_heads * head_dim), operand order
  GemmPath path = GemmPath::kBest;  // wgmma: Hopper, head_dim 64 or 128
};
Status RunPrefillAttention(const PrefillAttention& attention, Stream stream);

// The pages of one sequence in fp8 -> bf16 pages of the same positions, and a block table of those: the first
// `positions` of the sequence become what a PagedKv of keys, values and block_table has. Cost: a byte read and two
// written a value.
struct KvExpansion {
  PagedKv from;  // in fp8, table_stride 0
  uint32_t positions = 0;
  // Pages of KvPageElements, as many as the positions fill; an entry each.
  uint16_t* keys = nullptr;
  uint16_t* values = nullptr;
  uint32_t* block_table = nullptr;
};
Status ExpandKv(const KvExpansion& expansion, Stream stream);

// Bytes of scratch for DecodeAttention, zeroed once before the first call with it; every call
// leaves what it needs zero as such. Not shared by calls that may run at the same time.
inline constexpr uint32_t kDecodeRuns = 32;          // parts of the past
inline constexpr uint32_t kDecodeCounters = 16384;   // of parts that are done
constexpr uint32_t DecodeStateFloats(uint32_t head_dim) { return head_dim + 4; }
constexpr uint64_t DecodeAttentionScratchBytes(uint32_t max_tokens, uint32_t query_heads,
                                               uint32_t head_dim) {
  return sizeof(uint32_t) * kDecodeCounters +
         uint64_t{max_tokens} * query_heads * kDecodeRuns * DecodeStateFloats(head_dim) *
             sizeof(float);
}

struct DecodeAttention {
  const float* queries = nullptr;  // token_count rows of query_heads x head_dim
  uint32_t token_count = 0, query_heads = 0;
  const uint32_t* positions = nullptr;  // of each token: it attends to 0 .. positions[t]
  PagedKv kv;
  float scale = 0;
  void* scratch = nullptr;
  float* out = nullptr;  // token_count rows of query_heads x head_dim
};
Status RunDecodeAttention(const DecodeAttention& attention, Stream stream);

}  // namespace moraine::gpu
