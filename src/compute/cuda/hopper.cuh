// Barriers in shared memory and the copies that complete on them (Hopper). Internal to
// compute/cuda; sm_90a only.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace moraine::gpu {

__device__ inline void InitBarrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void ExpectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// By one lane, without a branch: products are under way.
__device__ inline void ArriveIf(bool condition, uint32_t barrier) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %1, 0;"
      " @p mbarrier.arrive.shared::cta.b64 _, [%0]; }" ::"r"(barrier),
      "r"(static_cast<int>(condition))
      : "memory");
}
__device__ inline void WaitPhase(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ inline void CopyBytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ inline void CopyBox(uint32_t to, const CUtensorMap* map, uint32_t column, uint32_t row,
                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// Tells the compiler that a value is the same in all lanes: products in divergent code are
// serialised.
__device__ inline uint32_t Uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

}  // namespace moraine::gpu
