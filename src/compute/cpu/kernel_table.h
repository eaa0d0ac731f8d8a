// The contract between the CPU backend and the kernels of one instruction set.
//
// A kernel file includes this header and codebook.h, lane_kernels.h, attention_kernels.h, recurrent_kernels.h and
// <immintrin.h>, nothing else: it is compiled with wider instructions than the rest of the program,
// and an inline function of the standard library emitted there could be the copy that the linker
// keeps for everybody.
//
// All tables compute the same bits. Sums are defined over 16 lanes, which are one AVX-512 register,
// two AVX2 registers or an array; every multiply-add is fused; integer dot products are exact and
// their groups are scaled in column order. So the choice of ISA never changes a token, and the
// tests compare tables with memcmp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/codebook.h"

namespace moraine {

inline constexpr uint32_t kLaneCount = 16;
// Positions of a block of attention, counted from position 0. Longer blocks move the sums less
// often between registers and cache, shorter ones compute less that the diagonal masks.
inline constexpr uint32_t kAttentionBlock = 64;
inline constexpr uint32_t kAttentionValuePanel = (kAttentionBlock + 1) * kLaneCount;  // floats
inline constexpr uint32_t kAttentionMaxRows = 128;  // of one call of attend
inline constexpr uint32_t kAttentionMaxDim = 4096;
inline constexpr uint32_t kAttentionDimStep = 32;   // longest tile; a state's values are padded
inline constexpr uint32_t kAttentionStateHeader = kLaneCount;  // floats: max, sum, padding

// Floats of one row's attention state. Static: each including file has its own copy.
static constexpr uint32_t AttentionStateStride(uint32_t value_dim) {
  return kAttentionStateHeader +
         (value_dim + kAttentionDimStep - 1) / kAttentionDimStep * kAttentionDimStep;
}

// Decode streams weights once, and the hardware's prefetcher stops at every 4 KiB page: kernels of
// one token prefetch this far ahead, across tiles and panels (a prefetch past the end is ignored).
// Measured (moraine bench kernels): 77-87 % of the streaming bandwidth without, 90-99 % with.
inline constexpr uint32_t kPrefetchBytes = 4096;

// Up to four panels (16 rows each) of one encoding times some tokens. Several at once, because an
// activation that has been loaded is used for each, because memory delivers more to several streams
// than to one, and because their sums are independent chains.
inline constexpr uint32_t kMaxPanels = 4;
struct Panel {
  const uint8_t* tiles = nullptr;
  uint32_t row_count = 0;  // rows to store, 1 to 16
  float* y = nullptr;      // y[token * y_stride + row]
};
// 32 activations in int8: value = code * scale.
struct ActivationGroup {
  float scale;
  // What takes off the number that makes a weight unsigned: -8 times the sum of the codes for q4's
  // nibbles, -128 times for codes of 8 bits.
  int32_t offsets[2];
};
inline constexpr uint32_t kQ4Offset = 0, kQ8Offset = 1;
// Many tokens walk through int8 activations in one direction with one pointer: blocks of 16 tokens, in
// a block its groups one behind the other. (Rows of their own cost a kernel of 7 tokens 14 pointers,
// more than x86 has registers, and streams too short for the prefetcher.) Tokens that a last block
// lacks are undefined.
inline constexpr uint32_t kPackedTokens = 16;
struct alignas(64) PackedGroup {
  int8_t codes[kPackedTokens][32];
  float scales[kPackedTokens];
  int32_t offsets[2][kPackedTokens];
};
struct PanelArguments {
  Panel panels[kMaxPanels];
  uint32_t panel_count = 0;
  size_t tile_stride = 0;
  uint32_t tile_count = 0;
  // Bytes from a panel to the one whose turn comes next in its place: what a kernel of few tokens
  // prefetches when it nears the end.
  size_t next_panel = 0;
  const uint32_t* token_rows = nullptr;  // activation row of each token; null: 0, 1, 2, ...
  uint32_t token_count = 0;
  const float* x = nullptr;  // f32 and bf16 weights: activations, x_stride floats a row,
  size_t x_stride = 0;       // tile_count * 64 of them readable
  const int8_t* q = nullptr;  // quantised weights: activations in int8, q_stride bytes a row
  size_t q_stride = 0;
  const ActivationGroup* groups = nullptr;
  size_t group_stride = 0;  // groups a row
  // Set: the tokens are those from here on, and token_rows, q and groups are not read.
  const PackedGroup* packed = nullptr;
  size_t packed_stride = 0;  // groups a block
  size_t y_stride = 0;
};
using PanelFunction = void (*)(const PanelArguments& arguments);

// KvFormat, without the standard library.
enum class KvPacking : uint8_t { kF32, kBf16, kQ8, kFp8 };

// Floats that attend works in: a tile of keys, one of values, and of each row the query and a block
// of weights.
static constexpr uint32_t AttentionScratchFloats(uint32_t head_dim, uint32_t rows) {
  const uint32_t padded = AttentionStateStride(head_dim) - kAttentionStateHeader;
  return (kAttentionDimStep + rows) * padded + rows * kAttentionBlock +
         kAttentionDimStep / kLaneCount * kAttentionValuePanel;
}

// The query heads of one KV head, of some tokens, against what they see of positions [begin, end).
// A row is a query head of a token; rows of a token are side by side, tokens ascend.
struct AttentionArguments {
  const float* q = nullptr;  // heads x head_dim of the first token, q_stride floats a token
  size_t q_stride = 0;
  const void* keys = nullptr;    // position 0 of this KV head, kv_stride bytes a position
  const void* values = nullptr;
  size_t kv_stride = 0;
  // If not null, position 0 is that of block 0, and [i, i + 1) * kAttentionBlock are those of block
  // blocks[i], block_bytes apart.
  const uint32_t* blocks = nullptr;
  size_t block_bytes = 0;
  KvPacking packing = KvPacking::kF32;  // as compute/kv_format.h says
  float* scratch = nullptr;  // AttentionScratchFloats of them, 64-byte aligned
  bool queries_packed = false;  // scratch holds these queries from the call before
  uint32_t token_count = 0, heads = 0;           // together at most kAttentionMaxRows
  uint32_t head_dim = 0, value_dim = 0;          // of keys and of values: at most kAttentionMaxDim
  float scale = 0;
  uint32_t first_end = 0;  // token t sees the positions before first_end + t,
  uint32_t window = 0;     // of these only the last so many unless 0,
  uint32_t begin = 0, end = 0;  // and now only these; begin is the first of a block
  // A row is AttentionStateStride(value_dim) floats: max (of log2), sum, 14 unused, values.
  // Overwritten; a row that saw nothing has the sum 0.
  float* state = nullptr;
};

// One value head of a gated delta rule, some 16-column panels of its state, token after token
// (recurrent_kernels.h).
struct DeltaRuleArguments {
  const float* q = nullptr;  // of the head's first token: key_dim floats, qk_stride a token
  const float* k = nullptr;
  size_t qk_stride = 0;
  const float* v = nullptr;  // columns floats, v_stride a token
  size_t v_stride = 0;
  const float* decay = nullptr;  // one float a token, gate_stride apart
  const float* beta = nullptr;
  size_t gate_stride = 0;
  // [panel][key_dim][16 columns]; before the first token and after the last: the same or apart.
  const float* state_in = nullptr;
  float* state_out = nullptr;
  float* out = nullptr;  // columns floats, out_stride a token
  size_t out_stride = 0;
  uint32_t token_count = 0, key_dim = 0, columns = 0;
};

// How SearchGroup picks a scale: candidates 1/scale = (nominal + k * step) / extreme value, k from
// -steps to steps, codes clamped to [low, high]. Values over `limit` are refused.
inline constexpr int kMaxScaleCandidates = 32;
struct ScaleSearch {
  float low = 0, high = 0;
  float nominal = 0, step = 0;
  int steps = 0;  // 2 * steps + 1 <= kMaxScaleCandidates
  float limit = 0;
};

inline constexpr uint32_t kNeverPacked = ~0u;

struct KernelTable {
  PanelFunction panel_f32, panel_bf16, panel_q8, panel_q4, panel_q4_bf16, panel_mxfp4, panel_iq4_nl;
  // From this many tokens on the quantised ones want them packed.
  uint32_t packed_tokens;
  // One row to int8 in groups of 32, scale = max|x| / 127. Writes padded_cols (a multiple of 64)
  // codes. A group with a NaN or an infinity gets codes 0 and scale NaN, so that the result is NaN.
  void (*quantise)(const float* x, uint32_t cols, uint32_t padded_cols, int8_t* q,
                   ActivationGroup* groups);
  void (*rms_norm)(const float* x, const float* weight, float epsilon, uint32_t cols, float* out);
  void (*rope)(float* head, uint32_t half, const float* cos, const float* sin);
  void (*add)(float* x, const float* y, size_t count);
  void (*silu_mul)(const float* gate, const float* up, size_t count, float* out);
  // ActivationKind::kClampedSwiGlu (expert_kernels.h).
  void (*clamped_swiglu)(const float* gate, const float* up, size_t count, float limit, float* out);
  // x <- x * sigmoid(gate).
  void (*sigmoid_mul)(const float* gate, size_t count, float* x);
  // out = silu(sum over tap i, in order, of weights[i * weight_stride] * rows[i]), elementwise.
  void (*conv_silu)(const float* const* rows, const float* weights, size_t weight_stride,
                    uint32_t taps, uint32_t channels, float* out);
  void (*delta_rule)(const DeltaRuleArguments& arguments);
  // 32 values -> codes and the scale that minimises the squared error for those codes, each value's
  // weighted if weights is not null: 32 of them, positive, at most 1. Weights of 1 give the bits that
  // none give. False, and nothing written, for a NaN, an infinity or a value over the limit.
  bool (*search_group)(const float* x, const float* weights, const ScaleSearch& search,
                       int8_t* codes, float* scale);
  void (*attend)(const AttentionArguments& arguments);
  // into = the union of two disjoint ranges of positions; both in the form attend writes.
  void (*merge)(float* into, const float* from, uint32_t rows, uint32_t value_dim);
  void (*finish)(const float* state, uint32_t rows, uint32_t value_dim, float* out);
};

// The SIMD ones exist in x86-64 builds.
extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvxVnniKernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAmxKernels;

}  // namespace moraine
