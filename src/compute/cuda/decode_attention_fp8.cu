// RunDecodeAttention over a cache in fp8.
//
// The work is cut as over bf16 (decode_runs.cuh), but nothing goes through shared memory: which dimensions are
// side by side in a product is free as long as queries and keys agree, and which column of a product is which
// dimension of a value is free until the end. So a lane loads 16 bytes of a row at a time, whose 16 codes are its own
// operands of mma.sync in 4 steps (keys) or 16 columns (values). The next units' codes are on their way to registers
// meanwhile.
//
// Scales are powers of two: a key's multiplies its score, a value's the weight of its position, both in float32. Of
// queries and of these weights bf16 and what bf16 leaves take part, as over bf16.
//
// One token's blocks are at most one a multiprocessor, and have registers for two units of each warp; those of several
// tokens are two a multiprocessor with one unit each, so that one begins or ends while the other computes. The
// arithmetic is pinned (no contraction that a compiler may choose): a token's bits are the same in both.
#include <cuda_runtime.h>

#include <type_traits>

#include "compute/cuda/attention_launch.h"
#include "compute/cuda/decode_runs.cuh"
#include "compute/cuda/fp8.cuh"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

// Calls function(begin, size) as constants for a row of kLeft dimensions cut into kMost, half of it and so on: what a
// row's lanes load at once, 16 bytes a lane at most.
template <int kMost, int kBegin, int kLeft, typename Function>
__device__ __forceinline__ void ForParts(const Function& function) {
  if constexpr (kLeft >= kMost) {
    function(std::integral_constant<int, kBegin>(), std::integral_constant<int, kMost>());
    ForParts<kMost, kBegin + kMost, kLeft - kMost>(function);
  } else if constexpr (kLeft > 0) {
    ForParts<kMost / 2, kBegin, kLeft>(function);
  }
}

template <int kBytes>
__device__ __forceinline__ void LoadBytes(const uint8_t* from, uint32_t* words) {
  if constexpr (kBytes == 16) {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
  } else if constexpr (kBytes == 8) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    words[0] = two.x, words[1] = two.y;
  } else if constexpr (kBytes == 4) {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  } else {
    static_assert(kBytes == 2);
    words[0] = *reinterpret_cast<const uint16_t*>(from);
  }
}

// What a lane 4g + t has of a unit: keys of positions g and g + 8, a quarter of each; values of positions 2t, 2t + 1, 2t +
// 8 and 2t + 9, an eighth of each; the scales of the latter four, of keys and of values, two a word.
template <int kDim>
struct Codes {
  static constexpr int kKeyWords = kDim / 16, kValueWords = (kDim + 31) / 32;
  uint32_t keys[2][kKeyWords], values[4][kValueWords];
  uint32_t key_scales[2], value_scales[2];

  // index: of the unit in its page.
  __device__ __forceinline__ void Load(const uint8_t* keys_of_head, const uint8_t* values_of_head,
                                       uint32_t index, uint32_t lane) {
    const uint32_t g = lane / 4, t = lane % 4, first = index * kUnit;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint8_t* row = keys_of_head + (first + g + 8 * i) * kDim;
      ForParts<64, 0, kDim>([&](auto begin, auto size) {
        LoadBytes<size / 4>(row + begin + t * (size / 4), keys[i] + begin / 16);
      });
      const uint32_t scale = kKvPagePositions * kDim + first + 2 * t + 8 * i;
      key_scales[i] = *reinterpret_cast<const uint16_t*>(keys_of_head + scale);
      value_scales[i] = *reinterpret_cast<const uint16_t*>(values_of_head + scale);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint8_t* row = values_of_head + (first + 2 * t + i % 2 + i / 2 * 8) * kDim;
      ForParts<128, 0, kDim>([&](auto begin, auto size) {
        LoadBytes<size / 8>(row + begin + g * (size / 8), values[i] + begin / 32);
      });
    }
  }
  __device__ static float Scale(const uint32_t (&scales)[2], uint32_t i) {
    return Fp8Scale(scales[i / 2] >> (i % 2 * 8) & 0xFF);
  }
};

// Queries of a block as operands: [16 dimensions of a product][lane], bf16 and the rest as in decode_attention.cu, in the order
// in which lanes have keys.
template <int kDim>
__device__ void PackQueries(const float* rows, uint32_t head_count, float scale, uint4* queries) {
  for (uint32_t i = threadIdx.x; i < kDim / 16 * 32; i += blockDim.x) {
    const uint32_t step = i / 32, g = i % 32 / 4, t = i % 4;
    float4 four = {};
    ForParts<64, 0, kDim>([&](auto begin, auto size) {
      const uint32_t word = step - begin / 16;  // of the part; of one before it, a large number
      if (word >= size / 16 || g >= head_count) return;
      const float* from = rows + g * kDim + begin + t * (size / 4) + word * 4;
      four = *reinterpret_cast<const float4*>(from);
    });
    four = Times(four, scale);
    uint4 packed;
    packed.x = PackBf16(four.x, four.y), packed.y = PackRest(four.x, four.y, packed.x);
    packed.z = PackBf16(four.z, four.w), packed.w = PackRest(four.z, four.w, packed.z);
    queries[i] = packed;
  }
}

// One warp's part.
template <int kDim>
struct Fp8Walker {
  float out[kDim / 8][4] = {};  // of 8 columns each, whose dimensions Store knows
  float maximum = -INFINITY, sum = 0;

  // visible: how many of the unit's positions the token sees, at least one. What is beyond may be any codes, which are
  // finite numbers, and any scale.
  __device__ __forceinline__ void Add(const Codes<kDim>& codes, const uint4* queries,
                                      uint32_t visible, uint32_t lane) {
    const uint32_t t = lane % 4;
    float scores[2][4] = {};
#pragma unroll
    for (uint32_t s = 0; s < kDim / 16; ++s) {
      const uint4 query = queries[s * 32 + lane];
      const uint32_t a[4] = {query.x, query.y, query.z, query.w};
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        Mma(scores[i], a, Fp8Low(codes.keys[i][s]), Fp8High(codes.keys[i][s]));
      }
    }
    float p[4];
    float highest = maximum;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      p[i] = __fmul_rn(scores[i / 2][i % 2] + scores[i / 2][i % 2 + 2],
                       codes.Scale(codes.key_scales, i));
      if (i / 2 * 8 + 2 * t + i % 2 >= visible) p[i] = -INFINITY;
      highest = fmaxf(highest, p[i]);
    }
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    const float factor = Exp2(maximum - highest);
    maximum = highest;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) p[i] = Exp2(p[i] - highest);
    sum = __fmaf_rn(sum, factor, (p[0] + p[1]) + (p[2] + p[3]));
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const bool seen = i / 2 * 8 + 2 * t + i % 2 < visible;
      p[i] = seen ? __fmul_rn(p[i], codes.Scale(codes.value_scales, i)) : 0;
    }
    uint32_t a[4];
    a[0] = PackBf16(p[0], p[1]);
    a[1] = PackRest(p[0], p[1], a[0]);
    a[2] = PackBf16(p[2], p[3]);
    a[3] = PackRest(p[2], p[3], a[2]);
    if (__any_sync(~0u, factor != 1)) {  // NaN, too
#pragma unroll
      for (uint32_t n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) out[n][i] *= factor;
      }
    }
    ForParts<128, 0, kDim>([&](auto begin, auto size) {
#pragma unroll
      for (uint32_t j = 0; j < size / 8; ++j) {
        const uint32_t word = begin / 32 + j / 4;
        Mma(out[begin / 8 + j], a, Fp8Across(codes.values[0][word], codes.values[1][word], j % 4),
            Fp8Across(codes.values[2][word], codes.values[3][word], j % 4));
      }
    });
  }

  // Into kHeads states; the sums of a row's four lanes are still apart.
  __device__ void Store(float* states, uint32_t lane) {
    const uint32_t g = lane / 4, t = lane % 4;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    float* const state = states + g * StateFloats(kDim);
    if (t == 0) {
      state[kDim] = maximum;
      state[kDim + 1] = sum;
    }
    // Column c of product j is dimension c * (size / 8) + j: what lane group c has loaded.
    ForParts<128, 0, kDim>([&](auto begin, auto size) {
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
#pragma unroll
        for (uint32_t j = 0; j < size / 8; ++j) {
          state[begin + (2 * t + e) * (size / 8) + j] =
              out[begin / 8 + j][e] + out[begin / 8 + j][e + 2];
        }
      }
    });
  }
};

template <int kDim>
struct Fp8Sizes {
  static constexpr uint32_t kWarps = kDim > 128 ? 4 : 8;
  static constexpr uint32_t kStateBytes = kWarps * kHeads * StateFloats(kDim) * 4;
  static constexpr uint32_t kQueryBytes = kDim / 16 * 32 * sizeof(uint4);
  static constexpr uint32_t kSharedBytes = std::max(kStateBytes, kQueryBytes);
};

// kUnits: of a warp that have registers; 3 - kUnits blocks a multiprocessor.
template <int kDim, uint32_t kUnits>
__global__ void __launch_bounds__(Fp8Sizes<kDim>::kWarps * 32, 3 - kUnits)
    AttendToFp8Runs(const DecodeAttention attention, uint32_t* counters, float* run_states) {
  using Size = Fp8Sizes<kDim>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Totals totals;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  LetNextStart();
  WaitForPrevious();
  const RunWork work(attention);
  if (!work.any()) return;
  const PagedKv& kv = attention.kv;

  const auto load = [&](uint32_t unit, Codes<kDim>& codes) {
    if (unit >= work.units_end) return;
    const uint64_t at = Fp8HeadAt(kv, work.table[unit / kPageUnits], work.kv_head);
    codes.Load(kv.keys_fp8 + at, kv.values_fp8 + at, unit % kPageUnits, lane);
  };
  Codes<kDim> codes[kUnits];
  uint32_t unit = work.begin + warp;
#pragma unroll
  for (uint32_t i = 0; i < kUnits; ++i) load(unit + i * Size::kWarps, codes[i]);
  auto* const queries = reinterpret_cast<uint4*>(shared);
  PackQueries<kDim>(attention.queries + work.place(attention) * kDim, work.head_count,
                    attention.scale * kLog2e, queries);
  __syncthreads();
  Fp8Walker<kDim> walker;
  while (unit < work.units_end) {
#pragma unroll
    for (uint32_t i = 0; i < kUnits; ++i, unit += Size::kWarps) {
      if (unit >= work.units_end) break;
      walker.Add(codes[i], queries, min(work.end - unit * kUnit, kUnit), lane);
      load(unit + kUnits * Size::kWarps, codes[i]);
    }
  }
  __syncthreads();  // states overlay the queries
  float* const states = reinterpret_cast<float*>(shared);
  walker.Store(states + warp * kHeads * StateFloats(kDim), lane);
  __syncthreads();
  FinishRun<kDim, Size::kWarps>(attention, work, states, totals, counters, run_states);
}

template <int kDim>
Status Launch(const DecodeAttention& attention, Stream stream) {
  using Size = Fp8Sizes<kDim>;
  // 256 dimensions of two units are more than a thread has registers.
  constexpr uint32_t kUnits = kDim > 128 ? 1 : 2;
  const auto kernel = attention.token_count > 1 ? AttendToFp8Runs<kDim, 1>
                                                : AttendToFp8Runs<kDim, kUnits>;
  return LaunchRuns(kernel, Size::kWarps, Size::kSharedBytes, attention, stream);
}

}  // namespace

Status LaunchDecodeAttentionFp8(const DecodeAttention& attention, Stream stream) {
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
