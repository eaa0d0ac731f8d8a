// What this machine can do at most, measured: the denominators of every figure that
// `moraine bench kernels` prints.
//
// Not data sheets: a virtual machine's share of the memory, and the clock under wide instructions,
// are known only by trying, in the same seconds as the kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/cpu_backend.h"

namespace moraine {

// Reads every byte once; bytes is a multiple of 256. Four streams side by side, each prefetched 2 KiB
// ahead: one reads 6 % less (the hardware's prefetcher stops at every 4 KiB). They lie 34 KiB apart,
// like panels of q8: at a power of two (64 or 256 KiB) they compete for the same sets of the caches and
// 13 or 30 % less arrives. Returns the xor of all 8-byte words, so that no load can be dropped.
inline constexpr size_t kReadStreamBytes = 34816;
uint64_t ReadBytes(const std::byte* data, size_t bytes);

enum class PeakWork : uint8_t {
  // q4 and q8: vpdpbusd; for plain AVX2 the three instructions that stand for one; for AMX products
  // of whole tiles, 64 columns deep (a group of 32 fills half of one).
  kInt8Dot,
  kFloatFma,  // bf16 and f32
};
// Independent chains in registers, nothing loaded. Returns the operations done (an addition and a
// multiplication are two); at most 1 ms for 20000 iterations.
double RunPeakLoop(Isa isa, PeakWork work, uint32_t iterations);

}  // namespace moraine
