// Biases and whole norms of projected rows (projection_rows.h). A block has one part of one row.
#include <cuda_runtime.h>

#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"
#include "compute/cuda/projection_rows.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kThreads = 256;

__global__ void __launch_bounds__(kThreads) ChangeRows(const ProjectionRows rows) {
  __shared__ float partial[kThreads / 32];
  const ProjectionRows::Part part = rows.parts[blockIdx.y];
  if (part.empty()) return;
  const uint64_t row = uint64_t{blockIdx.x} * rows.stride + part.begin;
  const auto biased = [&](uint32_t c) {
    const float x = rows.bf16 != nullptr ? Bf16Float(rows.bf16[row + c]) : rows.f32[row + c];
    return part.bias != nullptr ? x + part.bias[c] : x;
  };
  float factor = 1;
  if (part.norm != nullptr) {
    float squares = 0;
    for (uint32_t c = threadIdx.x; c < part.cols; c += kThreads) {
      const float x = biased(c);
      squares += x * x;
    }
    squares = WarpSum(squares);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
    __syncthreads();
    float sum = 0;
    for (const float of_warp : partial) sum += of_warp;
    factor = rsqrtf(sum / static_cast<float>(part.cols) + rows.epsilon);
  }
  // A thread writes what only it has read.
  for (uint32_t c = threadIdx.x; c < part.cols; c += kThreads) {
    float x = biased(c);
    if (part.norm != nullptr) x *= factor * part.norm[c];
    if (rows.bf16 != nullptr) {
      rows.bf16[row + c] = Bf16Bits(x);
    } else {
      rows.f32[row + c] = x;
    }
  }
}

}  // namespace

Status RunProjectionRows(const ProjectionRows& rows, Stream stream) {
  if (rows.token_count == 0) return OkStatus();
  ChangeRows<<<dim3(rows.token_count, 3), kThreads, 0, stream>>>(rows);
  return Checked(cudaGetLastError(), "biases and norms of projections");
}

}  // namespace moraine::gpu
