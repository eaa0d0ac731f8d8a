// Attention of single tokens over latents (RunLatentDecodeAttention), bf16.
//
// A block has 16 heads of a token, the rows of mma.sync, and a run of pages, which it takes 32
// positions at a time through shared memory, twice, one part being filled. Its 8 warps share all
// three steps:
//
//   scores    warp w: 16 positions (w % 2), a quarter of the dimensions (w / 2) -> shared
//   softmax   warp w: heads 2w and 2w + 1, a lane a position                    -> weights, shared
//   values    warp w: an 8th of the latent's columns of all heads, in registers
//
// A warp of its own positions, as decode_attention.cu has it, would need 256 registers for the sums
// of 512 columns. Queries and weights are two bf16 each, as there. A second kernel adds the runs
// up, in order.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/latent_attention.h"
#include "compute/cuda/latent_launch.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kWarps = 8, kThreads = kWarps * 32;
constexpr uint32_t kHeads = kLatentHeads, kUnit = 32;  // positions

// Rows in shared memory are an odd number of 16 bytes apart, so that 8 of them are in different
// banks.
template <int kRank, int kRope>
struct Sizes {
  static constexpr uint32_t kWidth = kRank + kRope, kChunks = kWidth / 8;
  static constexpr uint32_t kRowBytes = (kChunks + 1) * 16;
  static constexpr uint32_t kSteps = kWidth / 16;               // of 16 dimensions
  static constexpr uint32_t kQuarter = (kSteps + 3) / 4;        // of these, a warp has
  static constexpr uint32_t kUnitBytes = kUnit * kRowBytes;     // one stage
  static constexpr uint32_t kQueryBytes = kHeads * kRowBytes;   // and as much for the rest
  static constexpr uint32_t kSharedBytes = 2 * kUnitBytes + 2 * kQueryBytes;
  static constexpr uint32_t kTiles = kRank / 64;                // of 8 columns, a warp's
  static_assert(kWidth % 16 == 0 && kRank % 64 == 0);
};
constexpr uint32_t kWeightRow = kUnit + 8;  // 80 bytes: an odd number of 16
struct Exchange {
  float scores[4][kHeads][kUnit + 1];  // of each quarter of the dimensions
  __align__(16) uint16_t weights[2][kHeads][kWeightRow];  // rounded, and what is left
  float factor[kHeads];
};

// 16 bytes, or zeros: what a page has past the last position may be NaN, which a weight of 0 does
// not undo.
__device__ void CopyChunkIf(bool there, uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

template <int kRank, int kRope>
struct Block {
  using Size = Sizes<kRank, kRope>;
  const LatentDecodeAttention& attention;
  Exchange& exchange;
  uint32_t queries, warp, lane;
  float out[Size::kTiles][4] = {};
  // Of heads 2 warp and 2 warp + 1, the same in all lanes (sum: each its own positions').
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  // rows: of the block's first head; those from head_count on are zero.
  __device__ void LoadQueries(const float* rows, uint32_t head_count) const {
    const float scale = attention.scale * 1.4426950408889634f;
#pragma unroll 9
    for (uint32_t i = threadIdx.x; i < kHeads * (Size::kWidth / 4); i += kThreads) {
      const uint32_t head = i / (Size::kWidth / 4), column = i % (Size::kWidth / 4) * 4;
      const float* const from = rows + head * Size::kWidth + column;
      float4 v = {};
      if (head < head_count) v = *reinterpret_cast<const float4*>(from);
      const uint32_t first = PackBf16(v.x * scale, v.y * scale);
      const uint32_t second = PackBf16(v.z * scale, v.w * scale);
      const uint32_t to = queries + head * Size::kRowBytes + column * 2;
      StorePair(to, first, second);
      StorePair(to + Size::kQueryBytes, PackRest(v.x * scale, v.y * scale, first),
                PackRest(v.z * scale, v.w * scale, second));
    }
  }
  __device__ static void StorePair(uint32_t to, uint32_t first, uint32_t second) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(first), "r"(second) : "memory");
  }

  // Positions begin .. begin + 31 (of one page), those from `end` on as zeros.
  __device__ void Copy(uint32_t stage, const uint32_t* table, uint32_t begin, uint32_t end) const {
    const uint64_t page = table[begin / kKvPagePositions];
    const uint16_t* from =
        attention.cache.bf16 + (page * kKvPagePositions + begin % kKvPagePositions) * Size::kWidth;
    for (uint32_t i = threadIdx.x; i < kUnit * Size::kChunks; i += kThreads) {
      const uint32_t row = i / Size::kChunks, chunk = i % Size::kChunks;
      CopyChunkIf(begin + row < end, stage + row * Size::kRowBytes + chunk * 16, from + i * 8);
    }
  }

  // Sums of one step each in four of their own: products that wait for each other take longer.
  __device__ void Score(uint32_t stage) {
    const uint32_t tile = warp % 2, quarter = warp / 2;
    float scores[2][2][4] = {};  // of 8 positions each, by rounded queries and by their rest
    const uint32_t row_of_query = queries + lane % 16 * Size::kRowBytes;
    const uint32_t row_of_key =
        stage + (tile * 16 + lane / 16 * 8 + lane % 8) * Size::kRowBytes;
#pragma unroll
    for (uint32_t i = 0; i < Size::kQuarter; ++i) {
      const uint32_t step = quarter * Size::kQuarter + i;
      if (step >= Size::kSteps) break;
      uint32_t keys[4], a[2][4];
      LoadMatrices(row_of_key + (step * 2 + lane / 8 % 2) * 16, keys);
      const uint32_t at = row_of_query + (step * 2 + lane / 16) * 16;
      LoadMatrices(at, a[0]);
      LoadMatrices(at + Size::kQueryBytes, a[1]);
#pragma unroll
      for (uint32_t n = 0; n < 2; ++n) {
        Mma(scores[n][0], a[0], keys[2 * n], keys[2 * n + 1]);
        Mma(scores[n][1], a[1], keys[2 * n], keys[2 * n + 1]);
      }
    }
    float(*const to)[kUnit + 1] = exchange.scores[quarter];
#pragma unroll
    for (uint32_t n = 0; n < 2; ++n) {
      const uint32_t g = lane / 4, column = tile * 16 + n * 8 + lane % 4 * 2;
#pragma unroll
      for (uint32_t e = 0; e < 4; ++e) {
        to[g + e / 2 * 8][column + e % 2] = scores[n][0][e] + scores[n][1][e];
      }
    }
  }

  // visible: how many of the unit's positions the token sees, at least one.
  __device__ void Softmax(uint32_t visible) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t head = 2 * warp + r;
      float score = (exchange.scores[0][head][lane] + exchange.scores[1][head][lane]) +
                    (exchange.scores[2][head][lane] + exchange.scores[3][head][lane]);
      if (lane >= visible) score = -INFINITY;
      float highest = score;
      for (int step = 16; step > 0; step /= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
      }
      highest = fmaxf(highest, maximum[r]);
      const float factor = Exp2(maximum[r] - highest), weight = Exp2(score - highest);
      maximum[r] = highest;
      sum[r] = sum[r] * factor + weight;
      const uint16_t rounded = Bf16Bits(weight);
      exchange.weights[0][head][lane] = rounded;
      exchange.weights[1][head][lane] = Bf16Bits(weight - Bf16Float(rounded));
      if (lane == 0) exchange.factor[head] = factor;
    }
  }

  __device__ void AddValues(uint32_t stage) {
    uint32_t a[2][2][4];  // of 16 positions: rounded, and the rest
#pragma unroll
    for (uint32_t s = 0; s < 2; ++s) {
#pragma unroll
      for (uint32_t rest = 0; rest < 2; ++rest) {
        LoadMatrices(
            SharedAddress(&exchange.weights[rest][lane % 16][s * 16 + lane / 16 * 8]), a[s][rest]);
      }
    }
    const float low = exchange.factor[lane / 4], high = exchange.factor[lane / 4 + 8];
    const uint32_t from = stage + lane * Size::kRowBytes + warp * Size::kTiles * 16;
#pragma unroll
    for (uint32_t n = 0; n < Size::kTiles; ++n) {
      uint32_t b[4];  // 32 positions of 8 columns
      LoadTransposed(from + n * 16, b);
      out[n][0] *= low, out[n][1] *= low, out[n][2] *= high, out[n][3] *= high;
#pragma unroll
      for (uint32_t s = 0; s < 2; ++s) {
        Mma(out[n], a[s][0], b[2 * s], b[2 * s + 1]);
        Mma(out[n], a[s][1], b[2 * s], b[2 * s + 1]);
      }
    }
  }

  // State of head h: `kRank` sums, the largest score, the sum of weights.
  __device__ void Store(float* states, uint64_t head_stride, uint32_t head_count) const {
    const uint32_t g = lane / 4, column = warp * Size::kTiles * 8 + lane % 4 * 2;
#pragma unroll
    for (uint32_t n = 0; n < Size::kTiles; ++n) {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        if (g + 8 * r >= head_count) continue;
        *reinterpret_cast<float2*>(states + (g + 8 * r) * head_stride + column + n * 8) =
            make_float2(out[n][2 * r], out[n][2 * r + 1]);
      }
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t head = 2 * warp + r;
      const float total = WarpSum(sum[r]);
      if (lane != 0 || head >= head_count) continue;
      float* const end = states + head * head_stride + kRank;
      end[0] = maximum[r], end[1] = total;
    }
  }
};

// A token's runs: run i has pages i * run_pages ..
struct Runs {
  uint32_t length, run_pages, count;
  __device__ Runs(const LatentDecodeAttention& attention, uint32_t token, uint32_t most) {
    length = attention.positions[token] + 1;
    const uint32_t pages = (length + kKvPagePositions - 1) / kKvPagePositions;
    run_pages = (pages + most - 1) / most;
    count = (pages + run_pages - 1) / run_pages;
  }
};

template <int kRank, int kRope>
__global__ void __launch_bounds__(kThreads)
    AttendToLatents(const LatentDecodeAttention attention, float* states) {
  using Size = Sizes<kRank, kRope>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Exchange exchange;
  const uint32_t run = blockIdx.x, first_head = blockIdx.y * kHeads, token = blockIdx.z;
  const uint32_t head_count = min(kHeads, attention.heads - first_head);
  LetNextStart();
  WaitForPrevious();
  const Runs runs(attention, token, gridDim.x);
  if (run >= runs.count) return;
  const uint32_t begin = run * runs.run_pages * kKvPagePositions;
  const uint32_t end = min(begin + runs.run_pages * kKvPagePositions, runs.length);
  const uint32_t* table =
      attention.cache.block_tables + uint64_t{token} * attention.cache.table_stride;

  const uint32_t base = SharedAddress(shared);
  Block<kRank, kRope> block = {attention, exchange, base + 2 * Size::kUnitBytes,
                               threadIdx.x / 32, threadIdx.x % 32};
  block.Copy(base, table, begin, end);
  CommitCopies();
  const uint64_t place = uint64_t{token} * attention.heads + first_head;
  block.LoadQueries(attention.queries + place * Size::kWidth, head_count);
  uint32_t stage = base;
  for (uint32_t position = begin; position < end; position += kUnit) {
    const uint32_t other = 2 * base + Size::kUnitBytes - stage;
    if (position + kUnit < end) block.Copy(other, table, position + kUnit, end);
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();
    block.Score(stage);
    __syncthreads();
    block.Softmax(min(end - position, kUnit));
    __syncthreads();
    block.AddValues(stage);
    __syncthreads();  // this stage is the next to be filled
    stage = other;
  }
  constexpr uint64_t kState = LatentStateFloats(kRank);
  block.Store(states + (place * gridDim.x + run) * kState, gridDim.x * kState, head_count);
}

// Runs of one head of a token. A thread has 4 columns of every 4th run; the four parts of a column are
// added in order, so that the result depends on the runs alone.
constexpr uint32_t kParts = 4, kMostRuns = 128;
template <int kRank>
__global__ void __launch_bounds__(kRank / 4 * kParts)
    AddRuns(const LatentDecodeAttention attention, const float* states, uint32_t most) {
  constexpr uint32_t kState = LatentStateFloats(kRank), kThreadsOfRow = kRank / 4;
  __shared__ float factors[kMostRuns];
  __shared__ float4 partial[kParts][kThreadsOfRow];
  const uint32_t head = blockIdx.x, token = blockIdx.y, lane = threadIdx.x % 32;
  LetNextStart();
  WaitForPrevious();
  const Runs runs(attention, token, most);
  const uint64_t place = uint64_t{token} * attention.heads + head;
  const float* const first = states + place * most * kState;
  float maxima[kMostRuns / 32], sums[kMostRuns / 32], highest = -INFINITY, total = 0;
#pragma unroll
  for (uint32_t i = 0; i < kMostRuns / 32; ++i) {
    const bool there = i * 32 + lane < runs.count;
    const float* const end = first + uint64_t{i * 32 + lane} * kState + kRank;
    const float2 state = there ? *reinterpret_cast<const float2*>(end) : make_float2(-INFINITY, 0);
    maxima[i] = state.x, sums[i] = state.y;
    highest = fmaxf(highest, state.x);
  }
  for (int step = 16; step > 0; step /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
  }
#pragma unroll
  for (uint32_t i = 0; i < kMostRuns / 32; ++i) {
    const float factor = Exp2(maxima[i] - highest);
    total += sums[i] * factor;
    if (threadIdx.x < 32) factors[i * 32 + lane] = factor;
  }
  total = WarpSum(total);
  __syncthreads();
  const uint32_t part = threadIdx.x / kThreadsOfRow, column = threadIdx.x % kThreadsOfRow;
  float4 value = {};
#pragma unroll 8
  for (uint32_t i = part; i < runs.count; i += kParts) {
    const float4 v = *reinterpret_cast<const float4*>(first + uint64_t{i} * kState + column * 4);
    const float factor = factors[i];
    value.x += v.x * factor, value.y += v.y * factor;
    value.z += v.z * factor, value.w += v.w * factor;
  }
  partial[part][column] = value;
  __syncthreads();
  if (part > 0) return;
  for (uint32_t i = 1; i < kParts; ++i) {
    const float4 v = partial[i][column];
    value.x += v.x, value.y += v.y, value.z += v.z, value.w += v.w;
  }
  const float factor = 1 / total;
  reinterpret_cast<float4*>(attention.out + place * kRank)[column] =
      make_float4(value.x * factor, value.y * factor, value.z * factor, value.w * factor);
}

template <int kRank, int kRope>
Status Launch(const LatentDecodeAttention& attention, Stream stream) {
  constexpr uint32_t kShared = Sizes<kRank, kRope>::kSharedBytes;
  const char* const what = "attention of one token over latents";
  const auto kernel = AttendToLatents<kRank, kRope>;
  RETURN_IF_ERROR(Checked(AllowShared(kernel, kShared), what));
  const uint32_t runs = LatentRuns(attention.heads);
  static_assert(LatentRuns(1) <= kMostRuns);
  auto* const states = static_cast<float*>(attention.scratch);
  const dim3 grid(runs, CeilDivide(attention.heads, kHeads), attention.token_count);
  RETURN_IF_ERROR(
      Checked(LaunchChained(kernel, grid, kThreads, kShared, stream, attention, states), what));
  return Checked(
      LaunchChained(AddRuns<kRank>, dim3(attention.heads, attention.token_count),
                    kRank / 4 * kParts, 0, stream, attention, static_cast<const float*>(states), runs),
      what);
}

}  // namespace

Status RunLatentDecodeAttention(const LatentDecodeAttention& attention, Stream stream) {
  if (attention.token_count == 0) return OkStatus();
  const LatentCache& cache = attention.cache;
  if (cache.f32 != nullptr) return LaunchLatentDecodeF32(attention, stream);
  if (cache.rank == 512 && cache.rope == 64) return Launch<512, 64>(attention, stream);
  if (cache.rank == 64 && cache.rope == 16) return Launch<64, 16>(attention, stream);
  return Unsupported("attention over latents of " + std::to_string(cache.rank) + " + " +
                     std::to_string(cache.rope) + " values on the GPU");
}

}  // namespace moraine::gpu
