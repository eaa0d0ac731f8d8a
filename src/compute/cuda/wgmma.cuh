// wgmma.mma_async m64nNk16, bf16 x bf16 -> float32, A in registers, B in shared memory: one overload
// a count of tokens N = 16 .. 128. The instruction names its N / 2 registers one by one, which is all
// the length here. Internal to compute/cuda; sm_90a only.
#pragma once

#include <cstdint>

namespace moraine::gpu {

// Of B stored as N rows (tokens) of 128 bytes with the 128-byte swizzle, 8 rows 1024 bytes apart:
// the start address and that stride in units of 16 bytes, and the swizzle in bits 62 and 63 (PTX ISA,
// "Matrix descriptor"). Adding 2 moves on by 16 columns.
__device__ inline uint64_t OperandDescriptor(uint32_t shared_address) {
  return uint64_t{(shared_address & 0x3FFFFu) >> 4} | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending groups are under way.
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define MORAINE_SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MORAINE_SUMS8(i) MORAINE_SUMS4(i), MORAINE_SUMS4(i + 4)

// d += A B.
__device__ inline void Wgmma(float (&d)[8], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7"
               "}, {%8,%9,%10,%11}, %12, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void Wgmma(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
               "}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void Wgmma(float (&d)[24], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23"
               "}, {%24,%25,%26,%27}, %28, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void Wgmma(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
               "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void Wgmma(float (&d)[40], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39"
               "}, {%40,%41,%42,%43}, %44, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24),
                 MORAINE_SUMS8(32)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void Wgmma(float (&d)[48], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
               "}, {%48,%49,%50,%51}, %52, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24),
                 MORAINE_SUMS8(32), MORAINE_SUMS8(40)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void Wgmma(float (&d)[56], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n112k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55"
               "}, {%56,%57,%58,%59}, %60, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24),
                 MORAINE_SUMS8(32), MORAINE_SUMS8(40), MORAINE_SUMS8(48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void Wgmma(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
               "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24),
                 MORAINE_SUMS8(32), MORAINE_SUMS8(40), MORAINE_SUMS8(48), MORAINE_SUMS8(56)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// What attention multiplies: d = A B or d += A B with A in shared memory as K-major as B is (queries by
// keys), and d += A B with B stored as K rows of N values (weights by values).
//
// Of B stored as rows of K, in blocks of 64 columns of N (128 bytes, swizzled), `block_bytes` apart: 8
// rows are 1024 bytes. Adding 128 moves on by 16 rows.
__device__ inline uint64_t TransposedDescriptor(uint32_t shared_address, uint32_t block_bytes) {
  return uint64_t{(shared_address & 0x3FFFFu) >> 4} | uint64_t{block_bytes >> 4} << 16 |
         64ull << 32 | 1ull << 62;
}
__device__ inline void WgmmaShared(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
               "}, %64, %65, p, 1, 1, 0, 0; }"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24),
                 MORAINE_SUMS8(32), MORAINE_SUMS8(40), MORAINE_SUMS8(48), MORAINE_SUMS8(56)
               : "l"(a), "l"(b), "r"(accumulate));
}
__device__ inline void WgmmaTransposed(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
               "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void WgmmaTransposed(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
               "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
               : MORAINE_SUMS8(0), MORAINE_SUMS8(8), MORAINE_SUMS8(16), MORAINE_SUMS8(24),
                 MORAINE_SUMS8(32), MORAINE_SUMS8(40), MORAINE_SUMS8(48), MORAINE_SUMS8(56)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef MORAINE_SUMS4
#undef MORAINE_SUMS8

}  // namespace moraine::gpu
