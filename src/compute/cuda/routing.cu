// The router's logits, the choice of experts, the order by expert (routing.h).
//
// Few tokens: the product's last block to finish chooses, so that a decode step has one launch.
// Many: tiles of 64 tokens x 128 experts by tensor cores, then a warp a token.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/gemv_f32.cuh"
#include "compute/cuda/launch.h"
#include "compute/cuda/routing.h"

namespace moraine::gpu {
namespace {

// ---- The choice ----

// In the order of floats, a NaN as -infinity, both zeros the same; never 0.
__device__ uint32_t OrderedKey(float score) {
  if (isnan(score)) score = -INFINITY;
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float ScoreOfKey(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key & 0x7FFFFFFFu : ~key);
}
__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ float WarpMax(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  }
  return value;
}

// Takes the experts out whose groups are not among the best. Lane g has group g's score.
template <int kPerLane>
__device__ void ExcludeGroups(const ExpertSelection& how, uint32_t expert_count,
                              uint32_t (&keys)[kPerLane]) {
  const uint32_t lane = threadIdx.x % 32, size = expert_count / how.group_count;
  float group_score = -INFINITY;
  for (uint32_t g = 0; g < how.group_count; ++g) {
    float best = -INFINITY, second = -INFINITY;
    const auto take = [&](float score) {
      second = fmaxf(second, fminf(best, score));
      best = fmaxf(best, score);
    };
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const uint32_t e = lane + 32 * i;
      if (e >= g * size && e < (g + 1) * size) take(ScoreOfKey(keys[i]));
    }
    for (int step = 16; step > 0; step /= 2) {
      const float other_second = __shfl_xor_sync(~0u, second, step);
      take(__shfl_xor_sync(~0u, best, step));
      second = fmaxf(second, other_second);
    }
    if (lane == g) group_score = how.two_best_of_group && size > 1 ? best + second : best;
  }
  uint32_t better = 0;
  for (uint32_t g = 0; g < how.group_count; ++g) {
    const float other = __shfl_sync(~0u, group_score, g);
    better += other > group_score || (other == group_score && g < lane);
  }
  const uint32_t chosen = __ballot_sync(~0u, better < how.chosen_groups);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const uint32_t e = lane + 32 * i;
    if (e < expert_count && (chosen >> (e / size) & 1) == 0) keys[i] = 0;
  }
}

// One warp chooses for one token; a lane has experts lane, lane + 32, .., kPerLane of them at most.
template <int kPerLane, bool kGroups>
__device__ void ChooseFrom(const Router& router, uint32_t token) {
  const uint32_t lane = threadIdx.x % 32, expert_count = router.matrix.rows;
  const ExpertSelection& how = router.selection;
  const float* logits = router.logits + uint64_t{token} * expert_count;
  float logit[kPerLane];
  uint32_t keys[kPerLane];  // 0: taken, or not an expert
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const uint32_t e = lane + 32 * i;
    logit[i] = e < expert_count ? __ldcg(logits + e) : -INFINITY;
    float score = how.scoring == ExpertScoring::kSigmoid ? Sigmoid(logit[i]) : logit[i];
    if (how.correction != nullptr && e < expert_count) score += how.correction[e];
    keys[i] = e < expert_count ? OrderedKey(score) : 0;
  }
  if constexpr (kGroups) ExcludeGroups(how, expert_count, keys);
  uint32_t expert = 0;  // the lane-th chosen one
  for (uint32_t k = 0; k < router.top_k; ++k) {
    uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = max(best, keys[i]);
    best = __reduce_max_sync(~0u, best);
    uint32_t found = ~0u;
#pragma unroll
    for (int i = kPerLane - 1; i >= 0; --i) {
      if (keys[i] == best) found = lane + 32 * i;
    }
    found = __reduce_min_sync(~0u, found);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (found == lane + 32 * i) keys[i] = 0;
    }
    if (lane == k) expert = found;
  }
  const bool has = lane < router.top_k;
  const float chosen = has ? __ldcg(logits + expert) : -INFINITY;
  float weight;
  if (how.scoring == ExpertScoring::kSigmoid) {
    weight = has ? Sigmoid(chosen) : 0;
  } else if (how.scoring == ExpertScoring::kSoftmaxOfChosen) {
    const float maximum = WarpMax(chosen);
    weight = has ? expf(chosen - maximum) : 0;
    weight /= WarpSum(weight);
  } else {
    float maximum = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) maximum = fmaxf(maximum, logit[i]);
    maximum = WarpMax(maximum);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) sum += expf(logit[i] - maximum);
    weight = (has ? expf(chosen - maximum) : 0) / WarpSum(sum);
  }
  const float divisor = how.normalize ? WarpSum(weight) + how.normalize_epsilon : 1.0f;
  if (!has) return;
  router.experts[uint64_t{token} * router.top_k + lane] = expert;
  router.weights[uint64_t{token} * router.top_k + lane] = weight / divisor * how.scale;
}

__device__ void Choose(const Router& router, uint32_t token) {
  if (router.selection.group_count > 1) {
    return ChooseFrom<kMaxGroupedRouting / 32, true>(router, token);
  }
  if (router.matrix.rows <= 128) return ChooseFrom<4, false>(router, token);
  if (router.matrix.rows <= 512) return ChooseFrom<16, false>(router, token);
  ChooseFrom<kMaxRoutedExperts / 32, false>(router, token);
}

// ---- Few tokens ----

template <int kTokens>
__global__ void __launch_bounds__(kF32Threads) RouteFew(const Router router) {
  extern __shared__ __align__(16) float x[];
  __shared__ F32Scratch<kTokens> scratch;
  __shared__ bool last;
  const float sum =
      F32RowSums<kTokens>(router.matrix, router.input, router.token_count, blockIdx.x, x, scratch);
  const uint32_t token = threadIdx.x / kF32Rows;
  const uint32_t expert = blockIdx.x * kF32Rows + threadIdx.x % kF32Rows;
  if (token < router.token_count && expert < router.matrix.rows) {
    router.logits[uint64_t{token} * router.matrix.rows + expert] =
        router.bias != nullptr ? sum + router.bias[expert] : sum;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(router.counter, 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) *router.counter = 0;
  const uint32_t warp = threadIdx.x / 32;
  if (warp < router.token_count) Choose(router, warp);
}

// ---- Many tokens ----

constexpr uint32_t kTileTokens = 64, kTilePanels = 8, kThreads = 256;
constexpr uint32_t kTileWarps = 16, kTileThreads = kTileWarps * 32, kWarpTokens = 32;
// Elements from one token to the next of a tile's 64 columns: fragments meet no bank twice.
constexpr uint32_t kXStride = kTileCols + kXPadding;

// 64 columns of 64 tokens, normalised but for the factor of each, as two bf16.
struct XTile {
  uint16_t high[kTileTokens][kXStride], low[kTileTokens][kXStride];
};

// What a thread brings of each tile: 8 columns of a token.
struct XLoader {
  const GemvInput& input;
  const float* row;  // null past the last token
  uint32_t cols, column;
  float4 x[2] = {}, norm[2] = {};
  float squares = 0;

  __device__ void Load(uint32_t base) {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t c = base + column + 4 * i;
      x[i] = row != nullptr && c < cols ? LoadFour(row, c, cols) : float4{};
      norm[i] = {1, 1, 1, 1};
      if (input.norm != nullptr && c < cols) norm[i] = LoadFour(input.norm, c, cols);
    }
  }
  __device__ void Store(XTile& tile, uint32_t token) {
    uint32_t high[4], low[4];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const float4 v = x[i], w = norm[i];
      squares += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
      const float a[4] = {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
      high[2 * i] = PackBf16(a[0], a[1]), high[2 * i + 1] = PackBf16(a[2], a[3]);
      low[2 * i] = PackRest(a[0], a[1], high[2 * i]);
      low[2 * i + 1] = PackRest(a[2], a[3], high[2 * i + 1]);
    }
    *reinterpret_cast<uint4*>(&tile.high[token][column]) =
        make_uint4(high[0], high[1], high[2], high[3]);
    *reinterpret_cast<uint4*>(&tile.low[token][column]) =
        make_uint4(low[0], low[1], low[2], low[3]);
  }
};

// 16 experts x 32 tokens of a warp.
struct RouterSums {
  float sums[kWarpTokens / 8][4] = {};
  float2 w[4][4];  // rows 2g and 2g + 1 of columns 16 s + 4 t + e

  // panel: of the weights, from a tile's first column on.
  __device__ void Load(const float* panel, uint32_t s, uint32_t lane) {
#pragma unroll
    for (uint32_t e = 0; e < 4; ++e) {
      const uint32_t column = 16 * s + 4 * (lane % 4) + e;
      w[s][e] = *reinterpret_cast<const float2*>(panel + column * kTileRows + 2 * (lane / 4));
    }
  }
  // tokens: the warp's first; next: of the weights, the next tile, asked for as soon as there is
  // room.
  __device__ void Add(const XTile& tile, uint32_t tokens, const float* next, uint32_t lane) {
    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      const uint32_t high[4] = {PackBf16(w[s][0].x, w[s][1].x), PackBf16(w[s][0].y, w[s][1].y),
                                PackBf16(w[s][2].x, w[s][3].x), PackBf16(w[s][2].y, w[s][3].y)};
      const uint32_t low[4] = {
          PackRest(w[s][0].x, w[s][1].x, high[0]), PackRest(w[s][0].y, w[s][1].y, high[1]),
          PackRest(w[s][2].x, w[s][3].x, high[2]), PackRest(w[s][2].y, w[s][3].y, high[3])};
      if (next != nullptr) Load(next, s, lane);
      const uint32_t column = 16 * s + 4 * t;
#pragma unroll
      for (uint32_t n = 0; n < kWarpTokens / 8; ++n) {
        const uint32_t token = tokens + n * 8 + g;
        const uint2 x = *reinterpret_cast<const uint2*>(&tile.high[token][column]);
        const uint2 rest = *reinterpret_cast<const uint2*>(&tile.low[token][column]);
        Mma(sums[n], high, rest.x, rest.y);
        Mma(sums[n], low, x.x, x.y);
        Mma(sums[n], high, x.x, x.y);
      }
    }
  }
};

// A block has 64 tokens x 128 experts; weights and rows as two bf16 each, three products of the
// four.
__global__ void __launch_bounds__(kTileThreads) RouterTiles(const Router router) {
  __shared__ __align__(16) XTile tiles[2];
  __shared__ float factors[kTileTokens];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t cols = router.matrix.cols, k_tiles = TileCount(cols), experts = router.matrix.rows;
  const uint32_t first_token = blockIdx.x * kTileTokens;
  const uint32_t panel = blockIdx.y * kTilePanels + warp % kTilePanels;
  const bool inside = panel < PanelCount(experts);
  const uint32_t tokens = warp / kTilePanels * kWarpTokens;
  const float* weights = reinterpret_cast<const float*>(router.matrix.data) +
                         uint64_t{panel} * k_tiles * kTileCols * kTileRows;
  const uint32_t loaded = threadIdx.x / 8;
  XLoader loader{.input = router.input,
                 .row = first_token + loaded < router.token_count
                            ? router.input.x + uint64_t{first_token + loaded} * router.input.stride
                            : nullptr,
                 .cols = cols,
                 .column = threadIdx.x % 8 * 8};
  RouterSums sums;
  loader.Load(0);
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    if (inside) sums.Load(weights, i, lane);
  }
  for (uint32_t k = 0; k < k_tiles; ++k) {
    loader.Store(tiles[k % 2], loaded);
    if (k + 1 < k_tiles) loader.Load((k + 1) * kTileCols);
    __syncthreads();  // the tile is full, and all are done with the one filled next
    const float* next = k + 1 < k_tiles ? weights + (k + 1) * kTileCols * kTileRows : nullptr;
    if (inside) sums.Add(tiles[k % 2], tokens, next, lane);
  }
  float squares = loader.squares;
  for (int step = 1; step < 8; step *= 2) squares += __shfl_xor_sync(~0u, squares, step);
  if (threadIdx.x % 8 == 0) {
    factors[loaded] = router.input.norm == nullptr
                          ? 1.0f
                          : rsqrtf(squares / static_cast<float>(cols) + router.input.epsilon);
  }
  __syncthreads();
#pragma unroll
  for (uint32_t i = 0; i < kWarpTokens / 2; ++i) {  // element i % 4 of token block i / 4
    const uint32_t in_tile = tokens + i / 4 * 8 + lane % 4 * 2 + i % 2;
    const uint32_t expert = panel * kTileRows + lane / 4 * 2 + i % 4 / 2;
    if (first_token + in_tile >= router.token_count || expert >= experts) continue;
    const float logit = sums.sums[i / 4][i % 4] * factors[in_tile];
    router.logits[uint64_t{first_token + in_tile} * experts + expert] =
        router.bias != nullptr ? logit + router.bias[expert] : logit;
  }
}

__global__ void __launch_bounds__(kThreads) ChooseMany(const Router router) {
  const uint32_t token = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (token < router.token_count) Choose(router, token);
}

// ---- Order ----

constexpr uint32_t kOrderThreads = 512, kOrderWarps = kOrderThreads / 32;

// A block an expert; a warp a run of (token, rank) pairs, read twice: counted, then placed. A lane
// has 4 neighbouring pairs at a time.
struct FourExperts {
  uint32_t e[4];

  __device__ FourExperts(const ExpertOrder& order, uint32_t at, uint32_t end) {
    if (at + 4 <= end) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(order.experts + at));
      e[0] = four.x, e[1] = four.y, e[2] = four.z, e[3] = four.w;
      return;
    }
    for (uint32_t i = 0; i < 4; ++i) e[i] = at + i < end ? __ldg(order.experts + at + i) : ~0u;
  }
};

__global__ void __launch_bounds__(kOrderThreads) OrderByExpert(const ExpertOrder order) {
  __shared__ uint32_t counts[2][kOrderWarps];  // of this expert, and of those before it
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, expert = blockIdx.x;
  const uint32_t pairs = order.token_count * order.top_k;
  const uint32_t run = CeilDivide(pairs, kOrderWarps * 128) * 128;
  const uint32_t begin = min(warp * run, pairs), end = min(begin + run, pairs);
  uint32_t mine = 0, before = 0;
#pragma unroll 8
  for (uint32_t at = begin + 4 * lane; at < end; at += 128) {
    const FourExperts four(order, at, end);
    for (int i = 0; i < 4; ++i) {
      mine += four.e[i] == expert;
      before += four.e[i] < expert;
    }
  }
  mine = __reduce_add_sync(~0u, mine);
  before = __reduce_add_sync(~0u, before);
  if (lane == 0) counts[0][warp] = mine, counts[1][warp] = before;
  __syncthreads();
  uint32_t row = 0, total = 0;
  for (uint32_t w = 0; w < kOrderWarps; ++w) {
    row += counts[1][w];
    if (w < warp) total += counts[0][w];
  }
  if (threadIdx.x == 0) {
    order.offsets[expert] = row;
    if (expert == order.expert_count - 1) order.offsets[order.expert_count] = pairs;
  }
  row += total;
  if (mine == 0) return;
#pragma unroll 4
  for (uint32_t base = begin; base < end; base += 128) {
    const uint32_t at = base + 4 * lane;
    const FourExperts four(order, min(at, end), end);
    uint32_t place = row;
    for (int i = 0; i < 4; ++i) {
      const uint32_t lanes = __ballot_sync(~0u, four.e[i] == expert);
      place += __popc(lanes & ((1u << lane) - 1));
      row += __popc(lanes);
    }
    for (uint32_t i = 0; i < 4; ++i) {
      if (four.e[i] != expert) continue;
      order.token_rows[place] = (at + i) / order.top_k;
      order.positions[at + i] = place++;
    }
  }
}

template <int kTokens>
Status LaunchFew(const Router& router, Stream stream) {
  const uint32_t bytes = F32StagedBytes(router.token_count, router.matrix.cols);
  RETURN_IF_ERROR(Checked(AllowShared(RouteFew<kTokens>, bytes), "router"));
  const dim3 grid(CeilDivide(router.matrix.rows, kF32Rows));
  return Checked(LaunchChained(RouteFew<kTokens>, grid, kF32Threads, bytes, stream, router),
                 "router");
}

Status CheckRouter(const Router& router) {
  if (router.matrix.encoding != Encoding::kF32) {
    return Unsupported(std::string("router in ") + EncodingName(router.matrix.encoding) +
                       ": expected f32");
  }
  if (router.matrix.rows > kMaxRoutedExperts) {
    return InvalidArgument("router of " + std::to_string(router.matrix.rows) +
                           " experts: at most " + std::to_string(kMaxRoutedExperts));
  }
  if (router.top_k == 0 || router.top_k > std::min(kMaxTopK, router.matrix.rows)) {
    return InvalidArgument("top_k " + std::to_string(router.top_k) + " of " +
                           std::to_string(router.matrix.rows) + " experts: expected 1 to " +
                           std::to_string(std::min(kMaxTopK, router.matrix.rows)));
  }
  const ExpertSelection& how = router.selection;
  if (how.group_count > 1 && router.matrix.rows > kMaxGroupedRouting) {
    return InvalidArgument("router of " + std::to_string(router.matrix.rows) +
                           " experts in groups: at most " + std::to_string(kMaxGroupedRouting));
  }
  if (how.group_count == 0 || how.group_count > kMaxExpertGroups ||
      router.matrix.rows % how.group_count != 0 ||
      router.top_k > router.matrix.rows / how.group_count * how.chosen_groups) {
    return InvalidArgument(std::to_string(router.top_k) + " experts out of " +
                           std::to_string(how.chosen_groups) + " of " +
                           std::to_string(how.group_count) + " groups of " +
                           std::to_string(router.matrix.rows) + " experts: expected at most " +
                           std::to_string(kMaxExpertGroups) +
                           " equal groups with that many experts");
  }
  return OkStatus();
}

}  // namespace

Status RunRouter(const Router& router, Stream stream) {
  RETURN_IF_ERROR(CheckRouter(router));
  if (router.token_count == 0) return OkStatus();
  const bool fits = F32StagedBytes(kGemvTokens, router.matrix.cols) + 16 * 1024 <= MaxSharedBytes();
  if (router.token_count == 1 && fits) return LaunchFew<1>(router, stream);
  if (router.token_count <= kGemvTokens && fits) return LaunchFew<kGemvTokens>(router, stream);
  const dim3 grid(CeilDivide(router.token_count, kTileTokens),
                  CeilDivide(PanelCount(router.matrix.rows), kTilePanels));
  RouterTiles<<<grid, kTileThreads, 0, stream>>>(router);
  RETURN_IF_ERROR(Checked(cudaGetLastError(), "router"));
  ChooseMany<<<CeilDivide(router.token_count, kThreads / 32), kThreads, 0, stream>>>(router);
  return Checked(cudaGetLastError(), "choice of experts");
}

Status SortByExpert(const ExpertOrder& order, Stream stream) {
  if (order.expert_count == 0 || order.expert_count > kMaxRoutedExperts) {
    return InvalidArgument("order by " + std::to_string(order.expert_count) +
                           " experts: expected 1 to " + std::to_string(kMaxRoutedExperts));
  }
  OrderByExpert<<<order.expert_count, kOrderThreads, 0, stream>>>(order);
  return Checked(cudaGetLastError(), "order by expert");
}

}  // namespace moraine::gpu
