// Rows weighed by sigmoids (gates.h). A thread has one value.
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/gates.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kThreads = 256;

__global__ void __launch_bounds__(kThreads) WeighRows(const GateRows rows) {
  const uint32_t c = blockIdx.y * kThreads + threadIdx.x, token = blockIdx.x;
  if (c >= rows.cols) return;
  const uint64_t at = uint64_t{token} * rows.gate_stride + (rows.gate_cols == 1 ? 0 : c);
  const float gate = rows.gate_bf16 != nullptr ? Bf16Float(rows.gate_bf16[at]) : rows.gate_f32[at];
  const float weight = 1.0f / (1.0f + expf(-gate));
  if (rows.operand != nullptr) {
    uint16_t& x = rows.operand[uint64_t{token} * OperandStride(rows.cols) + OperandPosition(c)];
    x = Bf16Bits(Bf16Float(x) * weight);
  } else {
    rows.f32[uint64_t{token} * rows.stride + c] *= weight;
  }
}

}  // namespace

Status RunGateRows(const GateRows& rows, Stream stream) {
  if (rows.token_count == 0 || rows.cols == 0) return OkStatus();
  if (rows.gate_cols != 1 && rows.gate_cols != rows.cols) {
    return InvalidArgument(std::to_string(rows.gate_cols) + " gates of rows of " +
                           std::to_string(rows.cols) + " values: expected as many, or 1");
  }
  const dim3 grid(rows.token_count, CeilDivide(rows.cols, kThreads));
  WeighRows<<<grid, kThreads, 0, stream>>>(rows);
  return Checked(cudaGetLastError(), "gates of rows");
}

}  // namespace moraine::gpu
