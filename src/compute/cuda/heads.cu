// Norm of query and key heads, RoPE, and the way into the KV cache (RunHeads). A warp has one head of
// one token.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

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

// Values d .. d + 3.
__device__ void Turn(const HeadRows& rows, const float* head, uint32_t d, const float* cos,
                     const float* sin, float (&v)[4]) {
  const uint32_t half = rows.rotary_dim / 2;
  if (rows.interleaved || half % 4 != 0 || d >= rows.rotary_dim) {
    for (int e = 0; e < 4; ++e) v[e] = Turned(rows, head, d + e, cos, sin);
    return;
  }
  const uint32_t angle = d < half ? d : d - half;
  const float4 c = *reinterpret_cast<const float4*>(cos + angle);
  const float4 s = *reinterpret_cast<const float4*>(sin + angle);
  const float4 x = *reinterpret_cast<const float4*>(head + d);
  const float4 y = *reinterpret_cast<const float4*>(d < half ? head + d + half : head + angle);
  const float sign = d < half ? -1.0f : 1.0f;
  v[0] = x.x * c.x + sign * y.x * s.x, v[1] = x.y * c.y + sign * y.y * s.y;
  v[2] = x.z * c.z + sign * y.z * s.z, v[3] = x.w * c.w + sign * y.w * s.w;
}

// A head in a warp: lane l has dimensions 4 l .. 4 l + 3 of each 128.
constexpr uint32_t kParts = kMaxHeadDim / 128;
struct Head {
  Four parts[kParts];

  __device__ void Load(const HeadRows& rows, uint64_t row, uint32_t head, uint32_t lane) {
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d < rows.kv.head_dim) parts[i].Load(rows, row + uint64_t{head} * rows.kv.head_dim + d);
    }
  }
  // `buffer` takes the head in between.
  __device__ void NormAndTurn(const HeadRows& rows, const float* norm, uint64_t angles, float* buffer,
                              uint32_t lane) {
    const uint32_t dim = rows.kv.head_dim;
    float squares = 0;
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      if (i * 128 + lane * 4 < dim) squares += parts[i].Squares();
    }
    const float factor =
        norm == nullptr ? 1 : rsqrtf(WarpSum(squares) / static_cast<float>(dim) + rows.epsilon);
    __syncwarp();  // the buffer's last head has been read
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d >= dim) continue;
      float4 weight = {1, 1, 1, 1};
      if (norm != nullptr) weight = *reinterpret_cast<const float4*>(norm + d);
      const float* v = parts[i].v;
      *reinterpret_cast<float4*>(buffer + d) =
          make_float4(v[0] * factor * weight.x, v[1] * factor * weight.y, v[2] * factor * weight.z,
                      v[3] * factor * weight.w);
    }
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < kParts; ++i) {
      const uint32_t d = i * 128 + lane * 4;
      if (d < dim) Turn(rows, buffer, d, rows.cos + angles, rows.sin + angles, parts[i].v);
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
};

// A block has one token, or a part of its heads; while a warp works on one head, its next one comes.
__global__ void __launch_bounds__(kWarps * 32) PrepareHeads(const HeadRows rows) {
  __shared__ __align__(16) float buffers[kWarps][kMaxHeadDim];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, token = blockIdx.y;
  const uint32_t dim = rows.kv.head_dim, kv_heads = rows.kv.kv_heads;
  const uint32_t head_count = rows.query_heads + 2 * kv_heads, step = gridDim.x * kWarps;
  const uint64_t row = uint64_t{token} * rows.stride;
  LetNextStart();
  WaitForPrevious();
  uint32_t head = blockIdx.x * kWarps + warp;
  Head current;
  if (head < head_count) current.Load(rows, row, head, lane);
  const uint32_t position =
      rows.positions != nullptr ? rows.positions[token] : rows.first_position + token;
  const uint32_t page =
      rows.kv.block_tables[uint64_t{token} * rows.kv.table_stride + position / kKvPagePositions];
  for (; head < head_count; head += step) {
    Head next;
    if (head + step < head_count) next.Load(rows, row, head + step, lane);
    const bool is_query = head < rows.query_heads, is_value = head >= rows.query_heads + kv_heads;
    if (!is_value) {
      current.NormAndTurn(rows, is_query ? rows.q_norm : rows.k_norm,
                          uint64_t{position} * (rows.rotary_dim / 2), buffers[warp], lane);
    }
    if (is_query) {
      const uint64_t to = (uint64_t{token} * rows.query_heads + head) * dim;
      if (rows.queries_bf16 != nullptr) {
        current.Store(rows.queries_bf16 + to, dim, lane);
      } else {
        current.Store(rows.queries_f32 + to, dim, lane);
      }
    } else {
      const uint32_t kv_head = (head - rows.query_heads) % kv_heads;
      const uint64_t to = ((uint64_t{page} * kv_heads + kv_head) * kKvPagePositions +
                           position % kKvPagePositions) *
                          dim;
      if (rows.kv.keys_f32 != nullptr) {
        current.Store((is_value ? rows.kv.values_f32 : rows.kv.keys_f32) + to, dim, lane);
      } else {
        current.Store((is_value ? rows.kv.values : rows.kv.keys) + to, dim, lane);
      }
    }
    current = next;
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
    // A warp a head. All heads of a token in one block, several a warp, were slower (H200, 8192 tokens:
    // 200 us for 110).
    const dim3 grid(CeilDivide(head_count, kWarps), part.token_count);
    RETURN_IF_ERROR(Checked(LaunchChained(PrepareHeads, grid, kWarps * 32, 0, stream, part),
                            "norm and rotation of heads"));
  }
  return OkStatus();
}

}  // namespace moraine::gpu
