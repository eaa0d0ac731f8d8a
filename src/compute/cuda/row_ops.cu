// Embedding, norms and the activation of dense feed-forwards (row_ops.h). A block has one row; a
// thread 4 neighbouring columns at a time.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/grouped_gemm.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"
#include "compute/cuda/row_ops.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kThreads = 256;

// Element (row, column), read by byte arithmetic from encoding.h's diagram.
__device__ float Element(const DeviceMatrix& matrix, uint32_t row, uint32_t column) {
  const uint64_t index = uint64_t{row / kTileRows} * TileCount(matrix.cols) + column / kTileCols;
  const auto* tile =
      reinterpret_cast<const unsigned char*>(matrix.data) + index * TileBytes(matrix.encoding);
  const uint32_t r = row % kTileRows, c = column % kTileCols;
  if (matrix.encoding == Encoding::kF32) {
    return *reinterpret_cast<const float*>(tile + (c * 16 + r) * 4);
  }
  if (matrix.encoding == Encoding::kBf16) {
    return Bf16Float(*reinterpret_cast<const uint16_t*>(tile + (c / 2 * 16 + r) * 4 + c % 2 * 2));
  }
  const float scale = __half2float(*reinterpret_cast<const __half*>(tile + c / 32 * 32 + r * 2));
  if (matrix.encoding == Encoding::kQ8) {
    const auto code = static_cast<signed char>(tile[64 + (c / 4 * 16 + r) * 4 + c % 4]);
    return static_cast<float>(code) * scale;
  }
  const uint32_t i = c % 16;
  const uint32_t byte = tile[64 + c / 32 * 256 + (i / 4 * 16 + r) * 4 + i % 4];
  return (static_cast<float>(c % 32 < 16 ? byte & 15 : byte >> 4) - 8) * scale;
}

__global__ void __launch_bounds__(kThreads) EmbedRows(const Embedding embedding) {
  const auto row = static_cast<uint32_t>(embedding.tokens[blockIdx.x]);
  float* const x = embedding.x + uint64_t{blockIdx.x} * embedding.x_stride;
  for (uint32_t c = threadIdx.x; c < embedding.matrix.cols; c += kThreads) {
    x[c] = Element(embedding.matrix, row, c);
  }
}

__device__ float4 LoadFour(const float* row, uint32_t c, uint32_t cols) {
  if (c + 4 <= cols) return *reinterpret_cast<const float4*>(row + c);
  float v[4] = {};
  for (uint32_t i = 0; c + i < cols; ++i) v[i] = row[c + i];
  return make_float4(v[0], v[1], v[2], v[3]);
}
__device__ void StoreFour(float* row, uint32_t c, uint32_t cols, const float4& v) {
  if (c + 4 <= cols) {
    *reinterpret_cast<float4*>(row + c) = v;
    return;
  }
  const float values[4] = {v.x, v.y, v.z, v.w};
  for (uint32_t i = 0; c + i < cols; ++i) row[c + i] = values[i];
}
// Columns c .. c + 3, c a multiple of 4, of a row in operand order: two words.
__device__ void StoreOperand(uint16_t* row, uint32_t c, const float4& v) {
  uint16_t* const to = row + OperandPosition(c);
  *reinterpret_cast<uint32_t*>(to) = PackBf16(v.x, v.y);
  *reinterpret_cast<uint32_t*>(to + 8) = PackBf16(v.z, v.w);
}

__global__ void __launch_bounds__(kThreads) NormRows(const RowNorm norm) {
  extern __shared__ __align__(16) float values[];  // the row, padded to whole tiles
  __shared__ float partial[kThreads / 32];
  const uint32_t cols = norm.cols, padded = OperandStride(cols), token = blockIdx.x;
  float* const row = norm.x + uint64_t{token} * norm.x_stride;
  float squares = 0;
  for (uint32_t c = threadIdx.x * 4; c < padded; c += kThreads * 4) {
    float4 v = make_float4(0, 0, 0, 0);
    if (c < cols) {
      v = LoadFour(row, c, cols);
      if (norm.addend != nullptr) {
        const float4 a = LoadFour(norm.addend + uint64_t{token} * norm.addend_stride, c, cols);
        v = make_float4(v.x + a.x, v.y + a.y, v.z + a.z, v.w + a.w);
        StoreFour(row, c, cols, v);
      }
    }
    *reinterpret_cast<float4*>(values + c) = v;
    squares += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
  }
  squares = WarpSum(squares);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = 0;
  for (uint32_t w = 0; w < kThreads / 32; ++w) sum += partial[w];
  const float factor = rsqrtf(sum / static_cast<float>(cols) + norm.epsilon);
  for (uint32_t c = threadIdx.x * 4; c < padded; c += kThreads * 4) {
    float4 v = *reinterpret_cast<const float4*>(values + c);
    if (c < cols) {
      const float4 w = LoadFour(norm.weight, c, cols);
      v = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z,
                      v.w * factor * w.w);
    }
    if (norm.operand != nullptr) StoreOperand(norm.operand + uint64_t{token} * padded, c, v);
    if (c >= cols) continue;
    if (norm.natural != nullptr) {
      uint16_t* const to = norm.natural + uint64_t{token} * cols + c;
      const float four[4] = {v.x, v.y, v.z, v.w};
      if (cols % 4 == 0) {
        *reinterpret_cast<uint2*>(to) = make_uint2(PackBf16(v.x, v.y), PackBf16(v.z, v.w));
      } else {
        for (uint32_t i = 0; i < 4 && c + i < cols; ++i) to[i] = Bf16Bits(four[i]);
      }
    }
    if (norm.normed != nullptr) {
      float* const to = norm.normed + uint64_t{token} * cols;
      if (cols % 4 == 0) {
        StoreFour(to, c, cols, v);
      } else {
        const float four[4] = {v.x, v.y, v.z, v.w};
        for (uint32_t i = 0; i < 4 && c + i < cols; ++i) to[c + i] = four[i];
      }
    }
  }
}

__device__ float Gated(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }

__global__ void __launch_bounds__(kThreads) GateRows(const GatedRows rows) {
  const uint32_t n = rows.intermediate, token = blockIdx.y;
  const uint32_t c = (blockIdx.x * kThreads + threadIdx.x) * 4;
  const uint64_t row = uint64_t{token} * rows.stride;
  float v[4] = {};
  for (uint32_t i = 0; i < 4 && c + i < n; ++i) {
    v[i] = rows.bf16 != nullptr
               ? Gated(Bf16Float(rows.bf16[row + c + i]), Bf16Float(rows.bf16[row + n + c + i]))
               : Gated(rows.f32[row + c + i], rows.f32[row + n + c + i]);
  }
  if (rows.operand != nullptr && c < OperandStride(n)) {
    StoreOperand(rows.operand + uint64_t{token} * OperandStride(n), c,
                 make_float4(v[0], v[1], v[2], v[3]));
  }
  if (rows.activated == nullptr) return;
  for (uint32_t i = 0; i < 4 && c + i < n; ++i) {
    rows.activated[uint64_t{token} * n + c + i] = v[i];
  }
}

}  // namespace

Status RunEmbedding(const Embedding& embedding, Stream stream) {
  const Encoding encoding = embedding.matrix.encoding;
  if (encoding > Encoding::kQ4) {
    return Unsupported(std::string("embedding in ") + EncodingName(encoding) +
                       ": expected q4, q8, bf16 or f32");
  }
  if (embedding.token_count == 0) return OkStatus();
  EmbedRows<<<embedding.token_count, kThreads, 0, stream>>>(embedding);
  return Checked(cudaGetLastError(), "embedding");
}

Status RunRowNorm(const RowNorm& norm, Stream stream) {
  if (norm.token_count == 0) return OkStatus();
  const uint32_t bytes = OperandStride(norm.cols) * 4;
  if (bytes > MaxSharedBytes()) {
    return Unsupported("norm of rows of " + std::to_string(norm.cols) + " values");
  }
  RETURN_IF_ERROR(Checked(AllowShared(NormRows, bytes), "norm"));
  NormRows<<<norm.token_count, kThreads, bytes, stream>>>(norm);
  return Checked(cudaGetLastError(), "norm");
}

Status RunGatedRows(const GatedRows& rows, Stream stream) {
  if (rows.token_count == 0) return OkStatus();
  const dim3 grid(CeilDivide(OperandStride(rows.intermediate), 4 * kThreads), rows.token_count);
  GateRows<<<grid, kThreads, 0, stream>>>(rows);
  return Checked(cudaGetLastError(), "activation of gated rows");
}

}  // namespace moraine::gpu
