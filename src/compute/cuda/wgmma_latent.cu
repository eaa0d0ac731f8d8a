// Causal attention of many tokens on Hopper with keys and values multiplied from latents: heads of
// 128 + 64 dimensions, values of 128 (wgmma_attention.cuh). A head's keys and values are rows of
// what was multiplied, the rotated part of the keys, which all heads share, lies in the cache's
// pages.
#include "compute/cuda/latent_launch.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/wgmma_attention.cuh"

namespace moraine::gpu {
namespace {

using namespace wgmma_attention;

constexpr int kNope = 128, kRope = 64, kKey = kNope + kRope, kValue = 128;
constexpr uint32_t kSharedBytes = SharedBytes(kKey, kValue);
static_assert(kSharedBytes <= 227 * 1024);

struct Parameters {
  CUtensorMap queries, keys, values, turned;
  const uint32_t* block_tables;
  uint32_t heads, rank;
  Output output;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

struct Projected {
  const Parameters& parameters;

  __device__ void CopyQueries(const Work& work, uint32_t to, uint32_t barrier) const {
    for (uint32_t c = 0; c < kKey / 64; ++c) {
      CopyBox(to + c * kBlockBytes, &parameters.queries, work.head * kKey + c * 64,
              work.first_token, barrier);
    }
  }
  __device__ uint32_t Row(const Work&, uint32_t page) const {
    return parameters.block_tables[page] * kPage;
  }
  __device__ void CopyKeys(const Work& work, uint32_t page, uint32_t row, uint32_t to,
                           uint32_t barrier) const {
    for (uint32_t c = 0; c < kNope / 64; ++c) {
      CopyBox(to + c * kBlockBytes, &parameters.keys, work.head * kNope + c * 64, page * kPage,
              barrier);
    }
    CopyBox(to + kNope / 64 * kBlockBytes, &parameters.turned, parameters.rank, row,
            barrier);
  }
  __device__ void CopyValues(const Work& work, uint32_t page, uint32_t, uint32_t to,
                             uint32_t barrier) const {
    for (uint32_t c = 0; c < kValue / 64; ++c) {
      CopyBox(to + c * kBlockBytes, &parameters.values, work.head * kValue + c * 64, page * kPage,
              barrier);
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

__global__ void __launch_bounds__(kThreads, 1)
    AttendToProjected(const __grid_constant__ Parameters parameters) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  Attend<kKey, kValue>(Projected{parameters}, parameters.output, parameters.heads);
#endif
}

cudaError_t Launch(const LatentPrefillAttention& attention, Stream stream) {
  EncodeTensorMap encode = nullptr;
  cudaError_t error = FindEncodeTensorMap(&encode);
  const uint32_t heads = attention.heads;
  const uint64_t positions = uint64_t{attention.first_position} + attention.token_count;
  Parameters parameters;
  parameters.block_tables = attention.cache.block_tables;
  parameters.heads = heads;
  parameters.rank = attention.cache.rank;
  parameters.output = {attention.operand, attention.operand_stride, attention.token_count,
                       attention.first_position, attention.scale};
  const auto fill = [&](const uint16_t* data, uint64_t cols, uint64_t stride, uint64_t rows,
                        uint32_t box_rows, CUtensorMap* map) {
    if (error == cudaSuccess) error = FillMap(encode, data, cols, stride, rows, box_rows, map);
  };
  fill(attention.queries, heads * kKey, attention.query_stride, attention.token_count, kTokens,
       &parameters.queries);
  // Rows past the last position arrive as zeros.
  fill(attention.keys, heads * kNope, heads * kNope, positions, kPage, &parameters.keys);
  fill(attention.values, heads * kValue, heads * kValue, positions, kPage, &parameters.values);
  const uint32_t width = attention.cache.width();
  fill(attention.cache.bf16, width, width, kAnyRows, kPage, &parameters.turned);
  if (error == cudaSuccess) error = AllowShared(AttendToProjected, kSharedBytes);
  if (error != cudaSuccess) return error;
  const uint32_t tiles = CeilDivide(attention.token_count, kTokens);
  AttendToProjected<<<tiles * heads, kThreads, kSharedBytes, stream>>>(parameters);
  return cudaGetLastError();
}

}  // namespace

Status LaunchWgmmaLatent(const LatentPrefillAttention& attention, Stream stream) {
  return Checked(Launch(attention, stream), "latent attention of many tokens");
}

}  // namespace moraine::gpu
