// RunGemv of float32 matrices (gemv_f32.cuh).
#include <cuda_runtime.h>

#include "compute/cuda/gemv_f32.cuh"
#include "compute/cuda/launch.h"

namespace moraine::gpu {
namespace {

template <int kTokens>
__global__ void __launch_bounds__(kF32Threads) F32Gemv(const Gemv gemv) {
  extern __shared__ __align__(16) float x[];
  __shared__ F32Scratch<kTokens> scratch;
  const float sum =
      F32RowSums<kTokens>(gemv.matrix, gemv.input, gemv.token_count, blockIdx.x, x, scratch);
  const uint32_t token = threadIdx.x / kF32Rows;
  const uint32_t row = blockIdx.x * kF32Rows + threadIdx.x % kF32Rows;
  if (token >= gemv.token_count || row >= gemv.matrix.rows) return;
  float* const y = gemv.y + uint64_t{token} * gemv.y_stride + row;
  *y = gemv.add ? *y + sum : sum;
}

template <int kTokens>
Status Launch(const Gemv& gemv, Stream stream) {
  const uint32_t bytes = F32StagedBytes(gemv.token_count, gemv.matrix.cols);
  RETURN_IF_ERROR(Checked(AllowShared(F32Gemv<kTokens>, bytes), "float32 product of few tokens"));
  const dim3 grid(CeilDivide(gemv.matrix.rows, kF32Rows));
  return Checked(LaunchChained(F32Gemv<kTokens>, grid, kF32Threads, bytes, stream, gemv),
                 "float32 product of few tokens");
}

}  // namespace

Status LaunchF32Gemv(const Gemv& gemv, Stream stream) {
  return gemv.token_count == 1 ? Launch<1>(gemv, stream) : Launch<kGemvTokens>(gemv, stream);
}

}  // namespace moraine::gpu
