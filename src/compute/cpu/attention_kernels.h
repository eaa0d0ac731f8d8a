// Attention, written once over 16 lanes and compiled for each ISA as lane_kernels.h says.
//
// Two matrix products with an online softmax between (Milakov, Gimelshein 2018; FlashAttention), a
// block of positions at a time, for all rows (a token's query heads, of several tokens) at once. A
// block's keys are transposed when they are brought in, so that a lane is a position and a score is
// one chain of fused multiply-adds over the dimensions; of the weighted values a lane is a
// dimension and a sum one chain over the positions. So no product needs a horizontal sum, both are
// the same register tile (kTileRows x kTileVectors accumulators), and what is computed for a row
// and a block does not depend on the rows beside it.
//
// What L provides beyond lane_kernels.h: kTileRows and kTileVectors, and transpose.
#pragma once

#include "compute/cpu/kernel_table.h"
#include "compute/cpu/lane_kernels.h"

namespace moraine {

template <typename L>
struct AttentionKernels {
  using V = typename L::V;
  static constexpr uint32_t kVectors = L::kTileVectors;
  static constexpr uint32_t kTileLanes = kVectors * kLaneCount;
  static constexpr uint32_t kBlock = kAttentionBlock;
  static_assert(kBlock % kTileLanes == 0 && kAttentionDimStep % kTileLanes == 0);
  // Floats of 16 dimensions of a block's values; not a multiple of 4 KiB, or all stores of a
  // position would meet in one set of L1.
  static constexpr size_t kValuePanel = kAttentionValuePanel;
  // What the first tile of rows prefetches in each step of a product: a block of float32 keys has
  // kTileLanes * 4 bytes for each of its tiles' steps, and so have values.
  static constexpr size_t kAheadBytes = kTileLanes * sizeof(float);

  // Positions of a block, counted from its first, that a row sees. None is 0, 0 if the row ended
  // before this block and kBlock, kBlock if its window begins after it: both ascend with the row.
  struct Range {
    uint32_t begin, end;
  };

  // A block at work. The arrays are in the scratch of the arguments.
  struct Block {
    uint32_t position = 0;  // of lane 0
    Range loaded;           // union of what the rows see
    uint32_t first_lane = 0, last_lane = 0;  // `loaded`, widened to tiles
    float* keys = nullptr;     // of kTileLanes positions: [16 positions][dim][16]
    float* values = nullptr;   // of kTileLanes dims: [16 dims][kBlock positions, one unused][16]
    float* queries = nullptr;  // [row tile][dim][row of the tile], scaled
    float* weights = nullptr;  // [row][kBlock]: scores, then weights
    Range seen[kAttentionMaxRows];
    alignas(64) float corrections[kAttentionMaxRows];
    alignas(64) float sums[kAttentionMaxRows];
  };

  static uint32_t RowCount(const AttentionArguments& a) { return a.token_count * a.heads; }
  static uint32_t PaddedDim(const AttentionArguments& a) {
    return AttentionStateStride(a.head_dim) - kAttentionStateHeader;
  }

  // 2^x for x <= 0 within 3 half ulps: 2^n times a polynomial that is minimax for the relative
  // error on [-1/2, 1/2] with p(0) = 1. Below -126 zero, NaN stays NaN.
  static V Exp2(V x) {
    const V low = L::set1(-126.0f);
    const V clamped = L::max(low, x);
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
    const V magic = L::set1(12582912.0f);
    const V shifted = L::add(clamped, magic);
    const V r = L::sub(clamped, L::sub(shifted, magic));
    V p = L::set1(1.326472848e-03f);
    p = L::fma(p, r, L::set1(9.671513923e-03f));
    p = L::fma(p, r, L::set1(5.550733581e-02f));
    p = L::fma(p, r, L::set1(2.402224243e-01f));
    p = L::fma(p, r, L::set1(6.931470037e-01f));
    p = L::fma(p, r, L::set1(1.0f));
    return L::zero_if_less(x, low, L::add_exponent(p, shifted));
  }

  // The rows are cut into tiles of at most kTileRows, as even as they can be.
  template <typename Function>
  static void ForTiles(uint32_t rows, Function function) {
    const uint32_t tiles = (rows + L::kTileRows - 1) / L::kTileRows;
    const uint32_t size = rows / tiles, larger = rows % tiles;
    for (uint32_t tile = 0, row = 0; tile < tiles; ++tile) {
      const uint32_t count = size + (tile < larger ? 1 : 0);
      function(row, count);
      row += count;
    }
  }

  // Memory that the next block needs: the first `steps` steps of a product prefetch kAheadBytes
  // each.
  struct Ahead {
    const uint8_t* bytes = nullptr;
    size_t steps = 0;
  };
  // A tile's share of a block of keys or values, of which `tiles` together take `bytes`.
  static Ahead ShareOf(const uint8_t* plane, size_t bytes, uint32_t tile, uint32_t tiles) {
    if (plane == nullptr) return {};
    const size_t share = bytes / tiles;
    return {plane + tile * share, (share + kAheadBytes - 1) / kAheadBytes};
  }

  // sums[r][n] += sum over k in [begin, end) of a(k, r) * b[n * b_stride + k * 16 + lane], in the
  // order of k.
  template <uint32_t R, bool kPrefetch, typename Left>
  static inline __attribute__((always_inline)) void Multiply(Left a, const float* b,
                                                             size_t b_stride, size_t begin,
                                                             size_t end, const uint8_t* ahead,
                                                             V (&sums)[R][kVectors]) {
#pragma GCC unroll 4
    for (size_t k = begin; k < end; ++k) {
      if constexpr (kPrefetch) {
#pragma GCC unroll 4
        for (size_t i = 0; i < kAheadBytes; i += 64) {
          __builtin_prefetch(ahead + k * kAheadBytes + i, 0, 2);
        }
      }
      V right[kVectors];
#pragma GCC unroll 4
      for (uint32_t n = 0; n < kVectors; ++n) {
        right[n] = L::load(b + n * b_stride + k * kLaneCount);
      }
#pragma GCC unroll 16
      for (uint32_t r = 0; r < R; ++r) {
        const V left = L::set1(a(k, r));
#pragma GCC unroll 4
        for (uint32_t n = 0; n < kVectors; ++n) {
          sums[r][n] = L::fma(left, right[n], sums[r][n]);
        }
      }
    }
  }

  template <uint32_t R, typename Left>
  static inline __attribute__((always_inline)) void Multiply(Left a, const float* b,
                                                             size_t b_stride, size_t depth,
                                                             const Ahead& ahead,
                                                             V (&sums)[R][kVectors]) {
    const size_t steps = ahead.steps < depth ? ahead.steps : depth;
    if (steps > 0) Multiply<R, true>(a, b, b_stride, 0, steps, ahead.bytes, sums);
    Multiply<R, false>(a, b, b_stride, steps, depth, nullptr, sums);
  }

  template <uint32_t R = L::kTileRows>
  static void ScoreTile(uint32_t rows, const float* queries, const float* keys, size_t panel,
                        uint32_t dim, const Ahead& ahead, float* scores) {
    if constexpr (R > 1) {
      if (rows < R) return ScoreTile<R - 1>(rows, queries, keys, panel, dim, ahead, scores);
    }
    V sums[R][kVectors];
#pragma GCC unroll 16
    for (uint32_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (uint32_t n = 0; n < kVectors; ++n) sums[r][n] = L::set1(0.0f);
    }
    Multiply<R>([&](size_t d, size_t r) { return queries[d * R + r]; }, keys, panel,
                dim, ahead, sums);
#pragma GCC unroll 16
    for (uint32_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (uint32_t n = 0; n < kVectors; ++n) {
        L::store(scores + r * kBlock + n * kLaneCount, sums[r][n]);
      }
    }
  }

  // sums = sums * corrections + weights * values, `depth` positions of kTileLanes dimensions.
  template <uint32_t R = L::kTileRows>
  static void ValueTile(uint32_t rows, const float* weights, const float* values, uint32_t depth,
                        const Ahead& ahead, const float* corrections, float* sums,
                        uint32_t stride) {
    if constexpr (R > 1) {
      if (rows < R) {
        return ValueTile<R - 1>(rows, weights, values, depth, ahead, corrections, sums, stride);
      }
    }
    V tile[R][kVectors];
#pragma GCC unroll 16
    for (uint32_t r = 0; r < R; ++r) {
      const V factor = L::set1(corrections[r]);
#pragma GCC unroll 4
      for (uint32_t n = 0; n < kVectors; ++n) {
        tile[r][n] = L::mul(L::load(sums + size_t{r} * stride + n * kLaneCount), factor);
      }
    }
    Multiply<R>([&](size_t j, size_t r) { return weights[r * kBlock + j]; }, values,
                kValuePanel, depth, ahead, tile);
#pragma GCC unroll 16
    for (uint32_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (uint32_t n = 0; n < kVectors; ++n) {
        L::store(sums + size_t{r} * stride + n * kLaneCount, tile[r][n]);
      }
    }
  }

  // The block that begins at position p.
  static const uint8_t* BlockAt(const AttentionArguments& a, const void* plane, uint32_t p) {
    const auto* const first = static_cast<const uint8_t*>(plane);
    return a.blocks == nullptr ? first + p * a.kv_stride
                               : first + a.blocks[p / kBlock] * a.block_bytes;
  }

  // One head at one position: what is multiplied by the scale, if the packing has one.
  struct Head {
    const uint8_t* values;
    float scale;
  };
  // index: of the position in its block.
  template <KvPacking kPacking>
  static Head HeadAt(const AttentionArguments& a, const uint8_t* block, uint32_t index) {
    if constexpr (kPacking == KvPacking::kFp8) {
      const uint32_t bits = uint32_t{block[size_t{kBlock} * a.head_dim + index]} << 23;
      return {block + size_t{index} * a.head_dim, __builtin_bit_cast(float, bits)};
    } else {
      Head head = {block + index * a.kv_stride, 1.0f};
      if constexpr (kPacking == KvPacking::kQ8) {
        __builtin_memcpy(&head.scale, head.values, sizeof(head.scale));
        head.values += sizeof(head.scale);
      }
      return head;
    }
  }

  // 16 dimensions from `from` on.
  template <KvPacking kPacking>
  static V UnpackLanes(const uint8_t* from, float scale) {
    if constexpr (kPacking == KvPacking::kBf16) {
      return L::load_bf16(from);
    } else if constexpr (kPacking == KvPacking::kQ8) {
      return L::mul(L::set1(scale), L::load_int8(reinterpret_cast<const int8_t*>(from)));
    } else {
      return L::mul(L::set1(scale), L::load_e4m3(from));
    }
  }

  // Dimensions [d, d + 16) of a head as floats; past dim zero or nothing of meaning.
  template <KvPacking kPacking>
  static V Unpack(const Head& head, uint32_t d, uint32_t dim) {
    const uint32_t left = d < dim ? dim - d : 0;
    if constexpr (kPacking == KvPacking::kF32) {
      return LaneKernels<L>::LoadTail(reinterpret_cast<const float*>(head.values) + d, left);
    } else {
      constexpr uint32_t kBytes = kPacking == KvPacking::kBf16 ? 2 : 1;
      const uint8_t* const from = head.values + size_t{d} * kBytes;
      if (left >= kLaneCount) return UnpackLanes<kPacking>(from, head.scale);
      alignas(64) uint8_t tail[kBytes * kLaneCount] = {};
      __builtin_memcpy(tail, from, kBytes * left);
      return UnpackLanes<kPacking>(tail, head.scale);
    }
  }

  // The keys of kTileLanes lanes. Lanes outside `loaded` get a copy of a key inside: nobody looks
  // at their scores.
  template <KvPacking kPacking>
  static void BringKeys(const AttentionArguments& a, const Block& b, uint32_t first_lane) {
    float* out = b.keys;
    const uint8_t* const block = BlockAt(a, a.keys, b.position);
    for (uint32_t lane = first_lane; lane < first_lane + kTileLanes; lane += kLaneCount) {
      Head heads[kLaneCount];
      for (uint32_t j = 0; j < kLaneCount; ++j) {
        uint32_t p = lane + j;
        p = p < b.loaded.begin ? b.loaded.begin : p >= b.loaded.end ? b.loaded.end - 1 : p;
        heads[j] = HeadAt<kPacking>(a, block, p);
      }
      const bool direct = kPacking == KvPacking::kF32 && lane >= b.loaded.begin &&
                          lane + kLaneCount <= b.loaded.end;
      for (uint32_t d = 0; d < a.head_dim; d += kLaneCount, out += kLaneCount * kLaneCount) {
        if (direct && d + kLaneCount <= a.head_dim) {
          L::transpose(reinterpret_cast<const float*>(heads[0].values) + d,
                       a.kv_stride / sizeof(float), out);
          continue;
        }
        alignas(64) float square[kLaneCount * kLaneCount];
        for (uint32_t j = 0; j < kLaneCount; ++j) {
          L::store(square + j * kLaneCount, Unpack<kPacking>(heads[j], d, a.head_dim));
        }
        L::transpose(square, kLaneCount, out);
      }
    }
  }

  // kTileLanes dimensions from d on of the values.
  template <KvPacking kPacking>
  static void BringValues(const AttentionArguments& a, const Block& b, uint32_t d) {
    const uint8_t* const block = BlockAt(a, a.values, b.position);
    for (uint32_t j = b.loaded.begin; j < b.loaded.end; ++j) {
      const Head head = HeadAt<kPacking>(a, block, j);
#pragma GCC unroll 4
      for (uint32_t n = 0; n < kVectors; ++n) {
        L::store(b.values + n * kValuePanel + j * kLaneCount,
                 Unpack<kPacking>(head, d + n * kLaneCount, a.value_dim));
      }
    }
  }

  // Scaled by log2(e), too: weights are then powers of two.
  static void PackQueries(const AttentionArguments& a, float* out) {
    const float scale = a.scale * 1.44269504088896341f;
    ForTiles(RowCount(a), [&](uint32_t row, uint32_t count) {
      const float* q[kLaneCount];
      for (uint32_t r = 0; r < count; ++r) {
        q[r] = a.q + (row + r) / a.heads * a.q_stride + size_t{(row + r) % a.heads} * a.head_dim;
      }
      float* to = out + size_t{row} * a.head_dim;
      for (uint32_t d = 0; d < a.head_dim; ++d) {
        for (uint32_t r = 0; r < count; ++r) *to++ = q[r][d] * scale;
      }
    });
  }

  static Range SeenBy(const AttentionArguments& a, uint32_t token) {
    Range range = {a.begin, a.first_end + token};
    if (a.window != 0 && range.end > a.window && range.end - a.window > range.begin) {
      range.begin = range.end - a.window;
    }
    if (range.end > a.end) range.end = a.end;
    return range;
  }

  static uint32_t Within(uint32_t position, uint32_t block) {
    return position <= block ? 0 : position - block < kBlock ? position - block : kBlock;
  }

  static void FindRanges(const AttentionArguments& a, Block* b) {
    b->loaded = {kBlock, 0};
    for (uint32_t token = 0, row = 0; token < a.token_count; ++token) {
      const Range range = SeenBy(a, token);
      const Range seen = {Within(range.begin, b->position), Within(range.end, b->position)};
      for (uint32_t head = 0; head < a.heads; ++head) b->seen[row++] = seen;
      if (seen.begin >= seen.end) continue;
      if (seen.begin < b->loaded.begin) b->loaded.begin = seen.begin;
      if (seen.end > b->loaded.end) b->loaded.end = seen.end;
    }
    b->first_lane = b->loaded.begin / kTileLanes * kTileLanes;
    b->last_lane = (b->loaded.end + kTileLanes - 1) / kTileLanes * kTileLanes;
  }

  static bool Blind(const Block& b, uint32_t row) { return b.seen[row].begin >= b.seen[row].end; }

  // The part of a plane that the next block will want; null after the last.
  static const uint8_t* NextBlock(const AttentionArguments& a, const Block& b, const void* plane) {
    const uint32_t next = b.position + kBlock;
    return next < a.first_end + a.token_count - 1 ? BlockAt(a, plane, next) : nullptr;
  }

  template <KvPacking kPacking>
  static void Score(const AttentionArguments& a, const Block& b) {
    const size_t padded = (a.head_dim + kLaneCount - 1) / kLaneCount * kLaneCount;
    const uint8_t* next = NextBlock(a, b, a.keys);
    for (uint32_t lane = b.first_lane; lane < b.last_lane; lane += kTileLanes) {
      BringKeys<kPacking>(a, b, lane);
      Ahead ahead = ShareOf(next, kBlock * a.kv_stride, lane / kTileLanes, kBlock / kTileLanes);
      ForTiles(RowCount(a), [&](uint32_t row, uint32_t count) {
        ScoreTile(count, b.queries + size_t{row} * a.head_dim, b.keys,
                  kLaneCount * padded, a.head_dim, ahead, b.weights + row * kBlock + lane);
        ahead.steps = 0;
      });
    }
  }

  // Scores become weights, 2^(score - maximum so far), and the states' maxima and sums move on.
  static void Soften(const AttentionArguments& a, Block* b) {
    const uint32_t rows = RowCount(a), stride = AttentionStateStride(a.value_dim);
    float* state = a.state;
    for (uint32_t row = 0; row < rows; ++row, state += stride) {
      b->corrections[row] = b->sums[row] = 0.0f;
      if (Blind(*b, row)) continue;
      float* weights = b->weights + row * kBlock;
      const Range seen = b->seen[row];
      for (uint32_t j = b->first_lane; j < seen.begin; ++j) weights[j] = -__builtin_inff();
      for (uint32_t j = seen.end; j < b->last_lane; ++j) weights[j] = -__builtin_inff();
      V largest = L::load(weights + b->first_lane);
      for (uint32_t j = b->first_lane + kLaneCount; j < b->last_lane; j += kLaneCount) {
        largest = L::max(largest, L::load(weights + j));
      }
      const float block_max = L::reduce_max(largest), old_max = state[0];
      const float new_max = old_max > block_max ? old_max : block_max;
      const V maximum = L::set1(new_max);
      V sum = L::set1(0.0f);
      for (uint32_t j = b->first_lane; j < b->last_lane; j += kLaneCount) {
        const V weight = Exp2(L::sub(L::load(weights + j), maximum));
        L::store(weights + j, weight);
        sum = L::add(sum, weight);
      }
      b->sums[row] = L::reduce_add(sum);
      b->corrections[row] = old_max - new_max;
      state[0] = new_max;
    }
    for (uint32_t row = 0; row < rows; row += kLaneCount) {
      L::store(b->corrections + row, Exp2(L::load(b->corrections + row)));
    }
    state = a.state;
    for (uint32_t row = 0; row < rows; ++row, state += stride) {
      state[1] = state[1] * b->corrections[row] + b->sums[row];
    }
  }

  // The positions that all rows of a tile see together; then each row's own. A row's positions come
  // in their order either way, and a position that it does not see is not even multiplied by zero.
  template <KvPacking kPacking>
  static void AddValues(const AttentionArguments& a, const Block& b) {
    const uint32_t stride = AttentionStateStride(a.value_dim);
    const float one = 1.0f;
    const uint8_t* next = NextBlock(a, b, a.values);
    const uint32_t tiles = (a.value_dim + kTileLanes - 1) / kTileLanes;
    for (uint32_t d = 0; d < a.value_dim; d += kTileLanes) {
      BringValues<kPacking>(a, b, d);
      Ahead ahead = ShareOf(next, kBlock * a.kv_stride, d / kTileLanes, tiles);
      float* sums = a.state + kAttentionStateHeader + d;
      const auto run = [&](uint32_t row, uint32_t count, uint32_t begin, uint32_t end,
                           const float* corrections) {
        ValueTile(count, b.weights + row * kBlock + begin, b.values + begin * kLaneCount,
                  end - begin, ahead, corrections, sums + size_t{row} * stride, stride);
        ahead.steps = 0;
      };
      ForTiles(RowCount(a), [&](uint32_t row, uint32_t count) {
        // Tokens ascend, and so do the ends and begins of what they see.
        const Range first = b.seen[row], last = b.seen[row + count - 1];
        if (first.begin != last.begin) {
          for (uint32_t r = row; r < row + count; ++r) {
            if (!Blind(b, r)) run(r, 1, b.seen[r].begin, b.seen[r].end, b.corrections + r);
          }
          return;
        }
        const uint32_t common = first.end > first.begin ? first.end : first.begin;
        run(row, count, first.begin, common, b.corrections + row);
        if (last.end <= common) return;
        for (uint32_t r = row; r < row + count; ++r) {
          if (b.seen[r].end > common) run(r, 1, common, b.seen[r].end, &one);
        }
      });
    }
  }

  static void Attend(const AttentionArguments& a) {
    switch (a.packing) {
      case KvPacking::kF32: return AttendPacked<KvPacking::kF32>(a);
      case KvPacking::kBf16: return AttendPacked<KvPacking::kBf16>(a);
      case KvPacking::kQ8: return AttendPacked<KvPacking::kQ8>(a);
      case KvPacking::kFp8: return AttendPacked<KvPacking::kFp8>(a);
    }
  }

  template <KvPacking kPacking>
  static void AttendPacked(const AttentionArguments& a) {
    const uint32_t rows = RowCount(a), stride = AttentionStateStride(a.value_dim);
    for (uint32_t i = 0; i < rows * stride; ++i) a.state[i] = 0.0f;
    for (uint32_t row = 0; row < rows; ++row) a.state[row * stride] = -__builtin_inff();
    Block b;
    b.keys = a.scratch;
    b.values = b.keys + kTileLanes * PaddedDim(a);
    b.queries = b.values + kVectors * kValuePanel;
    b.weights = b.queries + size_t{rows} * PaddedDim(a);
    if (!a.queries_packed) PackQueries(a, b.queries);
    const uint32_t begin = SeenBy(a, 0).begin, end = SeenBy(a, a.token_count - 1).end;
    for (b.position = begin / kBlock * kBlock; b.position < end; b.position += kBlock) {
      FindRanges(a, &b);
      if (b.loaded.begin >= b.loaded.end) continue;
      Score<kPacking>(a, b);
      Soften(a, &b);
      AddValues<kPacking>(a, b);
    }
  }

  // A row that saw nothing: maximum -infinity, sum 0.
  static void Merge(float* into, const float* from, uint32_t rows, uint32_t value_dim) {
    const uint32_t stride = AttentionStateStride(value_dim);
    for (uint32_t row = 0; row < rows; ++row, into += stride, from += stride) {
      if (from[1] == 0.0f) continue;
      if (into[1] == 0.0f) {
        for (uint32_t i = 0; i < stride; i += kLaneCount) L::store(into + i, L::load(from + i));
        continue;
      }
      const float new_max = into[0] > from[0] ? into[0] : from[0];
      const float mine = L::first(Exp2(L::set1(into[0] - new_max)));
      const float theirs = L::first(Exp2(L::set1(from[0] - new_max)));
      into[0] = new_max;
      into[1] = into[1] * mine + from[1] * theirs;
      for (uint32_t d = kAttentionStateHeader; d < stride; d += kLaneCount) {
        const V other = L::mul(L::load(from + d), L::set1(theirs));
        L::store(into + d, L::fma(L::load(into + d), L::set1(mine), other));
      }
    }
  }

  static void Finish(const float* state, uint32_t rows, uint32_t value_dim, float* out) {
    const uint32_t stride = AttentionStateStride(value_dim);
    for (uint32_t row = 0; row < rows; ++row, state += stride, out += value_dim) {
      const V sum = L::set1(state[1]);
      for (uint32_t d = 0; d < value_dim; d += kLaneCount) {
        const V v = L::div(L::load(state + kAttentionStateHeader + d), sum);
        LaneKernels<L>::StoreTail(out + d, v, value_dim - d);
      }
    }
  }
};

}  // namespace moraine
