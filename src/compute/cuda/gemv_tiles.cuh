// What the matrix-vector kernels share: a lane's words of weight tiles, straight from device memory
// to registers; the rows of x in shared memory; the products. Internal to compute/cuda.
//
// x lies in shared memory as bf16, natural order, two rows a token: rounded, and what is left of it.
// A lane's words of a tile are columns 4t .. 4t + 3 of each 16 (gemm_tiles.cuh), so its B fragment
// is 8 consecutive bytes of a row, and nothing is permuted.
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
      words[n] = rows[n] != nullptr ? *reinterpret_cast<const uint2*>(rows[n] + column)
                                    : make_uint2(0, 0);
    }
  }
};

// A lane's words of one tile. Load, then AddTo: sums of rows 2g (elements 0, 1) and 2g + 1 for x and
// what is left of x of token t of each group.
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

// The sum over a row of float32 values of their squares, by all threads of the block, in all of
// them. partial: a float a warp in shared memory, free again after the next barrier.
__device__ inline float BlockSum(float value, float* partial) {
  const uint32_t warps = blockDim.x / 32;
  value = WarpSum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (uint32_t i = 0; i < warps; ++i) sum += partial[i];
  return sum;
}
__device__ inline float RowFactor(const GemvInput& input, const float* row, uint32_t cols,
                                  float* partial) {
  float squares = 0;
  for (uint32_t c = threadIdx.x * 4; c < cols; c += blockDim.x * 4) {
    if (c + 4 <= cols) {
      const float4 v = *reinterpret_cast<const float4*>(row + c);
      squares += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
    } else {
      for (uint32_t i = c; i < cols; ++i) squares += row[i] * row[i];
    }
  }
  return rsqrtf(BlockSum(squares, partial) / static_cast<float>(cols) + input.epsilon);
}
__device__ inline float4 LoadNormed(const GemvInput& input, const float* row, uint32_t c,
                                    uint32_t cols, float factor) {
  float v[4] = {};
  if (c + 4 <= cols) {
    const float4 four = *reinterpret_cast<const float4*>(row + c);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else {
    for (uint32_t i = 0; c + i < cols; ++i) v[i] = row[c + i];
  }
  if (input.norm != nullptr) {
    for (uint32_t i = 0; i < 4 && c + i < cols; ++i) v[i] = v[i] * factor * input.norm[c + i];
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

// Row `row` of the input as rows 2 slot and 2 slot + 1 of `x`, zeros from `cols` to `padded`. All
// threads of the block; a barrier must follow.
__device__ inline void StageRow(const GemvInput& input, const float* row, uint32_t cols,
                                uint32_t padded, uint16_t* x, uint32_t slot, float* partial) {
  const float factor = input.norm != nullptr ? RowFactor(input, row, cols, partial) : 1.0f;
  uint16_t* const high = x + uint64_t{2 * slot} * (padded + kXPadding);
  uint16_t* const low = high + padded + kXPadding;
  for (uint32_t c = threadIdx.x * 4; c < padded; c += blockDim.x * 4) {
    const float4 v = LoadNormed(input, row, c, cols, factor);
    const uint32_t first = PackBf16(v.x, v.y), second = PackBf16(v.z, v.w);
    *reinterpret_cast<uint2*>(high + c) = make_uint2(first, second);
    *reinterpret_cast<uint2*>(low + c) =
        make_uint2(PackRest(v.x, v.y, first), PackRest(v.z, v.w, second));
  }
}

}  // namespace moraine::gpu
