// Before and after the products: rows into operand order, and the weighted sum of a token's rows.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "compute/cuda/gemm_launch.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kThreads = 256;

constexpr uint32_t kRowsOfBlock = 4;

// Rows of whole groups of 16 columns. A thread moves 8 of them, so that loads and stores of a warp are one
// run of bytes each; of the 8 words of 16 columns operand order takes the even ones first, which a
// pair of threads trades. Four rows at once: loads in flight.
__global__ void __launch_bounds__(kThreads) GatherWholeRows(const RowGather gather,
                                                            uint32_t chunks) {
  const uint32_t first = blockIdx.x * kRowsOfBlock;
  const bool odd = threadIdx.x % 2 != 0;
  for (uint32_t begin = 0; begin < chunks; begin += kThreads) {
    const uint32_t chunk = begin + threadIdx.x;
    uint4 words[kRowsOfBlock] = {};
#pragma unroll
    for (uint32_t i = 0; i < kRowsOfBlock; ++i) {
      if (first + i >= gather.row_count || chunk * 8 >= gather.cols) continue;
      const uint16_t* x = gather.x + uint64_t{gather.token_rows[first + i]} * gather.x_stride;
      words[i] = reinterpret_cast<const uint4*>(x)[chunk];
    }
#pragma unroll
    for (uint32_t i = 0; i < kRowsOfBlock; ++i) {
      const uint4 own = words[i];
      const uint32_t low = __shfl_xor_sync(~0u, odd ? own.x : own.y, 1);
      const uint32_t high = __shfl_xor_sync(~0u, odd ? own.z : own.w, 1);
      if (first + i >= gather.row_count || chunk >= chunks) continue;
      reinterpret_cast<uint4*>(gather.operand)[uint64_t{first + i} * chunks + chunk] =
          odd ? make_uint4(low, high, own.y, own.w) : make_uint4(own.x, own.z, low, high);
    }
  }
}

// Any rows. A thread moves 16 columns of one.
__global__ void GatherRows(const RowGather gather, uint32_t groups) {
  const uint64_t index = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= uint64_t{gather.row_count} * groups) return;
  const uint32_t row = index / groups, column = index % groups * 16;
  const uint16_t* source = gather.x + uint64_t{gather.token_rows[row]} * gather.x_stride + column;
  uint32_t words[8] = {};
  for (uint32_t i = 0; i < 16 && column + i < gather.cols; ++i) {
    words[i / 2] |= uint32_t{source[i]} << (i % 2 * 16);
  }
  uint4* target = reinterpret_cast<uint4*>(gather.operand + index * 16);
  target[0] = {words[0], words[2], words[4], words[6]};
  target[1] = {words[1], words[3], words[5], words[7]};
}

// A thread sums 8 columns of one token over its ranks, in order.
__global__ void CombineRows(const RowCombination combination, uint32_t groups) {
  const uint64_t index = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= uint64_t{combination.token_count} * groups) return;
  const uint32_t token = index / groups, column = index % groups * 8;
  float sums[8] = {};
  for (uint32_t rank = 0; rank < combination.top_k; ++rank) {
    const uint64_t at = uint64_t{token} * combination.top_k + rank;
    const float weight = combination.weights[at];
    const uint16_t* row =
        combination.rows + uint64_t{combination.positions[at]} * combination.row_stride;
    const uint4 words = *reinterpret_cast<const uint4*>(row + column);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 8; ++i) {
      const uint32_t bits = i % 2 ? pairs[i / 2] & 0xFFFF0000u : pairs[i / 2] << 16;
      sums[i] = __fadd_rn(sums[i], __fmul_rn(weight, __uint_as_float(bits)));
    }
  }
  float* out = combination.out + uint64_t{token} * combination.hidden + column;
  if (combination.add) {
    for (uint32_t i = 0; i < 8 && column + i < combination.hidden; ++i) sums[i] += out[i];
  }
  if (combination.hidden % 8 == 0) {
    reinterpret_cast<float4*>(out)[0] = {sums[0], sums[1], sums[2], sums[3]};
    reinterpret_cast<float4*>(out)[1] = {sums[4], sums[5], sums[6], sums[7]};
    return;
  }
  for (uint32_t i = 0; i < 8 && column + i < combination.hidden; ++i) out[i] = sums[i];
}

uint32_t Blocks(uint64_t threads) {
  return static_cast<uint32_t>((threads + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t LaunchGather(const RowGather& gather, Stream stream) {
  const uint32_t groups = OperandStride(gather.cols) / 16;
  if (gather.cols % 16 == 0 && gather.x_stride % 8 == 0) {
    GatherWholeRows<<<(gather.row_count + kRowsOfBlock - 1) / kRowsOfBlock, kThreads, 0, stream>>>(
        gather, groups * 2);
  } else {
    GatherRows<<<Blocks(uint64_t{gather.row_count} * groups), kThreads, 0, stream>>>(gather,
                                                                                     groups);
  }
  return cudaGetLastError();
}

cudaError_t LaunchCombine(const RowCombination& combination, Stream stream) {
  const uint32_t groups = (combination.hidden + 7) / 8;
  CombineRows<<<Blocks(uint64_t{combination.token_count} * groups), kThreads, 0, stream>>>(
      combination, groups);
  return cudaGetLastError();
}

}  // namespace moraine::gpu
