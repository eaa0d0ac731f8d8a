// Pages in fp8 as pages in bf16 (ExpandKv). A block has a head's part of a page, of keys or of values; a thread 16 codes at a
// time.
#include <cuda_runtime.h>

#include "compute/cuda/fp8.cuh"
#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kThreads = 256;

__global__ void __launch_bounds__(kThreads) ExpandPages(const KvExpansion expansion) {
  const PagedKv& kv = expansion.from;
  const uint32_t index = blockIdx.x, kv_head = blockIdx.y;
  const bool of_values = blockIdx.z > 0;
  const uint32_t elements = kKvPagePositions * kv.head_dim;
  const uint8_t* const from = (of_values ? kv.values_fp8 : kv.keys_fp8) +
                              Fp8HeadAt(kv, kv.block_tables[index], kv_head);
  uint16_t* const to = (of_values ? expansion.values : expansion.keys) +
                       (uint64_t{index} * kv.kv_heads + kv_head) * elements;
  for (uint32_t i = threadIdx.x * 16; i < elements; i += kThreads * 16) {
    const uint4 codes = *reinterpret_cast<const uint4*>(from + i);
    // Bits of a power of two in bf16, twice. Of positions past the last one anything.
    const uint32_t bits = uint32_t{from[elements + i / kv.head_dim]} << 7;
    const __nv_bfloat162 scale = Pair(bits | bits << 16);
    const auto pair = [scale](uint32_t unscaled) { return Bits(__hmul2(Pair(unscaled), scale)); };
    auto* const out = reinterpret_cast<uint4*>(to + i);
    out[0] = make_uint4(pair(Fp8Low(codes.x)), pair(Fp8High(codes.x)), pair(Fp8Low(codes.y)),
                        pair(Fp8High(codes.y)));
    out[1] = make_uint4(pair(Fp8Low(codes.z)), pair(Fp8High(codes.z)), pair(Fp8Low(codes.w)),
                        pair(Fp8High(codes.w)));
  }
  if (kv_head == 0 && !of_values && threadIdx.x == 0) expansion.block_table[index] = index;
}

}  // namespace

Status ExpandKv(const KvExpansion& expansion, Stream stream) {
  const PagedKv& kv = expansion.from;
  if (kv.keys_fp8 == nullptr || kv.head_dim % 16 != 0) {
    return Unsupported("expanding a cache that is not fp8, or heads of " +
                       std::to_string(kv.head_dim) + " dimensions");
  }
  if (expansion.positions == 0) return OkStatus();
  const dim3 grid(CeilDivide(expansion.positions, kKvPagePositions), kv.kv_heads, 2);
  ExpandPages<<<grid, kThreads, 0, stream>>>(expansion);
  return Checked(cudaGetLastError(), "keys and values in fp8 as bf16");
}

}  // namespace moraine::gpu
