// mma.sync m16n8k16, ldmatrix and cp.async (Ampere and later), and bf16 as words. Internal to
// compute/cuda.
//
// In lane 4g + t: A has rows g (a[0], a[2]) and g + 8 (a[1], a[3]), columns 2t, 2t + 1 (a[0], a[1])
// and 2t + 8, 2t + 9; B has column g, rows 2t, 2t + 1 (b0) and 2t + 8, 2t + 9 (b1); D has row g
// (d[0], d[1]) and g + 8, columns 2t and 2t + 1.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>

namespace moraine::gpu {

__device__ inline uint32_t Bits(__nv_bfloat162 value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
__device__ inline __nv_bfloat162 Pair(uint32_t bits) {
  __nv_bfloat162 value;
  memcpy(&value, &bits, 4);
  return value;
}
// Two floats as bf16, the first in the lower half.
__device__ inline uint32_t PackBf16(float first, float second) {
  return Bits(__floats2bfloat162_rn(first, second));
}
__device__ inline float LowFloat(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float HighFloat(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }
__device__ inline float Bf16Float(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
__device__ inline uint16_t Bf16Bits(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
// What bf16 leaves of two floats, as bf16.
__device__ inline uint32_t PackRest(float first, float second, uint32_t packed) {
  return PackBf16(first - LowFloat(packed), second - HighFloat(packed));
}

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ inline void CopyChunk(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ inline void LoadMatrices(uint32_t address, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ inline void LoadTransposed(uint32_t address, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ inline void Mma(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// For kernels started by LaunchChained. Every thread of every block calls both, LetNextStart first:
// the next kernel may then start, and waits in its own WaitForPrevious for this one to end. What is
// read before WaitForPrevious must be constant.
__device__ inline void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void WaitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// 2^x to 2 ulp; 0 for -infinity.
__device__ inline float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The same sum in all lanes, in a fixed order.
__device__ inline float WarpSum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

}  // namespace moraine::gpu
