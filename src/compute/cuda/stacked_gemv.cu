// Products of a matrix a head with few tokens (stacked_gemv.h).
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/gemv_tiles.cuh"
#include "compute/cuda/launch.h"
#include "compute/cuda/stacked_gemv.h"

namespace moraine::gpu {
namespace {

// Few, so that 16 heads of 8 panels are 32 blocks.
constexpr uint32_t kWarps = 4, kThreads = kWarps * 32;
// Tiles at once, asked for before x is there: all of 512 columns where registers allow it.
constexpr int TilesAtOnce(Encoding encoding) { return encoding == Encoding::kBf16 ? 4 : 8; }

constexpr uint32_t StagedBytes(uint32_t tokens, uint32_t cols) {
  return 2 * tokens * (TileCount(cols) * kTileCols + kXPadding) * 2;
}

template <Encoding kEncoding, int kGroups>
__global__ void __launch_bounds__(kThreads) MultiplyStack(const StackedGemv gemv) {
  constexpr int kTiles = TilesAtOnce(kEncoding);
  extern __shared__ __align__(16) unsigned char shared[];
  uint16_t* const x = reinterpret_cast<uint16_t*>(shared);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
  const uint32_t cols = gemv.matrix.cols, k_tiles = TileCount(cols), padded = k_tiles * kTileCols;
  const uint32_t panels = PanelCount(gemv.rows), panel = blockIdx.x * kWarps + warp;
  const std::byte* const tiles =
      gemv.matrix.data + (uint64_t{head} * panels + panel) * k_tiles * TileBytes(kEncoding);
  GemvTile<kEncoding> held[kTiles];
  const auto load = [&](uint32_t first) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint32_t k = first + i;
      if (panel < panels && k < k_tiles) held[i].Load(tiles + k * TileBytes(kEncoding), lane);
    }
  };
  LetNextStart();
  load(0);
  const GemvInput input = {.x = gemv.x + uint64_t{head} * gemv.x_head_stride,
                           .stride = gemv.x_stride};
  const RowStager stager(input, cols);
  WaitForPrevious();
  stager.Write(0, gemv.token_count, padded, nullptr,
               [&](uint32_t t, uint32_t c, const float4& v) { StoreSplit(x, t, padded, c, v); });
  __syncthreads();
  if (panel >= panels) return;
  const uint16_t* rows[kGroups];  // of this lane's column of B
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    const uint32_t row = lane / 4 + 8 * n;
    rows[n] = row < 2 * gemv.token_count ? x + row * (padded + kXPadding) : nullptr;
  }
  float sums[kGroups][4] = {};
  for (uint32_t first = 0; first < k_tiles; first += kTiles) {
    if (first > 0) load(first);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint32_t k = first + i;
      if (k < k_tiles) held[i].template AddTo<kGroups>(sums, rows, k * kTileCols + lane % 4 * 4);
    }
  }
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    const uint32_t token = n * kTokenColumns + lane % 4, row = panel * kTileRows + lane / 4 * 2;
    if (token >= gemv.token_count) continue;
    float* const y = gemv.y + uint64_t{token} * gemv.y_stride + uint64_t{head} * gemv.y_head_stride;
    if (row < gemv.rows) y[row] = sums[n][0] + sums[n][1];
    if (row + 1 < gemv.rows) y[row + 1] = sums[n][2] + sums[n][3];
  }
}

template <Encoding kEncoding, int kGroups>
Status Launch(const StackedGemv& gemv, Stream stream) {
  const uint32_t bytes = StagedBytes(gemv.token_count, gemv.matrix.cols);
  const auto kernel = MultiplyStack<kEncoding, kGroups>;
  RETURN_IF_ERROR(Checked(AllowShared(kernel, bytes), "product of a matrix a head"));
  const dim3 grid(CeilDivide(PanelCount(gemv.rows), kWarps), gemv.count);
  return Checked(LaunchChained(kernel, grid, kThreads, bytes, stream, gemv),
                 "product of a matrix a head");
}

template <Encoding kEncoding>
Status Launch(const StackedGemv& gemv, Stream stream) {
  return gemv.token_count <= kTokenColumns ? Launch<kEncoding, 1>(gemv, stream)
                                           : Launch<kEncoding, 2>(gemv, stream);
}

}  // namespace

Status RunStackedGemv(const StackedGemv& gemv, Stream stream) {
  if (gemv.matrix.rows != gemv.count * PanelCount(gemv.rows) * kTileRows) {
    return InvalidArgument("a stack of " + std::to_string(gemv.count) + " matrices of " +
                           std::to_string(gemv.rows) + " rows: found " +
                           std::to_string(gemv.matrix.rows) + " rows in all");
  }
  if (StagedBytes(kGemvTokens, gemv.matrix.cols) > MaxSharedBytes()) {
    return Unsupported("product of a matrix a head of " + std::to_string(gemv.matrix.cols) +
                       " columns");
  }
  for (uint32_t t = 0; t < gemv.token_count; t += kGemvTokens) {
    StackedGemv part = gemv;
    part.token_count = std::min(kGemvTokens, gemv.token_count - t);
    part.x += uint64_t{t} * gemv.x_stride;
    part.y += uint64_t{t} * gemv.y_stride;
    switch (gemv.matrix.encoding) {
      case Encoding::kQ4:
        RETURN_IF_ERROR(Launch<Encoding::kQ4>(part, stream));
        break;
      case Encoding::kQ8:
        RETURN_IF_ERROR(Launch<Encoding::kQ8>(part, stream));
        break;
      case Encoding::kBf16:
        RETURN_IF_ERROR(Launch<Encoding::kBf16>(part, stream));
        break;
      default:
        return Unsupported(std::string("product of a matrix a head in ") +
                           EncodingName(gemv.matrix.encoding) + ": expected q4, q8 or bf16");
    }
  }
  return OkStatus();
}

}  // namespace moraine::gpu
