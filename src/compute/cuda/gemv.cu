// Matrix-vector products of q4, q8 and bf16 (gemv.h). A block owns whole panels of 16 rows; its
// warps share the panel's tiles, each with several tiles in flight, and add up through shared
// memory.
//
// Tiles of the first panel are asked for before x is normalised (dense ones before the kernel that
// makes x has ended), those of the next while one is multiplied, so that memory does not wait for
// arithmetic.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/gemv_f32.cuh"
#include "compute/cuda/gemv_tiles.cuh"
#include "compute/cuda/launch.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kWarps = 8, kThreads = kWarps * 32;
constexpr uint32_t kManyWarps = 16;  // of a block that shares a panel, where there are few panels

// `kTiles` tiles of each of `kMatrices` matrices in a lane's registers.
template <Encoding kEncoding, int kMatrices, int kTiles>
struct Batch {
  GemvTile<kEncoding> tiles[kTiles][kMatrices];

  // Tiles first, first + step, .. of a panel; gate's and up's are neighbours.
  __device__ void Load(const std::byte* panel, uint32_t first, uint32_t step, uint32_t k_tiles,
                       uint32_t lane) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint32_t k = first + i * step;
      if (k >= k_tiles) continue;
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        tiles[i][m].Load(panel + uint64_t{k * kMatrices + m} * TileBytes(kEncoding), lane);
      }
    }
  }
  template <int kGroups>
  __device__ void AddTo(float (&sums)[kMatrices][kGroups][4],
                        const uint16_t* const (&rows)[kGroups], uint32_t first, uint32_t step,
                        uint32_t k_tiles, uint32_t lane) const {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint32_t k = first + i * step;
      if (k >= k_tiles) continue;
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        tiles[i][m].template AddTo<kGroups>(sums[m], rows, k * kTileCols + lane % 4 * 4);
      }
    }
  }
};
// Tiles at once, as many as registers allow: with 16 warps or more a multiprocessor, 4 tiles of q4
// each are 37 KB in flight, and 132 x that is more than bandwidth x latency (4 TB/s x 1 us).
constexpr int DenseTiles(Encoding encoding) {
  return encoding == Encoding::kQ4 ? 4 : encoding == Encoding::kQ8 ? 2 : 1;
}
constexpr int GateUpTiles(Encoding encoding) {
  return encoding == Encoding::kQ4 ? 4 : encoding == Encoding::kQ8 ? 2 : 1;
}
// For one token, whose blocks are fewer than multiprocessors, and for several.
constexpr int DownTiles(Encoding encoding, bool one_token) {
  const int tiles = encoding == Encoding::kQ4 ? 6 : encoding == Encoding::kQ8 ? 4 : 2;
  return one_token ? tiles : tiles / 2;
}
constexpr int ResidentBlocks(Encoding encoding) { return encoding == Encoding::kQ4 ? 3 : 2; }

// This lane's column of B: the row of x of each group of tokens.
template <int kGroups>
__device__ void ColumnRows(const uint16_t* x, uint32_t row_elements, uint32_t rows, uint32_t lane,
                           const uint16_t* (&found)[kGroups]) {
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    const uint32_t row = lane / 4 + 8 * n;
    found[n] = row < rows ? x + uint64_t{row} * row_elements : nullptr;
  }
}

// ---- Dense ----

// kShare: warps of a block that share its panel and add up through shared memory. 1: of large
// matrices each of the 8 warps has panels of its own, and no barrier is met.
constexpr uint32_t DenseWarps(int share) { return share == 1 ? kWarps : share; }
template <Encoding kEncoding, int kGroups, int kShare>
__global__ void __launch_bounds__(DenseWarps(kShare) * 32, kShare == kManyWarps ? 1
                                                           : kGroups == 1
                                                               ? ResidentBlocks(kEncoding)
                                                               : 2) DenseGemv(const Gemv gemv) {
  constexpr bool kShared = kShare > 1;
  constexpr uint32_t kBlockWarps = DenseWarps(kShare);
  constexpr int kTiles = DenseTiles(kEncoding);
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float partial[2][kBlockWarps][kGroups * kTokenColumns][kTileRows];
  __shared__ float squares[kGemvTokens * kBlockWarps];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t cols = gemv.matrix.cols, k_tiles = TileCount(cols), padded = k_tiles * kTileCols;
  const uint32_t panels = PanelCount(gemv.matrix.rows);
  const uint64_t panel_bytes = uint64_t{k_tiles} * TileBytes(kEncoding);
  uint16_t* const x = reinterpret_cast<uint16_t*>(shared);
  // Of a panel this warp has tiles first, first + step, ..
  const uint32_t first = kShared ? warp : 0, step = kShared ? kBlockWarps : 1;
  const uint32_t panel_step = kShared ? gridDim.x : gridDim.x * kBlockWarps;
  uint32_t panel = kShared ? blockIdx.x : blockIdx.x * kBlockWarps + warp;
  // What this thread adds up in the end, if the block shares a panel.
  const uint32_t own_token = threadIdx.x / kTileRows, own_row = threadIdx.x % kTileRows;

  LetNextStart();
  Batch<kEncoding, 1, kTiles> current;
  if (panel < panels) {
    current.Load(gemv.matrix.data + panel * panel_bytes, first, step, k_tiles, lane);
  }
  const RowStager stager(gemv.input, cols);
  WaitForPrevious();
  stager.Stage(0, gemv.token_count, padded, squares,
               [&](uint32_t t, uint32_t c, const float4& v) { StoreSplit(x, t, padded, c, v); });
  __syncthreads();
  const uint16_t* rows[kGroups];
  ColumnRows(x, padded + kXPadding, 2 * gemv.token_count, lane, rows);

  for (uint32_t turn = 0; panel < panels; panel += panel_step, turn ^= 1) {
    const bool owns =
        kShared && own_token < gemv.token_count && panel * kTileRows + own_row < gemv.matrix.rows;
    float* const own = gemv.y + uint64_t{own_token} * gemv.y_stride + panel * kTileRows + own_row;
    const float old = owns && gemv.add ? *own : 0;  // asked for before it is wanted
    float sums[1][kGroups][4] = {};
    for (uint32_t done = 0; done < k_tiles; done += kTiles * step) {
      Batch<kEncoding, 1, kTiles> next;
      const uint32_t following = done + kTiles * step;
      if (following < k_tiles) {
        next.Load(gemv.matrix.data + panel * panel_bytes, first + following, step, k_tiles, lane);
      } else if (panel + panel_step < panels) {
        next.Load(gemv.matrix.data + (panel + panel_step) * panel_bytes, first, step, k_tiles,
                  lane);
      }
      current.template AddTo<kGroups>(sums, rows, first + done, step, k_tiles, lane);
      current = next;
    }
    const auto store = [&](uint32_t token, uint32_t row, float sum) {
      if (token >= gemv.token_count || row >= gemv.matrix.rows) return;
      float* const y = gemv.y + uint64_t{token} * gemv.y_stride + row;
      *y = gemv.add ? *y + sum : sum;
    };
#pragma unroll
    for (uint32_t n = 0; n < kGroups; ++n) {
      const uint32_t token = n * kTokenColumns + lane % 4, r = lane / 4 * 2;
      const float low = sums[0][n][0] + sums[0][n][1], high = sums[0][n][2] + sums[0][n][3];
      if (kShared) {
        *reinterpret_cast<float2*>(partial[turn][warp][token] + r) = make_float2(low, high);
      } else {
        store(token, panel * kTileRows + r, low);
        store(token, panel * kTileRows + r + 1, high);
      }
    }
    if (!kShared) continue;
    __syncthreads();  // the other turn's sums are read before this, and written after it
    if (!owns) continue;
    float sum = 0;
    for (uint32_t w = 0; w < kBlockWarps; ++w) sum += partial[turn][w][own_token][own_row];
    *own = gemv.add ? old + sum : sum;
  }
}

// ---- Experts ----

template <Encoding kEncoding>
__global__ void __launch_bounds__(kThreads, ResidentBlocks(kEncoding))
    GateUpGemv(const ExpertGemv gemv) {
  constexpr int kTiles = GateUpTiles(kEncoding);
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float partial[kWarps][2][kTileRows];
  __shared__ float squares[kWarps];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t pair = blockIdx.y, token = pair / gemv.top_k, panel = blockIdx.x;
  const uint32_t cols = gemv.layout.hidden, k_tiles = TileCount(cols), padded = k_tiles * kTileCols;
  LetNextStart();
  const RowStager stager(gemv.input, cols);
  WaitForPrevious();
  const std::byte* record = gemv.records[gemv.experts[pair]];
  stager.SumSquares(token, 1, squares);  // while the record is looked up
  if (record == nullptr) return;
  float* const out = gemv.activated + uint64_t{pair} * ActivatedStride(gemv.layout.intermediate) +
                     panel * kTileRows;
  if (panel >= PanelCount(gemv.layout.intermediate)) {
    if (threadIdx.x < kTileRows) out[threadIdx.x] = 0;
    return;
  }
  record += uint64_t{panel} * k_tiles * 2 * TileBytes(kEncoding);
  uint16_t* const x = reinterpret_cast<uint16_t*>(shared);

  Batch<kEncoding, 2, kTiles> batch;
  batch.Load(record, warp, kWarps, k_tiles, lane);
  __syncthreads();
  stager.Write(token, 1, padded, squares,
               [&](uint32_t t, uint32_t c, const float4& v) { StoreSplit(x, t, padded, c, v); });
  __syncthreads();
  const uint16_t* rows[1];
  ColumnRows(x, padded + kXPadding, 2, lane, rows);
  float sums[2][1][4] = {};
  for (uint32_t k = warp; k < k_tiles; k += kTiles * kWarps) {
    if (k != warp) batch.Load(record, k, kWarps, k_tiles, lane);
    batch.template AddTo<1>(sums, rows, k, kWarps, k_tiles, lane);
  }
  if (lane % 4 == 0) {
    for (uint32_t m = 0; m < 2; ++m) {
      float* const to = partial[warp][m] + lane / 4 * 2;
      to[0] = sums[m][0][0] + sums[m][0][1];
      to[1] = sums[m][0][2] + sums[m][0][3];
    }
  }
  __syncthreads();
  if (threadIdx.x >= kTileRows) return;
  float gate = 0, up = 0;
  for (uint32_t w = 0; w < kWarps; ++w) {
    gate += partial[w][0][threadIdx.x];
    up += partial[w][1][threadIdx.x];
  }
  out[threadIdx.x] = gate / (1.0f + __expf(-gate)) * up;
}

// A block has one panel of one token and all its experts; a warp one share of one expert's tiles.
constexpr uint32_t kDownWarps = 16;
constexpr uint32_t DownShares(uint32_t top_k) { return CeilDivide(kDownWarps, top_k); }

template <Encoding kEncoding, bool kOneToken>
__global__ void __launch_bounds__(kDownWarps * 32, !kOneToken && kEncoding == Encoding::kQ4 ? 2 : 1)
    DownGemv(const ExpertGemv gemv) {
  constexpr int kTiles = DownTiles(kEncoding, kOneToken);
  extern __shared__ __align__(16) unsigned char shared[];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t token = blockIdx.y, panel = blockIdx.x, top_k = gemv.top_k;
  const uint32_t cols = ActivatedStride(gemv.layout.intermediate), k_tiles = cols / kTileCols;
  const uint32_t shares = DownShares(top_k), items = top_k * shares;
  float* const partial = reinterpret_cast<float*>(shared);  // items x 16
  uint16_t* const x = reinterpret_cast<uint16_t*>(partial + items * kTileRows);
  const uint32_t* experts = gemv.experts + token * top_k;
  const uint64_t offset =
      gemv.layout.down_offset() + uint64_t{panel} * k_tiles * TileBytes(kEncoding);

  LetNextStart();
  WaitForPrevious();
  const auto record_of = [&](uint32_t item) {
    const std::byte* record = item < items ? gemv.records[experts[item / shares]] : nullptr;
    return record != nullptr ? record + offset : nullptr;
  };
  Batch<kEncoding, 1, kTiles> batch;
  const std::byte* record = record_of(warp);
  if (record != nullptr) batch.Load(record, warp % shares, shares, k_tiles, lane);
  // What the end needs: weights of ranks, which experts are here, the residual.
  __shared__ float rank_weights[32];
  __shared__ bool here[32];
  if (threadIdx.x < top_k) {
    rank_weights[threadIdx.x] = gemv.weights[token * top_k + threadIdx.x];
    here[threadIdx.x] = gemv.records[experts[threadIdx.x]] != nullptr;
  }
  const uint32_t row = panel * kTileRows + threadIdx.x;
  const bool owns = threadIdx.x < kTileRows && row < gemv.layout.hidden;
  float* const out = gemv.out + uint64_t{token} * gemv.out_stride + row;
  const float old = owns && gemv.add ? *out : 0;
  const float* activated = gemv.activated + uint64_t{token} * top_k * cols;
  for (uint32_t at = threadIdx.x * 4; at < top_k * cols; at += blockDim.x * 4) {
    const uint32_t rank = at / cols;
    StoreSplit(x, rank, cols, at - rank * cols, *reinterpret_cast<const float4*>(activated + at));
  }
  __syncthreads();
  for (uint32_t item = warp; item < items; item += kDownWarps) {
    const uint32_t rank = item / shares, share = item % shares;
    if (item != warp) {
      record = record_of(item);
      if (record != nullptr) batch.Load(record, share, shares, k_tiles, lane);
    }
    if (record == nullptr) continue;
    const uint16_t* rows[1];
    ColumnRows(x + uint64_t{2 * rank} * (cols + kXPadding), cols + kXPadding, 2, lane, rows);
    float sums[1][1][4] = {};
    for (uint32_t k = share; k < k_tiles; k += kTiles * shares) {
      if (k != share) batch.Load(record, k, shares, k_tiles, lane);
      batch.template AddTo<1>(sums, rows, k, shares, k_tiles, lane);
    }
    if (lane % 4 == 0) {
      float* const to = partial + item * kTileRows + lane / 4 * 2;
      to[0] = sums[0][0][0] + sums[0][0][1];
      to[1] = sums[0][0][2] + sums[0][0][3];
    }
  }
  __syncthreads();
  if (!owns) return;
  float total = 0;
  for (uint32_t rank = 0; rank < top_k; ++rank) {
    if (!here[rank]) continue;
    float sum = 0;
    for (uint32_t share = 0; share < shares; ++share) {
      sum += partial[(rank * shares + share) * kTileRows + threadIdx.x];
    }
    total += rank_weights[rank] * sum;
  }
  *out = gemv.add ? old + total : total;
}

// ---- Launches ----

constexpr uint32_t StagedBytes(uint32_t rows, uint32_t cols) {
  return 2 * rows * (TileCount(cols) * kTileCols + kXPadding) * 2;
}

Status TooLarge(const char* what, uint32_t bytes) {
  return Unsupported(std::string(what) + ": " + std::to_string(bytes) +
                     " bytes of shared memory, the GPU has " + std::to_string(MaxSharedBytes()));
}

template <Encoding kEncoding, int kGroups, int kShare>
Status LaunchDense(const Gemv& gemv, Stream stream) {
  const char* const what = "dense product of few tokens";
  const uint32_t bytes = StagedBytes(gemv.token_count, gemv.matrix.cols);
  const auto kernel = DenseGemv<kEncoding, kGroups, kShare>;
  RETURN_IF_ERROR(Checked(AllowShared(kernel, bytes), what));
  constexpr uint32_t kBlockThreads = DenseWarps(kShare) * 32;
  int resident = 0;
  RETURN_IF_ERROR(Checked(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kBlockThreads, bytes),
      what));
  const uint32_t wave = Multiprocessors() * static_cast<uint32_t>(std::max(resident, 1));
  const uint32_t panels = PanelCount(gemv.matrix.rows);
  const dim3 grid(std::min(kShare > 1 ? panels : CeilDivide(panels, kWarps), wave));
  return Checked(LaunchChained(kernel, grid, kBlockThreads, bytes, stream, gemv), what);
}
template <Encoding kEncoding, int kShare>
Status LaunchDense(const Gemv& gemv, Stream stream) {
  return gemv.token_count <= kTokenColumns ? LaunchDense<kEncoding, 1, kShare>(gemv, stream)
                                           : LaunchDense<kEncoding, 2, kShare>(gemv, stream);
}
template <Encoding kEncoding>
Status LaunchDense(const Gemv& gemv, Stream stream) {
  // By the shape alone, whatever the GPU: it decides the order of sums. 6000 panels are two rounds
  // of 132 x 24 warps (the vocabulary), 200 not two blocks a multiprocessor.
  const uint32_t panels = PanelCount(gemv.matrix.rows);
  if (panels >= 6000) return LaunchDense<kEncoding, 1>(gemv, stream);
  if (panels > 200) return LaunchDense<kEncoding, static_cast<int>(kWarps)>(gemv, stream);
  return LaunchDense<kEncoding, static_cast<int>(kManyWarps)>(gemv, stream);
}

Status LaunchDense(const Gemv& gemv, Stream stream) {
  switch (gemv.matrix.encoding) {
    case Encoding::kQ4:
      return LaunchDense<Encoding::kQ4>(gemv, stream);
    case Encoding::kQ8:
      return LaunchDense<Encoding::kQ8>(gemv, stream);
    case Encoding::kBf16:
      return LaunchDense<Encoding::kBf16>(gemv, stream);
    case Encoding::kF32:
      return LaunchF32Gemv(gemv, stream);
    default:
      break;
  }
  return Unsupported(std::string("product of few tokens with a matrix in ") +
                     EncodingName(gemv.matrix.encoding) + ": expected q4, q8, bf16 or f32");
}

template <Encoding kEncoding>
Status LaunchGateUp(const ExpertGemv& gemv, Stream stream) {
  const uint32_t bytes = StagedBytes(1, gemv.layout.hidden);
  if (bytes > MaxSharedBytes()) return TooLarge("gate and up of few tokens", bytes);
  const dim3 grid(ActivatedStride(gemv.layout.intermediate) / kTileRows,
                  gemv.token_count * gemv.top_k);
  RETURN_IF_ERROR(Checked(AllowShared(GateUpGemv<kEncoding>, bytes), "gate and up of few tokens"));
  return Checked(LaunchChained(GateUpGemv<kEncoding>, grid, kThreads, bytes, stream, gemv),
                 "gate and up of few tokens");
}

template <Encoding kEncoding>
Status LaunchDown(const ExpertGemv& gemv, Stream stream) {
  const uint32_t bytes = gemv.top_k * DownShares(gemv.top_k) * kTileRows * 4 +
                         StagedBytes(gemv.top_k, gemv.layout.intermediate);
  if (bytes > MaxSharedBytes()) return TooLarge("down of few tokens", bytes);
  const dim3 grid(PanelCount(gemv.layout.hidden), gemv.token_count);
  const auto kernel =
      gemv.token_count == 1 ? DownGemv<kEncoding, true> : DownGemv<kEncoding, false>;
  RETURN_IF_ERROR(Checked(AllowShared(kernel, bytes), "down of few tokens"));
  return Checked(LaunchChained(kernel, grid, kDownWarps * 32, bytes, stream, gemv),
                 "down of few tokens");
}

Status CheckExperts(const ExpertGemv& gemv, Encoding encoding) {
  if (encoding != Encoding::kQ4 && encoding != Encoding::kQ8 && encoding != Encoding::kBf16) {
    return Unsupported(std::string("experts in ") + EncodingName(encoding) +
                       " for few tokens: expected q4, q8 or bf16");
  }
  if (gemv.layout.biases) return Unsupported("experts with biases");
  if (gemv.top_k == 0 || gemv.top_k > 32) {
    return InvalidArgument("top_k " + std::to_string(gemv.top_k) + ": expected 1 to 32");
  }
  return OkStatus();
}

}  // namespace

Status RunGemv(const Gemv& gemv, Stream stream) {
  const uint32_t row_bytes = StagedBytes(1, gemv.matrix.cols);
  if (row_bytes > MaxSharedBytes()) return TooLarge("dense product of few tokens", row_bytes);
  // What is static comes on top: partial sums of all warps.
  constexpr uint32_t kStaticBytes = 20 * 1024;
  const uint32_t fitting =
      (MaxSharedBytes() - std::min(kStaticBytes, MaxSharedBytes())) / row_bytes;
  const uint32_t step = std::clamp(fitting, 1u, kGemvTokens);
  for (uint32_t t = 0; t < gemv.token_count; t += step) {
    Gemv part = gemv;
    part.token_count = std::min(step, gemv.token_count - t);
    part.input.x += uint64_t{t} * gemv.input.stride;
    part.y += uint64_t{t} * gemv.y_stride;
    RETURN_IF_ERROR(LaunchDense(part, stream));
  }
  return OkStatus();
}

Status RunGateUpGemv(const ExpertGemv& gemv, Stream stream) {
  RETURN_IF_ERROR(CheckExperts(gemv, gemv.layout.gate_up));
  if (gemv.token_count == 0) return OkStatus();
  switch (gemv.layout.gate_up) {
    case Encoding::kQ4:
      return LaunchGateUp<Encoding::kQ4>(gemv, stream);
    case Encoding::kQ8:
      return LaunchGateUp<Encoding::kQ8>(gemv, stream);
    default:
      return LaunchGateUp<Encoding::kBf16>(gemv, stream);
  }
}

Status RunDownGemv(const ExpertGemv& gemv, Stream stream) {
  RETURN_IF_ERROR(CheckExperts(gemv, gemv.layout.down));
  if (gemv.token_count == 0) return OkStatus();
  switch (gemv.layout.down) {
    case Encoding::kQ4:
      return LaunchDown<Encoding::kQ4>(gemv, stream);
    case Encoding::kQ8:
      return LaunchDown<Encoding::kQ8>(gemv, stream);
    default:
      return LaunchDown<Encoding::kBf16>(gemv, stream);
  }
}

}  // namespace moraine::gpu
