// Latents and rotated keys on their way into the cache, queries' RoPE, and latents on their way out
// to a product (RunLatentRows, GatherLatents). A block has one token; all is bound by memory.
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/latent_attention.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kThreads = 256;

__device__ uint64_t CacheRow(const LatentCache& cache, uint32_t token, uint32_t position) {
  const uint64_t page =
      cache.block_tables[uint64_t{token} * cache.table_stride + position / kKvPagePositions];
  return (page * kKvPagePositions + position % kKvPagePositions) * cache.width();
}

// Where the two values of pair i are among the rotated ones.
struct PairPlace {
  uint32_t first, second;
  __device__ PairPlace(const LatentRows& rows, uint32_t i)
      : first(rows.interleaved ? 2 * i : i),
        second(rows.interleaved ? 2 * i + 1 : i + rows.cache.rope / 2) {}
};

struct Turn {
  float cos, sin;
  __device__ float2 operator()(float first, float second) const {
    return make_float2(first * cos - second * sin, second * cos + first * sin);
  }
};

__device__ void WriteLatent(const LatentRows& rows, uint32_t token, uint32_t position,
                            const float* cos, const float* sin) {
  __shared__ float partial[kThreads / 32];
  const LatentCache& cache = rows.cache;
  const float* const from = rows.latents + uint64_t{token} * rows.latent_stride;
  float squares = 0;
  for (uint32_t c = threadIdx.x; c < cache.rank; c += kThreads) squares += from[c] * from[c];
  squares = WarpSum(squares);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = 0;
  for (const float of_warp : partial) sum += of_warp;
  const float factor = rsqrtf(sum / static_cast<float>(cache.rank) + rows.epsilon);
  const uint64_t to = CacheRow(cache, token, position);
  const auto store = [&](uint32_t column, float value) {
    if (cache.f32 != nullptr) {
      cache.f32[to + column] = value;
    } else {
      cache.bf16[to + column] = Bf16Bits(value);
    }
  };
  for (uint32_t c = threadIdx.x; c < cache.rank; c += kThreads) {
    store(c, from[c] * factor * rows.norm[c]);
  }
  for (uint32_t i = threadIdx.x; i < cache.rope / 2; i += kThreads) {
    const PairPlace place(rows, i);
    const float* const key = from + cache.rank;
    const float2 turned = Turn{cos[i], sin[i]}(key[place.first], key[place.second]);
    store(cache.rank + place.first, turned.x);
    store(cache.rank + place.second, turned.y);
  }
}

__global__ void __launch_bounds__(kThreads) PrepareLatents(const LatentRows rows) {
  const uint32_t token = blockIdx.x, rope = rows.cache.rope, half = rope / 2;
  LetNextStart();
  WaitForPrevious();
  const uint32_t position =
      rows.positions != nullptr ? rows.positions[token] : rows.first_position + token;
  const float* const cos = rows.cos + uint64_t{position} * half;
  const float* const sin = rows.sin + uint64_t{position} * half;
  WriteLatent(rows, token, position, cos, sin);
  for (uint32_t at = threadIdx.x; at < rows.heads * half; at += kThreads) {
    const uint32_t head = at / half, i = at % half;
    const PairPlace place(rows, i);
    const Turn turn = {cos[i], sin[i]};
    const uint64_t from =
        uint64_t{token} * rows.query_stride + head * (rows.nope + rope) + rows.nope;
    if (rows.queries_bf16 != nullptr) {
      uint16_t* const query = rows.queries_bf16 + from;
      const float2 turned = turn(Bf16Float(query[place.first]), Bf16Float(query[place.second]));
      query[place.first] = Bf16Bits(turned.x);
      query[place.second] = Bf16Bits(turned.y);
    } else {
      const float* const query = rows.queries_f32 + from;
      const float2 turned = turn(query[place.first], query[place.second]);
      float* const to = rows.absorbed +
                        (uint64_t{token} * rows.heads + head) * rows.cache.width() +
                        rows.cache.rank;
      to[place.first] = turned.x;
      to[place.second] = turned.y;
    }
  }
}

// A thread has 16 columns of a position: a group of the operand order.
__global__ void __launch_bounds__(kThreads)
    GatherRows(const LatentCache cache, uint32_t position_count, uint16_t* operand) {
  const uint32_t stride = OperandStride(cache.rank), groups = stride / 16;
  const uint64_t index = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  const uint64_t position = index / groups;
  if (position >= position_count) return;
  const uint32_t column = index % groups * 16;
  uint32_t words[8] = {};
  if (column < cache.rank) {
    const auto* from = reinterpret_cast<const uint4*>(
        cache.bf16 + CacheRow(cache, 0, static_cast<uint32_t>(position)) + column);
    const uint4 low = from[0], high = from[1];
    const uint32_t natural[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (uint32_t pair = 0; pair < 8; ++pair) words[OperandPosition(2 * pair) / 2] = natural[pair];
  }
  auto* const to = reinterpret_cast<uint4*>(operand + position * stride + column);
  to[0] = make_uint4(words[0], words[1], words[2], words[3]);
  to[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

}  // namespace

Status RunLatentRows(const LatentRows& rows, Stream stream) {
  if (rows.token_count == 0) return OkStatus();
  return Checked(LaunchChained(PrepareLatents, dim3(rows.token_count), kThreads, 0, stream, rows),
                 "norm and rotation of latents");
}

Status GatherLatents(const LatentCache& cache, uint32_t position_count, uint16_t* operand,
                     Stream stream) {
  if (cache.bf16 == nullptr) return Unsupported("gathering latents of a float32 cache");
  if (cache.rank % 16 != 0 || cache.width() % 8 != 0) {
    return Unsupported("gathering latents of " + std::to_string(cache.rank) + " values");
  }
  if (position_count == 0) return OkStatus();
  const uint64_t threads = uint64_t{position_count} * (OperandStride(cache.rank) / 16);
  const auto blocks = static_cast<uint32_t>((threads + kThreads - 1) / kThreads);
  GatherRows<<<blocks, kThreads, 0, stream>>>(cache, position_count, operand);
  return Checked(cudaGetLastError(), "gathering latents");
}

}  // namespace moraine::gpu
