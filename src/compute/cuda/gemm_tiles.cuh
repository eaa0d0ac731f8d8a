// What both grouped GEMM kernels share: which tile a block works on, how the words of a weight tile
// become A fragments, and what is done with the sums. Internal to compute/cuda.
//
// A fragment of m16n8k16 (and a warp's part of wgmma's m64) has, in lane 4g + t, rows g and g + 8
// and columns 2t, 2t + 1, 2t + 8, 2t + 9. Rows may be named freely: row g is the panel's row 2g and
// row g + 8 its row 2g + 1, so that a lane reads both with one 8-byte load and its results are
// neighbours in the output. Columns follow operand order (grouped_gemm.h): the fragment holds
// columns 4t .. 4t + 3.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "compute/cuda/gemm_launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {

struct TokenBlock {
  uint32_t expert, row_block;
  uint32_t first_row;  // in the sorted rows
  uint32_t row_count;  // <= the kernel's kMaxTokens
};

// All tiles of the launch, expert by expert; each block builds the same table at its start, from
// the offsets, because the routing is known to the device only: no round trip to the host. Cost:
// kWords of shared memory and one scan by one warp.
class TileSchedule {
 public:
  static constexpr uint32_t Words(uint32_t expert_count) { return 2 * (expert_count + 1); }

  // All threads of the block. table: Words(expert_count) of shared memory.
  __device__ void Build(const GemmArguments& arguments, uint32_t row_blocks, uint32_t max_tokens,
                        uint32_t* table) {
    expert_count_ = arguments.expert_count;
    row_blocks_ = row_blocks;
    max_tokens_ = max_tokens;
    offsets_ = table;
    starts_ = table + expert_count_ + 1;
    for (uint32_t e = threadIdx.x; e <= expert_count_; e += blockDim.x) {
      const uint32_t begin = e == 0 ? 0 : OffsetOf(arguments, e - 1);
      offsets_[e] = OffsetOf(arguments, e);
      const uint32_t count = e == 0 ? 0 : offsets_[e] - begin;
      starts_[e] = BlockCount(count) * row_blocks;
    }
    __syncthreads();
    if (threadIdx.x < 32) Accumulate();
    __syncthreads();
  }
  __device__ uint32_t tile_count() const { return starts_[expert_count_]; }

  __device__ TokenBlock At(uint32_t tile) const {
    uint32_t low = 0, high = expert_count_;  // starts_[low] <= tile < starts_[high]
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (starts_[middle] <= tile)
        low = middle;
      else
        high = middle;
    }
    const uint32_t first = offsets_[low], count = offsets_[low + 1] - first;
    const uint32_t blocks = BlockCount(count), in_expert = tile - starts_[low];
    const uint32_t block = in_expert / row_blocks_;
    const uint32_t size = ((count + blocks - 1) / blocks + 15) / 16 * 16;
    const uint32_t begin = min(block * size, count);
    return {low, in_expert % row_blocks_, first + begin, min(size, count - begin)};
  }

 private:
  __device__ static uint32_t OffsetOf(const GemmArguments& arguments, uint32_t e) {
    return arguments.dense != nullptr ? e * arguments.row_count : arguments.offsets[e];
  }
  __device__ uint32_t BlockCount(uint32_t tokens) const {
    return (tokens + max_tokens_ - 1) / max_tokens_;
  }
  // starts_[e] becomes the sum of starts_[0 .. e].
  __device__ void Accumulate() {
    const uint32_t lane = threadIdx.x;
    uint32_t carry = 0;
    for (uint32_t base = 0; base <= expert_count_; base += 32) {
      const uint32_t e = base + lane;
      uint32_t sum = e <= expert_count_ ? starts_[e] : 0;
      for (uint32_t step = 1; step < 32; step *= 2) {
        const uint32_t below = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += below;
      }
      if (e <= expert_count_) starts_[e] = carry + sum;
      carry += __shfl_sync(~0u, sum, 31);
    }
  }

  uint32_t *offsets_, *starts_;
  uint32_t expert_count_, row_blocks_, max_tokens_;
};

__device__ inline const std::byte* RecordOf(const GemmArguments& arguments, uint32_t expert) {
  return arguments.dense != nullptr ? arguments.dense : arguments.records[expert];
}

// Where the two tiles of compute warp `warp` begin in a record, for the first 64 columns.
struct WarpTiles {
  uint32_t panel[2];
  uint64_t offset[2];
};
template <bool kGateUp, Encoding kEncoding>
__device__ inline WarpTiles TilesOf(const GemmArguments& arguments, uint32_t row_block,
                                    uint32_t warp) {
  constexpr uint32_t kTile = TileBytes(kEncoding);
  WarpTiles tiles;
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t pair = row_block * kComputeWarps + warp;
    tiles.panel[i] = kGateUp ? pair : 2 * pair + i;
    const uint64_t panel_bytes = uint64_t{arguments.k_tiles} * kTile * (kGateUp ? 2 : 1);
    tiles.offset[i] =
        arguments.matrix_offset + tiles.panel[i] * panel_bytes + (kGateUp ? i * kTile : 0);
  }
  return tiles;
}
template <bool kGateUp, Encoding kEncoding>
__device__ constexpr uint32_t TileStride() {
  return TileBytes(kEncoding) * (kGateUp ? 2 : 1);
}
template <bool kGateUp>
__host__ __device__ inline uint32_t RowBlocks(uint32_t panel_count) {
  constexpr uint32_t kPanels = kComputeWarps * (kGateUp ? 1 : 2);
  return (panel_count + kPanels - 1) / kPanels;
}

// An f16 scale as the sum of two bf16, each twice: 11 significant bits are 8 and 3.
struct ScalePair {
  __nv_bfloat162 high, low;

  __device__ ScalePair() {}
  __device__ ScalePair(uint32_t word, uint32_t row) {
    const float scale =
        __half2float(__ushort_as_half(static_cast<uint16_t>(row == 0 ? word : word >> 16)));
    high = __float2bfloat162_rn(scale);
    low = __float2bfloat162_rn(scale - __low2float(high));
  }
  // code * scale, rounded once for 4-bit codes, whose product with `low` is exact.
  __device__ uint32_t Times(__nv_bfloat162 code) const {
    return Bits(__hfma2(code, high, __hmul2(code, low)));
  }
};

// A lane's share of one tile in shared memory: Load, then Fragment(s), columns 16 s .. 16 s + 15.
// What is kept in registers in between is little: they are full of sums. tile: 16-byte aligned.
// 0x43 as the upper byte of a bf16 makes 128 + n of a seven-bit n, from which code values follow by
// one exact subtraction.
template <Encoding kEncoding>
struct LaneTile;

// The scales of a lane's two rows. Made once for two steps: the compiler would do it twice, and it
// is a third of the unpacking.
struct LaneScales {
  const unsigned char* words;
  ScalePair rows[2];

  __device__ void Load(const unsigned char* tile, uint32_t lane) { words = tile + lane / 4 * 4; }
  __device__ void Step(uint32_t s) {
    if (s % 2 == 1) return;
    const uint32_t word = *reinterpret_cast<const uint32_t*>(words + s / 2 * 32);
    rows[0] = ScalePair(word, 0);
    rows[1] = ScalePair(word, 1);
  }
};

template <>
struct LaneTile<Encoding::kQ4> {
  LaneScales scales;
  uint2 codes[2];

  __device__ void Load(const unsigned char* tile, uint32_t lane) {
    scales.Load(tile, lane);
    const unsigned char* words = tile + 64 + lane % 4 * 64 + lane / 4 * 8;
    codes[0] = *reinterpret_cast<const uint2*>(words);
    codes[1] = *reinterpret_cast<const uint2*>(words + 256);
  }
  __device__ void Fragment(uint32_t s, uint32_t (&a)[4]) {
    scales.Step(s);
    const uint2 word = codes[s / 2];
    Unpack(s % 2 ? word.x >> 4 : word.x, scales.rows[0], a[0], a[2]);
    Unpack(s % 2 ? word.y >> 4 : word.y, scales.rows[1], a[1], a[3]);
  }
  __device__ static void Unpack(uint32_t word, const ScalePair& scale, uint32_t& low,
                                uint32_t& high) {
    const uint32_t nibbles = word & 0x0F0F0F0Fu;
    const __nv_bfloat162 bias = Pair(0x43084308u);  // 136 = 128 + 8
    low = scale.Times(__hsub2(Pair(__byte_perm(nibbles, 0x43434343u, 0x4140)), bias));
    high = scale.Times(__hsub2(Pair(__byte_perm(nibbles, 0x43434343u, 0x4342)), bias));
  }
};

template <>
struct LaneTile<Encoding::kQ8> {
  LaneScales scales;
  const unsigned char* words;  // codes are loaded step by step: all at once they cost 16 registers

  __device__ void Load(const unsigned char* tile, uint32_t lane) {
    scales.Load(tile, lane);
    words = tile + 64 + lane % 4 * 64 + lane / 4 * 8;
  }
  __device__ void Fragment(uint32_t s, uint32_t (&a)[4]) {
    scales.Step(s);
    const uint2 codes = *reinterpret_cast<const uint2*>(words + s * 256);
    Unpack(codes.x, scales.rows[0], a[0], a[2]);
    Unpack(codes.y, scales.rows[1], a[1], a[3]);
  }
  // q = (q & 127) - 128 if negative: 128 + the low seven bits, less 128 or (the sign bit is the
  // lowest exponent bit of 0x43..) 256.
  __device__ static void Unpack(uint32_t word, const ScalePair& scale, uint32_t& low,
                                uint32_t& high) {
    const uint32_t digits = word & 0x7F7F7F7Fu, signs = word & 0x80808080u;
    const uint32_t top = 0x43434343u;
    low = scale.Times(
        __hsub2(Pair(__byte_perm(digits, top, 0x4140)), Pair(__byte_perm(signs, top, 0x4140))));
    high = scale.Times(
        __hsub2(Pair(__byte_perm(digits, top, 0x4342)), Pair(__byte_perm(signs, top, 0x4342))));
  }
};

template <>
struct LaneTile<Encoding::kBf16> {
  const unsigned char* words;
  uint32_t odd;

  __device__ void Load(const unsigned char* tile, uint32_t lane) {
    const uint32_t g = lane / 4, t = lane % 4;
    odd = t % 2;
    words = tile + 2 * t * 64 + g * 8;
  }
  // Column pairs 2t and 2t + 1 of 16. Odd t loads them the other way round: all four t would else
  // meet in the same banks.
  __device__ void Fragment(uint32_t s, uint32_t (&a)[4]) const {
    const uint2 one = *reinterpret_cast<const uint2*>(words + s * 512 + 64 * odd);
    const uint2 other = *reinterpret_cast<const uint2*>(words + s * 512 + 64 * (1 - odd));
    a[0] = odd ? other.x : one.x;
    a[1] = odd ? other.y : one.y;
    a[2] = odd ? one.x : other.x;
    a[3] = odd ? one.y : other.y;
  }
};

__device__ inline float Silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// One panel's sums as float32, or added to what is there: 16 loads of a lane at a time, or each
// would wait for the store before it.
template <int kTokens>
__device__ inline void StoreFloats(float* out, uint64_t stride, int count,
                                   DenseProduct::Output kind, const float (&sums)[kTokens / 2]) {
  constexpr int kBlocks = kTokens / 8, kAtOnce = kBlocks % 8 == 0 ? 8 : kBlocks % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int base = 0; base < kBlocks; base += kAtOnce) {
    float2 old[kAtOnce][2] = {};
#pragma unroll
    for (int i = 0; i < 2 * kAtOnce; ++i) {
      const int token = 8 * (base + i / 2) + i % 2;
      if (kind == DenseProduct::Output::kAddF32 && token < count) {
        old[i / 2][i % 2] = *reinterpret_cast<const float2*>(out + token * stride);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kAtOnce; ++i) {
      const int token = 8 * (base + i / 2) + i % 2, at = 4 * (base + i / 2) + i % 2;
      if (token < count) {
        *reinterpret_cast<float2*>(out + token * stride) =
            make_float2(old[i / 2][i % 2].x + sums[at], old[i / 2][i % 2].y + sums[at + 2]);
      }
    }
  }
}

// Stores a warp's sums of kTokens tokens. Element 4b + 2r + e of a lane's array: token 8b + 2t + e,
// row 2g + r of the panel. Gate and up's panels past the matrix are zeros up to the stride. Trading
// words with a neighbour lane for 8-byte stores of down was 2 to 12 % slower (H200).
template <bool kGateUp, int kTokens>
__device__ inline void StoreSums(const GemmArguments& arguments, const TokenBlock& block,
                                 const WarpTiles& tiles, const float (&first)[kTokens / 2],
                                 const float (&second)[kTokens / 2], uint32_t lane) {
  const uint32_t g = lane / 4, t = lane % 4;
  const bool inside[2] = {tiles.panel[0] < arguments.panel_count,
                          tiles.panel[1] < arguments.panel_count};
  // Rows 2g and 2g + 1: natural order for down; for gate and up the next operand's word g of 8.
  const uint32_t column = tiles.panel[0] * 16 + (kGateUp ? 2 * (g / 2) + 8 * (g % 2) : 2 * g);
  if (kGateUp && tiles.panel[0] * 16 >= arguments.output_stride) return;
  const uint32_t stride = arguments.output_stride;
  const int count = static_cast<int>(block.row_count) - static_cast<int>(2 * t);
  const uint64_t at = uint64_t{block.first_row + 2 * t} * stride + column;
  if (!kGateUp && arguments.kind != DenseProduct::Output::kBf16) {
    float* const out = static_cast<float*>(arguments.output) + at;
    if (inside[0]) StoreFloats<kTokens>(out, stride, count, arguments.kind, first);
    if (inside[1]) StoreFloats<kTokens>(out + 16, stride, count, arguments.kind, second);
    return;
  }
  uint16_t* row = static_cast<uint16_t*>(arguments.output) + at;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      uint32_t* const words = reinterpret_cast<uint32_t*>(row + e * stride);
      const float a[2] = {first[4 * i + e], first[4 * i + 2 + e]};
      const float b[2] = {second[4 * i + e], second[4 * i + 2 + e]};
      if (8 * i + e >= count) continue;
      if (kGateUp) {
        words[0] = inside[0] ? PackBf16(Silu(a[0]) * b[0], Silu(a[1]) * b[1]) : 0;
      } else {
        if (inside[0]) words[0] = PackBf16(a[0], a[1]);
        if (inside[1]) words[8] = PackBf16(b[0], b[1]);
      }
    }
    row += 8 * stride;
  }
}

}  // namespace moraine::gpu
