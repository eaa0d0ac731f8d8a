// Attention of one token, its past split over blocks (RunDecodeAttention).
//
// A block has 8 query heads of one KV head and a run of pages; each of its warps takes every 8th
// (or 4th) unit of 16 positions through shared memory of its own, without a barrier. The 16 rows of
// mma.sync are the 8 heads twice: bf16 of the queries (then of the weights), and what bf16 leaves.
// Both come out in the same lane, so that the sum costs one addition.
//
// The last block of a head to finish adds the runs up, in order: one launch.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/attention_launch.h"
#include "compute/cuda/decode_runs.cuh"
#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

template <int kDim>
struct Sizes {
  static constexpr uint32_t kWarps = kDim > 128 ? 4 : 8;
  static constexpr uint32_t kTileBytes = kUnit * kDim * 2;    // keys, or values, of a unit
  static constexpr uint32_t kWarpBytes = 2 * 2 * kTileBytes;  // two stages of both
  static constexpr uint32_t kStateBytes = kHeads * StateFloats(kDim) * 4;
  static constexpr uint32_t kSharedBytes = kWarps * std::max(kWarpBytes, kStateBytes);
  static constexpr uint32_t kChunks = kDim / 8;  // of 16 bytes in a row
  static constexpr uint32_t kSwizzle = kChunks < 8 ? kChunks - 1 : 7;
  // Byte of chunk `chunk` of a row in a tile. 96 dimensions are 12 chunks: XOR stays within 8.
  __device__ static uint32_t At(uint32_t row, uint32_t chunk) {
    const uint32_t low = chunk % 8, high = chunk - low;
    const uint32_t mask = kChunks - high >= 8 ? 7 : kChunks % 8 >= 4 ? 3 : kSwizzle & 1;
    return (row * kChunks + high + (low ^ (row & mask))) * 16;
  }
};

// One warp's part.
template <int kDim>
struct Walker {
  using Size = Sizes<kDim>;
  float out[kDim / 8][4] = {};
  uint32_t queries[kDim / 16][4];
  // Of rows (heads) g only: the rest in rows g + 8 belongs to the same head.
  float maximum = -INFINITY, sum = 0;
  uint32_t lane;

  // rows: query_heads x head_dim; those from head_count on are zero.
  __device__ void LoadQueries(const float* rows, uint32_t head_count, float scale) {
    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
      float2 first = {}, second = {};
      if (g < head_count) {
        const float* row = rows + g * kDim + s * 16 + 2 * t;
        first = *reinterpret_cast<const float2*>(row);
        second = *reinterpret_cast<const float2*>(row + 8);
      }
      queries[s][0] = PackBf16(first.x * scale, first.y * scale);
      queries[s][1] = PackRest(first.x * scale, first.y * scale, queries[s][0]);
      queries[s][2] = PackBf16(second.x * scale, second.y * scale);
      queries[s][3] = PackRest(second.x * scale, second.y * scale, queries[s][2]);
    }
  }

  __device__ void Copy(uint32_t stage, const uint16_t* keys, const uint16_t* values) const {
    for (uint32_t i = lane; i < kUnit * Size::kChunks; i += 32) {
      const uint32_t at = Size::At(i / Size::kChunks, i % Size::kChunks);
      CopyChunk(stage + at, keys + i * 8);
      CopyChunk(stage + Size::kTileBytes + at, values + i * 8);
    }
  }

  // visible: how many of the unit's positions the token sees, at least one.
  __device__ void Add(uint32_t stage, uint32_t visible) {
    const uint32_t t = lane % 4;
    float scores[2][4] = {};
#pragma unroll
    for (uint32_t s = 0; s < kDim / 16; ++s) {
      uint32_t b[4];  // positions 0 .. 7: both halves of 16 dimensions; then 8 .. 15
      LoadMatrices(stage + Size::At(lane / 16 * 8 + lane % 8, 2 * s + lane / 8 % 2), b);
      Mma(scores[0], queries[s], b[0], b[1]);
      Mma(scores[1], queries[s], b[2], b[3]);
    }
    if (visible < kUnit) ClearValues(stage, visible);
    float p[4];
    float highest = maximum;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      p[i] = scores[i / 2][i % 2] + scores[i / 2][i % 2 + 2];
      if (i / 2 * 8 + 2 * t + i % 2 >= visible) p[i] = -INFINITY;
      highest = fmaxf(highest, p[i]);
    }
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    const float factor = Exp2(maximum - highest);
    maximum = highest;
#pragma unroll
    for (int i = 0; i < 4; ++i) p[i] = Exp2(p[i] - highest);
    sum = sum * factor + ((p[0] + p[1]) + (p[2] + p[3]));
    uint32_t a[4];
    a[0] = PackBf16(p[0], p[1]);
    a[1] = PackRest(p[0], p[1], a[0]);
    a[2] = PackBf16(p[2], p[3]);
    a[3] = PackRest(p[2], p[3], a[2]);
#pragma unroll
    for (uint32_t n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];  // dimensions 16 n .. + 7: both halves of 16 positions; then the next 8
      LoadTransposed(
          stage + Size::kTileBytes + Size::At(lane / 8 % 2 * 8 + lane % 8, 2 * n + lane / 16), b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[2 * n][i] *= factor;
        out[2 * n + 1][i] *= factor;
      }
      Mma(out[2 * n], a, b[0], b[1]);
      Mma(out[2 * n + 1], a, b[2], b[3]);
    }
  }

  // What a page has past the last position may be anything, NaN too, which a weight of 0 does not
  // undo.
  __device__ void ClearValues(uint32_t stage, uint32_t visible) const {
    for (uint32_t i = visible * Size::kChunks + lane; i < kUnit * Size::kChunks; i += 32) {
      const uint32_t at = Size::At(i / Size::kChunks, i % Size::kChunks);
      asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(stage + Size::kTileBytes + at),
                   "r"(0)
                   : "memory");
    }
    __syncwarp();
  }

  // Into kHeads states; the sums of a row's four lanes are still apart.
  __device__ void Store(float* states) {
    const uint32_t g = lane / 4, t = lane % 4;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    float* const state = states + g * StateFloats(kDim);
    if (t == 0) {
      state[kDim] = maximum;
      state[kDim + 1] = sum;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(state + n * 8 + 2 * t) =
          make_float2(out[n][0] + out[n][2], out[n][1] + out[n][3]);
    }
  }
};

template <int kDim>
__global__ void __launch_bounds__(Sizes<kDim>::kWarps * 32)
    AttendToRuns(const DecodeAttention attention, uint32_t* counters, float* run_states) {
  using Size = Sizes<kDim>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Totals totals;
  const uint32_t warp = threadIdx.x / 32;
  LetNextStart();
  WaitForPrevious();
  const RunWork work(attention);
  if (!work.any()) return;
  const PagedKv& kv = attention.kv;

  Walker<kDim> walker;
  walker.lane = threadIdx.x % 32;
  const uint32_t stages = SharedAddress(shared) + warp * Size::kWarpBytes;
  const auto copy = [&](uint32_t unit, uint32_t stage) {
    if (unit < work.units_end) {
      const uint64_t page = work.table[unit / kPageUnits];
      const uint64_t at = ((page * kv.kv_heads + work.kv_head) * kKvPagePositions +
                           unit * kUnit % kKvPagePositions) *
                          kDim;
      walker.Copy(stages + stage * 2 * Size::kTileBytes, kv.keys + at, kv.values + at);
    }
    CommitCopies();
  };
  copy(work.begin + warp, 0);
  walker.LoadQueries(attention.queries + work.place(attention) * kDim, work.head_count,
                     attention.scale * kLog2e);
  uint32_t stage = 0;
  for (uint32_t unit = work.begin + warp; unit < work.units_end;
       unit += Size::kWarps, stage ^= 1) {
    copy(unit + Size::kWarps, stage ^ 1);
    WaitCopies<1>();
    __syncwarp();
    walker.Add(stages + stage * 2 * Size::kTileBytes, min(work.end - unit * kUnit, kUnit));
    __syncwarp();
  }
  WaitCopies<0>();
  __syncthreads();  // states overlay all warps' stages
  float* const states = reinterpret_cast<float*>(shared);
  walker.Store(states + warp * kHeads * StateFloats(kDim));
  __syncthreads();
  FinishRun<kDim, Size::kWarps>(attention, work, states, totals, counters, run_states);
}

template <int kDim>
Status Launch(const DecodeAttention& attention, Stream stream) {
  using Size = Sizes<kDim>;
  return LaunchRuns(AttendToRuns<kDim>, Size::kWarps, Size::kSharedBytes, attention, stream);
}

}  // namespace

Status RunDecodeAttention(const DecodeAttention& attention, Stream stream) {
  if (attention.kv.kv_heads == 0 || attention.query_heads % attention.kv.kv_heads != 0) {
    return InvalidArgument(std::to_string(attention.query_heads) + " query heads over " +
                           std::to_string(attention.kv.kv_heads) + " KV heads");
  }
  if (attention.token_count == 0) return OkStatus();
  if (attention.kv.keys_f32 != nullptr) return LaunchDecodeAttentionF32(attention, stream);
  if (attention.kv.keys_fp8 != nullptr) return LaunchDecodeAttentionFp8(attention, stream);
  switch (attention.kv.head_dim) {
    case 16:
      return Launch<16>(attention, stream);
    case 32:
      return Launch<32>(attention, stream);
    case 64:
      return Launch<64>(attention, stream);
    case 96:
      return Launch<96>(attention, stream);
    case 128:
      return Launch<128>(attention, stream);
    case 256:
      return Launch<256>(attention, stream);
    default:
      break;
  }
  return Unsupported("attention with heads of " + std::to_string(attention.kv.head_dim) +
                     " dimensions on the GPU");
}

}  // namespace moraine::gpu
