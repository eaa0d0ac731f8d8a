// Codes of compute/e4m3.h as bf16, on every GPU from Ampere up: E4M3's bits are bf16's with a smaller exponent, so that
// a shift and one exact product unpack two of them. Internal to compute/cuda.
#pragma once

#include <cstdint>

#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {

// The codes in bytes 1 and 3 of a word (the others may be anything) as E4M3 / 256.
__device__ inline uint32_t Fp8Pair(uint32_t word) {
  constexpr uint32_t kTwoTo112 = 0x77807780u;
  const uint32_t bits = (word & 0x80008000u) | (word & 0x7F007F00u) >> 4;
  return Bits(__hmul2(Pair(bits), Pair(kTwoTo112)));
}
// Bytes 0 and 1 of a word, or 2 and 3.
__device__ inline uint32_t Fp8Low(uint32_t word) { return Fp8Pair(__byte_perm(word, 0, 0x1000)); }
__device__ inline uint32_t Fp8High(uint32_t word) { return Fp8Pair(__byte_perm(word, 0, 0x3020)); }
// Byte i of two words.
__device__ inline uint32_t Fp8Across(uint32_t first, uint32_t second, uint32_t i) {
  return Fp8Pair(__byte_perm(first, second, (4 + i) << 12 | i << 4));
}
// What E4M3 / 256 is multiplied by.
__device__ inline float Fp8Scale(uint32_t scale) { return __uint_as_float(scale << 23); }

// A head's part of a page: where its codes begin; scales come behind the codes.
__device__ inline uint64_t Fp8HeadAt(const PagedKv& kv, uint32_t page, uint32_t kv_head) {
  return (uint64_t{page} * kv.kv_heads + kv_head) * kKvPagePositions * (kv.head_dim + 1);
}

}  // namespace moraine::gpu
