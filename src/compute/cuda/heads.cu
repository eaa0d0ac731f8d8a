// Norm of query and key heads, RoPE, and the way into the KV cache (RunHeads). A warp has one head
// of one token.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/fp8.cuh"
#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"
#include "compute/e4m3.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kWarps = 8, kMaxHeadDim = 256;

// Four values of a head.
struct Four {
  float v[4];

  __device__ void Load(const HeadRows& rows, uint64_t at) {
    if (rows.bf16 != nullptr) {
      const uint2 words = *reinterpret_cast<const uint2*>(rows.bf16 + at);
      v[0] = LowFloat(words.x), v[1] = HighFloat(words.x);
      v[2] = LowFloat(words.y), v[3] = HighFloat(words.y);
    } else {
      const float4 four = *reinterpret_cast<const float4*>(rows.f32 + at);
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    }
  }
  __device__ float Squares() const {
    return v[0] * v[0] + v[1] * v[1] + (v[2] * v[2] + v[3] * v[3]);
  }
  __device__ void Store(uint16_t* to) const {
    *reinterpret_cast<uint2*>(to) = make_uint2(PackBf16(v[0], v[1]), PackBf16(v[2], v[3]));
  }
  __device__ void Store(float* to) const {
    *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
  }
  // The bits of the largest magnitude.
  __device__ uint32_t Largest() const {
    uint32_t largest = 0;
    for (int i = 0; i < 4; ++i) largest = max(largest, __float_as_uint(v[i]) & 0x7FFFFFFFu);
    return largest;
  }
  __device__ uint32_t Codes(uint32_t scale) const {
    return E4m3Code(v[0], scale) | E4m3Code(v[1], scale) << 8 | E4m3Code(v[2], scale) << 16 |
           E4m3Code(v[3], scale) << 24;
  }
};

// Value d of a head turned to its position; `head` has the values before.
__device__ float Turned(const HeadRows& rows, const float* head, uint32_t d, const float* cos,
                        const float* sin) {
  if (d >= rows.rotary_dim) return head[d];
  const uint32_t half = rows.rotary_dim / 2;
  if (rows.interleaved) {
    return d % 2 == 0 ? head[d] * cos[d / 2] - head[d + 1] * sin[d / 2]
                      : head[d] * cos[d / 2] + head[d - 1] * sin[d / 2];
  }
  return d < half ? head[d] * cos[d] - head[d + half] * sin[d]
                  : head[d] * cos[d - half] + head[d - half] * sin[d - half];
}

// How a head lies in a warp: lane l has dimensions 4 l .. 4 l + 3 of each 128. kCommon: one part of
// at most 128 dimensions, halves that turn with each other, of a multiple of 4; then a lane turns
// with another lane's four values. All cases in one kernel would take 108 registers instead of 26.
template <bool kCommon>
struct Head {
  static constexpr uint32_t kParts = kCommon ? 1 : kMaxHeadDim / 128;
  Four parts[kParts];

  __device__ void Load(const HeadRows& rows, uint64_t at, uint32_t lane) {
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d < rows.kv.head_dim) parts[i].Load(rows, at + d);
    }
  }
  __device__ void Norm(const HeadRows& rows, const float* norm, uint32_t lane) {
    float squares = 0;
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      if (i * 128 + lane * 4 < rows.kv.head_dim) squares += parts[i].Squares();
    }
    const float factor =
        rsqrtf(WarpSum(squares) / static_cast<float>(rows.kv.head_dim) + rows.epsilon);
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d >= rows.kv.head_dim) continue;
      const float4 weight = *reinterpret_cast<const float4*>(norm + d);
      float* const v = parts[i].v;
      v[0] *= factor * weight.x, v[1] *= factor * weight.y;
      v[2] *= factor * weight.z, v[3] *= factor * weight.w;
    }
  }
  // cos, sin: of the token. buffer: for a head.
  __device__ void Turn(const HeadRows& rows, const float* cos, const float* sin, float* buffer,
                       uint32_t lane) {
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d < rows.kv.head_dim) parts[i].Store(buffer + d);
    }
    __syncwarp();
    const uint32_t half = rows.rotary_dim / 2, d = lane * 4;
    if constexpr (kCommon) {
      if (d >= rows.rotary_dim) return;
      const bool first = d < half;
      const uint32_t angle = first ? d : d - half;
      const float4 c = *reinterpret_cast<const float4*>(cos + angle);
      float4 s = *reinterpret_cast<const float4*>(sin + angle);
      const float4 other = *reinterpret_cast<const float4*>(buffer + (first ? d + half : angle));
      if (first) s = make_float4(-s.x, -s.y, -s.z, -s.w);
      float* const v = parts[0].v;
      v[0] = v[0] * c.x + other.x * s.x, v[1] = v[1] * c.y + other.y * s.y;
      v[2] = v[2] * c.z + other.z * s.z, v[3] = v[3] * c.w + other.w * s.w;
    } else {
#pragma unroll 1
      for (uint32_t i = 0; i < kParts; ++i) {
        for (uint32_t e = 0; e < 4 && i * 128 + d < rows.kv.head_dim; ++e) {
          parts[i].v[e] = Turned(rows, buffer, i * 128 + d + e, cos, sin);
        }
      }
    }
  }
  template <typename Value>
  __device__ void Store(Value* to, uint32_t dim, uint32_t lane) const {
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d < dim) parts[i].Store(to + d);
    }
  }
  // index: in the page, of whose codes `page` is the first.
  __device__ void StoreFp8(uint8_t* page, uint32_t dim, uint32_t index, uint32_t lane) const {
    uint32_t largest = 0;
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      if (i * 128 + lane * 4 < dim) largest = max(largest, parts[i].Largest());
    }
    const uint32_t scale = E4m3Scale(__reduce_max_sync(~0u, largest));
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d < dim) *reinterpret_cast<uint32_t*>(page + index * dim + d) = parts[i].Codes(scale);
    }
    if (lane == 0) page[kKvPagePositions * dim + index] = static_cast<uint8_t>(scale);
  }
};

template <bool kCommon, bool kFp8>
__global__ void __launch_bounds__(kWarps * 32) PrepareHeads(const HeadRows rows) {
  __shared__ __align__(16) float buffers[kWarps][kCommon ? 128 : kMaxHeadDim];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, token = blockIdx.y;
  const uint32_t dim = rows.kv.head_dim, kv_heads = rows.kv.kv_heads;
  const uint32_t index = blockIdx.x * kWarps + warp;
  LetNextStart();
  WaitForPrevious();
  if (index >= rows.query_heads + 2 * kv_heads) return;
  const bool is_query = index < rows.query_heads, is_value = index >= rows.query_heads + kv_heads;
  const uint32_t position =
      rows.positions != nullptr ? rows.positions[token] : rows.first_position + token;
  Head<kCommon> head;
  head.Load(rows, uint64_t{token} * rows.stride + index * dim, lane);
  if (!is_value) {
    const float* norm = is_query ? rows.q_norm : rows.k_norm;
    if (norm != nullptr) head.Norm(rows, norm, lane);
    const uint64_t angles = uint64_t{position} * (rows.rotary_dim / 2);
    head.Turn(rows, rows.cos + angles, rows.sin + angles, buffers[warp], lane);
  }
  if (is_query) {
    const uint64_t to = (uint64_t{token} * rows.query_heads + index) * dim;
    if (rows.queries_bf16 != nullptr) {
      head.Store(rows.queries_bf16 + to, dim, lane);
    } else {
      head.Store(rows.queries_f32 + to, dim, lane);
    }
    return;
  }
  const uint32_t kv_head = index - rows.query_heads - (is_value ? kv_heads : 0);
  const uint32_t page =
      rows.kv.block_tables[uint64_t{token} * rows.kv.table_stride + position / kKvPagePositions];
  if constexpr (kFp8) {
    head.StoreFp8((is_value ? rows.kv.values_fp8 : rows.kv.keys_fp8) +
                      Fp8HeadAt(rows.kv, page, kv_head),
                  dim, position % kKvPagePositions, lane);
    return;
  }
  const uint64_t to =
      ((uint64_t{page} * kv_heads + kv_head) * kKvPagePositions + position % kKvPagePositions) *
      dim;
  if (rows.kv.keys_f32 != nullptr) {
    head.Store((is_value ? rows.kv.values_f32 : rows.kv.keys_f32) + to, dim, lane);
  } else {
    head.Store((is_value ? rows.kv.values : rows.kv.keys) + to, dim, lane);
  }
}

}  // namespace

Status RunHeads(const HeadRows& rows, Stream stream) {
  const uint32_t dim = rows.kv.head_dim;
  if (dim % 4 != 0 || dim > kMaxHeadDim || rows.rotary_dim % 2 != 0 || rows.rotary_dim > dim) {
    return Unsupported("heads of " + std::to_string(dim) + " dimensions, " +
                       std::to_string(rows.rotary_dim) + " of them rotary, on the GPU");
  }
  if (rows.token_count == 0) return OkStatus();
  const uint32_t head_count = rows.query_heads + 2 * rows.kv.kv_heads;
  // 65,535 is the most that a grid's second dimension has.
  for (uint32_t first = 0; first < rows.token_count; first += 65535) {
    HeadRows part = rows;
    part.token_count = std::min(rows.token_count - first, 65535u);
    part.first_position += first;
    if (rows.positions != nullptr) part.positions += first;
    if (rows.bf16 != nullptr) part.bf16 += uint64_t{first} * rows.stride;
    if (rows.f32 != nullptr) part.f32 += uint64_t{first} * rows.stride;
    const uint64_t queries = uint64_t{first} * rows.query_heads * dim;
    if (rows.queries_bf16 != nullptr) part.queries_bf16 += queries;
    if (rows.queries_f32 != nullptr) part.queries_f32 += queries;
    part.kv.block_tables += uint64_t{first} * rows.kv.table_stride;
    const dim3 grid(CeilDivide(head_count, kWarps), part.token_count);
    const bool common = dim <= 128 && !rows.interleaved && rows.rotary_dim % 8 == 0;
    const bool fp8 = rows.kv.keys_fp8 != nullptr;
    const auto kernel = common ? (fp8 ? PrepareHeads<true, true> : PrepareHeads<true, false>)
                               : (fp8 ? PrepareHeads<false, true> : PrepareHeads<false, false>);
    RETURN_IF_ERROR(Checked(LaunchChained(kernel, grid, kWarps * 32, 0, stream, part),
                            "norm and rotation of heads"));
  }
  return OkStatus();
}

}  // namespace moraine::gpu
