// The router's logits, the choice of experts, the order by expert (routing.h).
//
// Few tokens: the product's last block to finish chooses, so that a decode step has one launch. Many:
// tiles of 64 tokens x 128 experts in float32, then a warp a token.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/gemv_f32.cuh"
#include "compute/cuda/launch.h"
#include "compute/cuda/routing.h"

namespace moraine::gpu {
namespace {

// ---- The choice ----

struct Candidate {
  float score;
  uint32_t expert;
};
constexpr uint32_t kNoExpert = ~0u;  // loses against any expert of the same score

__device__ bool Better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.expert < b.expert);
}

// One warp chooses for one token. logits are read again each round: a few cached words a lane.
__device__ void Choose(const Router& router, uint32_t token) {
  const uint32_t lane = threadIdx.x % 32, expert_count = router.matrix.rows;
  const ExpertSelection& how = router.selection;
  const float* logits = router.logits + uint64_t{token} * expert_count;
  const auto sigmoid = [](float x) { return 1.0f / (1.0f + expf(-x)); };
  uint32_t taken = 0;  // bit i: expert lane + 32 i
  float chosen = 0;    // lane k has the logit of the k-th
  uint32_t expert = 0;
  for (uint32_t k = 0; k < router.top_k; ++k) {
    Candidate best = {-INFINITY, kNoExpert};
    for (uint32_t e = lane, i = 0; e < expert_count; e += 32, ++i) {
      if (taken >> i & 1) continue;
      float score = __ldcg(logits + e);
      if (how.scoring == ExpertScoring::kSigmoid) score = sigmoid(score);
      if (how.correction != nullptr) score += how.correction[e];
      if (isnan(score)) score = -INFINITY;
      if (Better({score, e}, best)) best = {score, e};
    }
    for (int step = 16; step > 0; step /= 2) {
      const Candidate other = {__shfl_xor_sync(~0u, best.score, step),
                               __shfl_xor_sync(~0u, best.expert, step)};
      if (Better(other, best)) best = other;
    }
    if (best.expert % 32 == lane) taken |= 1u << best.expert / 32;
    if (lane == k) {
      expert = best.expert;
      chosen = __ldcg(logits + expert);
    }
  }
  const bool has = lane < router.top_k;
  float weight = 0;
  if (how.scoring == ExpertScoring::kSigmoid) {
    weight = has ? sigmoid(chosen) : 0;
  } else {
    const bool all = how.scoring == ExpertScoring::kSoftmax;
    float maximum = has ? chosen : -INFINITY, sum = 0;
    for (uint32_t e = lane; all && e < expert_count; e += 32) {
      maximum = fmaxf(maximum, __ldcg(logits + e));
    }
    for (int step = 16; step > 0; step /= 2) {
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, step));
    }
    for (uint32_t e = lane; all && e < expert_count; e += 32) {
      sum += expf(__ldcg(logits + e) - maximum);
    }
    weight = has ? expf(chosen - maximum) : 0;
    weight /= WarpSum(all ? sum : weight);
  }
  const float divisor = how.normalize ? WarpSum(weight) + how.normalize_epsilon : 1.0f;
  if (!has) return;
  router.experts[uint64_t{token} * router.top_k + lane] = expert;
  router.weights[uint64_t{token} * router.top_k + lane] = weight / divisor * how.scale;
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

constexpr uint32_t kTileTokens = 64, kTileExperts = 128, kStep = 32, kThreads = 256;
constexpr uint32_t kXStride = kTileTokens + 4;

// A thread has 4 tokens x 8 experts: half a panel's rows.
__global__ void __launch_bounds__(kThreads) RouterTiles(const Router router) {
  __shared__ __align__(16) float x[kStep][kXStride];
  __shared__ __align__(16) float w[kTileExperts / kTileRows][kStep][kTileRows];
  __shared__ float squares[kTileTokens];
  const uint32_t cols = router.matrix.cols, padded = TileCount(cols) * kTileCols;
  const uint32_t experts = router.matrix.rows, panels = PanelCount(experts);
  const uint32_t first_token = blockIdx.x * kTileTokens;
  const uint32_t first_panel = blockIdx.y * (kTileExperts / kTileRows);
  const float* matrix = reinterpret_cast<const float*>(router.matrix.data);
  const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  // Each thread loads 8 columns of a token: 4 threads a token.
  const uint32_t loaded = threadIdx.x / 4, part = threadIdx.x % 4 * 8;
  const bool inside = first_token + loaded < router.token_count;
  const float* row = router.input.x + uint64_t{first_token + loaded} * router.input.stride;
  float sums[4][8] = {}, square = 0;
  for (uint32_t base = 0; base < padded; base += kStep) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t c = base + part + i;
      float value = inside && c < cols ? row[c] : 0;
      square = fmaf(value, value, square);
      if (router.input.norm != nullptr && c < cols) value *= router.input.norm[c];
      x[part + i][loaded] = value;
    }
#pragma unroll
    for (uint32_t i = 0; i < kTileExperts * kStep / 4 / kThreads; ++i) {
      const uint32_t at = threadIdx.x + i * kThreads;  // of 4 rows of a column of a panel
      const uint32_t panel = at / (kStep * 4), c = at / 4 % kStep, r = at % 4 * 4;
      float4 four = make_float4(0, 0, 0, 0);
      if (first_panel + panel < panels) {
        four = *reinterpret_cast<const float4*>(
            matrix + (uint64_t{first_panel + panel} * padded + base + c) * kTileRows + r);
      }
      *reinterpret_cast<float4*>(&w[panel][c][r]) = four;
    }
    __syncthreads();
#pragma unroll 8
    for (uint32_t c = 0; c < kStep; ++c) {
      const float4 tokens = *reinterpret_cast<const float4*>(&x[c][tx * 4]);
      const float4 low = *reinterpret_cast<const float4*>(&w[ty / 2][c][ty % 2 * 8]);
      const float4 high = *reinterpret_cast<const float4*>(&w[ty / 2][c][ty % 2 * 8 + 4]);
      const float a[4] = {tokens.x, tokens.y, tokens.z, tokens.w};
      const float b[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
  square += __shfl_xor_sync(~0u, square, 1);
  square += __shfl_xor_sync(~0u, square, 2);
  if (threadIdx.x % 4 == 0) {
    squares[loaded] = router.input.norm == nullptr
                          ? 1.0f
                          : rsqrtf(square / static_cast<float>(cols) + router.input.epsilon);
  }
  __syncthreads();
  for (int i = 0; i < 4; ++i) {
    const uint32_t token = first_token + tx * 4 + i;
    if (token >= router.token_count) continue;
    for (int j = 0; j < 8; ++j) {
      const uint32_t expert = first_panel * kTileRows + ty * 8 + j;
      if (expert >= experts) continue;
      const float logit = sums[i][j] * squares[tx * 4 + i];
      router.logits[uint64_t{token} * experts + expert] =
          router.bias != nullptr ? logit + router.bias[expert] : logit;
    }
  }
}

__global__ void __launch_bounds__(kThreads) ChooseMany(const Router router) {
  const uint32_t token = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (token < router.token_count) Choose(router, token);
}

// ---- Order ----

constexpr uint32_t kOrderThreads = 512, kOrderWarps = kOrderThreads / 32;

// A block an expert; a warp a run of (token, rank) pairs, read twice: counted, then placed.
__global__ void __launch_bounds__(kOrderThreads) OrderByExpert(const ExpertOrder order) {
  __shared__ uint32_t counts[2][kOrderWarps];  // of this expert, and of those before it
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, expert = blockIdx.x;
  const uint32_t pairs = order.token_count * order.top_k;
  const uint32_t run = (pairs + kOrderThreads - 1) / kOrderThreads * 32;
  const uint32_t begin = min(warp * run, pairs), end = min(begin + run, pairs);
  uint32_t mine = 0, before = 0;
#pragma unroll 4
  for (uint32_t at = begin + lane; at < end; at += 32) {
    const uint32_t e = order.experts[at];
    mine += e == expert;
    before += e < expert;
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
  for (uint32_t base = begin; base < end; base += 32) {
    const uint32_t at = base + lane;
    const bool found = at < end && order.experts[at] == expert;
    const uint32_t found_lanes = __ballot_sync(~0u, found);
    if (found) {
      const uint32_t place = row + __popc(found_lanes & ((1u << lane) - 1));
      order.token_rows[place] = at / order.top_k;
      order.positions[at] = place;
    }
    row += __popc(found_lanes);
  }
}

template <int kTokens>
Status LaunchFew(const Router& router, Stream stream) {
  const uint32_t bytes = F32StagedBytes(router.token_count, router.matrix.cols);
  RETURN_IF_ERROR(Checked(AllowShared(RouteFew<kTokens>, bytes), "router"));
  RouteFew<kTokens><<<CeilDivide(router.matrix.rows, kF32Rows), kF32Threads, bytes, stream>>>(
      router);
  return Checked(cudaGetLastError(), "router");
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
                  CeilDivide(router.matrix.rows, kTileExperts));
  RouterTiles<<<grid, kThreads, 0, stream>>>(router);
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
