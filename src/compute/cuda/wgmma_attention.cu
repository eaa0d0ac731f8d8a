// Causal attention of many tokens on Hopper, heads of 64 or 128 dimensions: keys and values as they
// lie in the cache's pages (wgmma_attention.cuh).
#include "compute/cuda/attention_launch.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/wgmma_attention.cuh"

namespace moraine::gpu {
namespace {

using namespace wgmma_attention;

struct Parameters {
  CUtensorMap queries, keys, values;
  PagedKv kv;
  uint32_t query_heads;
  Output output;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int kDim>
struct Pages {
  const Parameters& parameters;

  __device__ void CopyQueries(const Work& work, uint32_t to, uint32_t barrier) const {
    for (uint32_t c = 0; c < kDim / 64; ++c) {
      CopyBox(to + c * kBlockBytes, &parameters.queries, work.head * kDim + c * 64,
              work.first_token, barrier);
    }
  }
  __device__ uint32_t Row(const Work& work, uint32_t page) const {
    const PagedKv& kv = parameters.kv;
    const uint32_t kv_head = work.head / (parameters.query_heads / kv.kv_heads);
    return (kv.block_tables[page] * kv.kv_heads + kv_head) * kPage;
  }
  __device__ void CopyKeys(const Work&, uint32_t, uint32_t row, uint32_t to,
                           uint32_t barrier) const {
    Copy(parameters.keys, row, to, barrier);
  }
  __device__ void CopyValues(const Work&, uint32_t, uint32_t row, uint32_t to,
                             uint32_t barrier) const {
    Copy(parameters.values, row, to, barrier);
  }

 private:
  __device__ static void Copy(const CUtensorMap& map, uint32_t row, uint32_t to, uint32_t barrier) {
    for (uint32_t c = 0; c < kDim / 64; ++c) {
      CopyBox(to + c * kBlockBytes, &map, c * 64, row, barrier);
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    AttendCausally(const __grid_constant__ Parameters parameters) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  Attend<kDim, kDim>(Pages<kDim>{parameters}, parameters.output, parameters.query_heads);
#endif
}

template <int kDim>
cudaError_t Launch(const PrefillAttention& attention, Stream stream) {
  constexpr uint32_t kShared = SharedBytes(kDim, kDim);
  static_assert(kShared <= 227 * 1024);
  EncodeTensorMap encode = nullptr;
  if (const cudaError_t error = FindEncodeTensorMap(&encode); error != cudaSuccess) return error;
  const uint32_t width = attention.query_heads * kDim;
  Parameters parameters;
  parameters.kv = attention.kv;
  parameters.query_heads = attention.query_heads;
  parameters.output = {attention.operand, OperandStride(width), attention.token_count,
                       attention.first_position, attention.scale};
  cudaError_t error = FillMap(encode, attention.queries, width, width, attention.token_count,
                              kTokens, &parameters.queries);
  if (error == cudaSuccess) {
    error = FillMap(encode, attention.kv.keys, kDim, kDim, kAnyRows, kPage, &parameters.keys);
  }
  if (error == cudaSuccess) {
    error = FillMap(encode, attention.kv.values, kDim, kDim, kAnyRows, kPage, &parameters.values);
  }
  if (error == cudaSuccess) error = AllowShared(AttendCausally<kDim>, kShared);
  if (error != cudaSuccess) return error;
  const uint32_t tiles = CeilDivide(attention.token_count, kTokens);
  AttendCausally<kDim><<<tiles * attention.query_heads, kThreads, kShared, stream>>>(parameters);
  return cudaGetLastError();
}

}  // namespace

Status LaunchWgmmaAttention(const PrefillAttention& attention, Stream stream) {
  return Checked(
      attention.kv.head_dim == 64 ? Launch<64>(attention, stream) : Launch<128>(attention, stream),
      "attention of many tokens");
}

}  // namespace moraine::gpu
