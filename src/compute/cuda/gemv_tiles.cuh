// What the matrix-vector kernels share: a lane's words of weight tiles, straight from device memory
// to registers; the rows of x in shared memory; the products. Internal to compute/cuda.
//
// x lies in shared memory as bf16, natural order, two rows a token: rounded, and what is left of
// it. A lane's words of a tile are columns 4t .. 4t + 3 of each 16 (gemm_tiles.cuh), so its B
// fragment is 8 consecutive bytes of a row, and nothing is permuted.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "compute/cuda/gemv.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {

// Tokens whose two rows are the 8 columns of a product.
inline constexpr uint32_t kTokenColumns = 4;
// Rows of x are 32 bytes more than a multiple of 128 apart: 4 rows of a fragment in other banks.
inline constexpr uint32_t kXPadding = 16;

__device__ inline uint2 LoadWords(const std::byte* from) {
  uint2 words;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(from));
  return words;
}
__device__ inline uint32_t LoadWord(const std::byte* from) {
  uint32_t word;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}

// B fragments of kGroups groups of 4 tokens, for 16 columns of x.
template <int kGroups>
struct XFragment {
  uint2 words[kGroups];

  // rows: of this lane's column, or null if there is no such token.
  __device__ void Load(const uint16_t* const (&rows)[kGroups], uint32_t column) {
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      words[n] =
          rows[n] != nullptr ? *reinterpret_cast<const uint2*>(rows[n] + column) : make_uint2(0, 0);
    }
  }
};

// A lane's words of one tile. Load, then AddTo: sums of rows 2g (elements 0, 1) and 2g + 1 for x
// and what is left of x of token t of each group.
template <Encoding kEncoding>
struct GemvTile;

template <Encoding kEncoding>
struct ScaledTile {
  static constexpr int kWords = kEncoding == Encoding::kQ4 ? 2 : 4;
  uint2 codes[kWords];
  uint32_t scales[2];  // f16 of rows 2g and 2g + 1, for each 32 columns

  __device__ void Load(const std::byte* tile, uint32_t lane) {
    const std::byte* words = tile + 64 + lane % 4 * 64 + lane / 4 * 8;
#pragma unroll
    for (int i = 0; i < kWords; ++i) codes[i] = LoadWords(words + i * 256);
    scales[0] = LoadWord(tile + lane / 4 * 4);
    scales[1] = LoadWord(tile + 32 + lane / 4 * 4);
  }
  // Codes as bf16, exact (gemm_tiles.cuh tells the trick with 0x43).
  __device__ static void Unpack(uint32_t word, uint32_t& low, uint32_t& high) {
    const uint32_t top = 0x43434343u;
    if constexpr (kEncoding == Encoding::kQ4) {
      const uint32_t nibbles = word & 0x0F0F0F0Fu;
      const __nv_bfloat162 bias = Pair(0x43084308u);
      low = Bits(__hsub2(Pair(__byte_perm(nibbles, top, 0x4140)), bias));
      high = Bits(__hsub2(Pair(__byte_perm(nibbles, top, 0x4342)), bias));
    } else {
      const uint32_t digits = word & 0x7F7F7F7Fu, signs = word & 0x80808080u;
      low = Bits(
          __hsub2(Pair(__byte_perm(digits, top, 0x4140)), Pair(__byte_perm(signs, top, 0x4140))));
      high = Bits(
          __hsub2(Pair(__byte_perm(digits, top, 0x4342)), Pair(__byte_perm(signs, top, 0x4342))));
    }
  }
  __device__ void Fragment(int s, uint32_t (&a)[4]) const {
    uint2 word = codes[kEncoding == Encoding::kQ4 ? s / 2 : s];
    if (kEncoding == Encoding::kQ4 && s % 2 == 1) word = make_uint2(word.x >> 4, word.y >> 4);
    Unpack(word.x, a[0], a[2]);
    Unpack(word.y, a[1], a[3]);
  }
  template <int kGroups>
  __device__ void AddTo(float (&sums)[kGroups][4], const uint16_t* const (&rows)[kGroups],
                        uint32_t column) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float partial[kGroups][4] = {};
#pragma unroll
      for (int s = 2 * half; s < 2 * half + 2; ++s) {
        uint32_t a[4];
        Fragment(s, a);
        XFragment<kGroups> x;
        x.Load(rows, column + 16 * s);
#pragma unroll
        for (int n = 0; n < kGroups; ++n) Mma(partial[n], a, x.words[n].x, x.words[n].y);
      }
      const __half2 pair = *reinterpret_cast<const __half2*>(&scales[half]);
      const float scale[2] = {__low2float(pair), __high2float(pair)};
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] = fmaf(scale[i / 2], partial[n][i], sums[n][i]);
      }
    }
  }
};
template <>
struct GemvTile<Encoding::kQ4> : ScaledTile<Encoding::kQ4> {};
template <>
struct GemvTile<Encoding::kQ8> : ScaledTile<Encoding::kQ8> {};

template <>
struct GemvTile<Encoding::kBf16> {
  uint2 words[4][2];  // rows 2g and 2g + 1 of columns 4t, 4t + 1 and of 4t + 2, 4t + 3

  __device__ void Load(const std::byte* tile, uint32_t lane) {
    const std::byte* from = tile + lane % 4 * 128 + lane / 4 * 8;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      words[s][0] = LoadWords(from + s * 512);
      words[s][1] = LoadWords(from + s * 512 + 64);
    }
  }
  template <int kGroups>
  __device__ void AddTo(float (&sums)[kGroups][4], const uint16_t* const (&rows)[kGroups],
                        uint32_t column) const {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const uint32_t a[4] = {words[s][0].x, words[s][0].y, words[s][1].x, words[s][1].y};
      XFragment<kGroups> x;
      x.Load(rows, column + 16 * s);
#pragma unroll
      for (int n = 0; n < kGroups; ++n) Mma(sums[n], a, x.words[n].x, x.words[n].y);
    }
  }
};

// Columns c .. c + 3 of a row of `cols`, zeros past it. c: a multiple of 4.
__device__ inline float4 LoadFour(const float* row, uint32_t c, uint32_t cols) {
  if (c + 4 <= cols) return *reinterpret_cast<const float4*>(row + c);
  float v[4] = {};
  for (uint32_t i = 0; c + i < cols; ++i) v[i] = row[c + i];
  return make_float4(v[0], v[1], v[2], v[3]);
}

// Brings the rows of an input to shared memory, by all threads of a block: thread i has columns
// 4 i .. 4 i + 3, and every 4 x threads further on. The norm's weights are constant and asked for
// before WaitForPrevious; sums of squares of all tokens share one barrier.
class RowStager {
 public:
  __device__ RowStager(const GemvInput& input, uint32_t cols) : input_(input), cols_(cols) {
#pragma unroll
    for (uint32_t i = 0; i < kHeld; ++i) {
      const uint32_t c = (threadIdx.x + i * blockDim.x) * 4;
      if (input.norm != nullptr && c < cols) norm_[i] = LoadFour(input.norm, c, cols);
    }
  }

  // Of the tokens' rows: a float a warp and token into shared memory; a barrier before Write.
  __device__ void SumSquares(uint32_t first_token, uint32_t token_count, float* squares) const {
    if (input_.norm == nullptr) return;
    for (uint32_t t = 0; t < token_count; ++t) {
      const float* row = input_.x + uint64_t{first_token + t} * input_.stride;
      float sum = 0;
      for (uint32_t c = threadIdx.x * 4; c < cols_; c += blockDim.x * 4) {
        const float4 v = LoadFour(row, c, cols_);
        sum += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
      }
      sum = WarpSum(sum);
      if (threadIdx.x % 32 == 0) squares[t * (blockDim.x / 32) + threadIdx.x / 32] = sum;
    }
  }
  // write(token, column, values), columns up to `padded`, zeros from `cols` on. A barrier must
  // follow.
  template <typename Writer>
  __device__ void Write(uint32_t first_token, uint32_t token_count, uint32_t padded,
                        const float* squares, const Writer& write) const {
    const uint32_t warps = blockDim.x / 32;
    for (uint32_t t = 0; t < token_count; ++t) {
      const float* row = input_.x + uint64_t{first_token + t} * input_.stride;
      float factor = 1;
      if (input_.norm != nullptr) {
        float sum = 0;
        for (uint32_t w = 0; w < warps; ++w) sum += squares[t * warps + w];
        factor = rsqrtf(sum / static_cast<float>(cols_) + input_.epsilon);
      }
      uint32_t c = threadIdx.x * 4;
#pragma unroll
      for (uint32_t i = 0; i < kHeld; ++i, c += blockDim.x * 4) {
        if (c < padded) write(t, c, Normed(row, c, norm_[i], factor));
      }
      for (; c < padded; c += blockDim.x * 4) {
        float4 weight = {};
        if (input_.norm != nullptr && c < cols_) weight = LoadFour(input_.norm, c, cols_);
        write(t, c, Normed(row, c, weight, factor));
      }
    }
  }
  // Both, and the barrier between.
  template <typename Writer>
  __device__ void Stage(uint32_t first_token, uint32_t token_count, uint32_t padded, float* squares,
                        const Writer& write) const {
    SumSquares(first_token, token_count, squares);
    if (input_.norm != nullptr) __syncthreads();
    Write(first_token, token_count, padded, squares, write);
  }

 private:
  static constexpr uint32_t kHeld = 2;

  __device__ float4 Normed(const float* row, uint32_t c, const float4& weight, float factor) const {
    if (c >= cols_) return {};
    const float4 v = LoadFour(row, c, cols_);
    if (input_.norm == nullptr) return v;
    return make_float4(v.x * factor * weight.x, v.y * factor * weight.y, v.z * factor * weight.z,
                       v.w * factor * weight.w);
  }

  const GemvInput& input_;
  uint32_t cols_;
  float4 norm_[kHeld];
};

// Four values as rows 2 slot and 2 slot + 1 of x.
__device__ inline void StoreSplit(uint16_t* x, uint32_t slot, uint32_t padded, uint32_t c,
                                  const float4& v) {
  uint16_t* const high = x + uint64_t{2 * slot} * (padded + kXPadding) + c;
  const uint32_t first = PackBf16(v.x, v.y), second = PackBf16(v.z, v.w);
  *reinterpret_cast<uint2*>(high) = make_uint2(first, second);
  *reinterpret_cast<uint2*>(high + padded + kXPadding) =
      make_uint2(PackRest(v.x, v.y, first), PackRest(v.z, v.w, second));
}

}  // namespace moraine::gpu
