// The grouped GEMM from Ampere up: mma.sync m16n8k16, a ring of stages filled by cp.async.
//
// A block of 8 warps works on 16 weight tiles x up to 64 tokens; a stage is 64 columns of both. Two
// blocks a multiprocessor hide each other's waits, hence 64 tokens: 64 sums a thread. Activations
// lie in shared memory as rows of 128 bytes whose 16-byte chunks are XORed with the row, so that
// ldmatrix reads eight rows without bank conflicts.
#include <cuda_runtime.h>

#include "compute/cuda/gemm_tiles.cuh"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kMaxTokens = 64, kTokenStep = 16;
constexpr uint32_t kThreads = kComputeWarps * 32;
constexpr uint32_t kOperandBytes = kMaxTokens * kTileCols * 2;

constexpr uint32_t StageBytes(Encoding encoding) {
  return kOperandBytes + 2 * kComputeWarps * TileBytes(encoding);
}
// Two blocks' rings within the 100 KB of the smaller GPUs for q4; within 164 KB (8.0) for all.
constexpr uint32_t Stages(Encoding encoding) { return encoding == Encoding::kBf16 ? 2 : 3; }
constexpr uint32_t ScheduleOffset(Encoding encoding) {
  return Stages(encoding) * StageBytes(encoding);
}

// What one warp copies of a stage: its own two weight tiles, and every 8th row of the activations.
template <Encoding kEncoding, bool kGateUp, int kTokens>
struct StageCopier {
  const unsigned char* tiles[2];
  bool inside[2];
  const unsigned char* rows;
  uint32_t row_bytes, last_row, warp, lane;

  __device__ StageCopier(const GemmArguments& gemm, const TokenBlock& block, const WarpTiles& place,
                         uint32_t warp_index, uint32_t lane_index)
      : row_bytes(gemm.k_tiles * kTileCols * 2),
        last_row(block.row_count - 1),
        warp(warp_index),
        lane(lane_index) {
    const auto* record = reinterpret_cast<const unsigned char*>(RecordOf(gemm, block.expert));
    for (uint32_t i = 0; i < 2; ++i) {
      tiles[i] = record + place.offset[i];
      inside[i] = place.panel[i] < gemm.panel_count;
    }
    rows = reinterpret_cast<const unsigned char*>(gemm.operand) +
           uint64_t{block.first_row} * row_bytes;
  }

  __device__ void Copy(uint32_t stage, uint32_t k) const {
    // Rows past the block repeat its last: their sums are not stored, but their reads must be
    // legal.
    for (uint32_t chunk = warp * 32 + lane; chunk < kTokens * 8; chunk += kThreads) {
      const uint32_t row = chunk / 8, column = chunk % 8;
      CopyChunk(stage + row * 128 + (column ^ row % 8) * 16,
                rows + uint64_t{min(row, last_row)} * row_bytes + k * 128 + column * 16);
    }
    constexpr uint32_t kTile = TileBytes(kEncoding);
    for (uint32_t i = 0; i < 2; ++i) {
      if (!inside[i]) continue;
      const unsigned char* source = tiles[i] + uint64_t{k} * TileStride<kGateUp, kEncoding>();
      const uint32_t target = stage + kOperandBytes + (2 * warp + i) * kTile;
      for (uint32_t at = lane * 16; at < kTile; at += 512) CopyChunk(target + at, source + at);
    }
  }
};

template <Encoding kEncoding, int kTokens>
__device__ __forceinline__ void MultiplyStage(const unsigned char* tiles, uint32_t operand,
                                              float (&first)[kTokens / 2],
                                              float (&second)[kTokens / 2], uint32_t lane) {
  LaneTile<kEncoding> lane_tiles[2];
  lane_tiles[0].Load(tiles, lane);
  lane_tiles[1].Load(tiles + TileBytes(kEncoding), lane);
  const uint32_t row = lane / 16 * 8 + lane % 8, upper = lane / 8 % 2;
#pragma unroll
  for (uint32_t s = 0; s < 4; ++s) {
    uint32_t a[2][4];
    lane_tiles[0].Fragment(s, a[0]);
    lane_tiles[1].Fragment(s, a[1]);
#pragma unroll
    for (int block = 0; block < kTokens / 16; ++block) {
      uint32_t b[4];  // both halves of k for tokens 0 .. 7, then for tokens 8 .. 15
      LoadMatrices(operand + (block * 16 + row) * 128 + ((2 * s + upper) ^ row % 8) * 16, b);
      Mma(first + 8 * block, a[0], b[0], b[1]);
      Mma(second + 8 * block, a[1], b[0], b[1]);
      Mma(first + 8 * block + 4, a[0], b[2], b[3]);
      Mma(second + 8 * block + 4, a[1], b[2], b[3]);
    }
  }
}

template <Encoding kEncoding, bool kGateUp, int kTokens>
__device__ __forceinline__ void MultiplyBlock(const GemmArguments& gemm, const TokenBlock& block,
                                              const unsigned char* stages) {
  constexpr uint32_t kStages = Stages(kEncoding), kBytes = StageBytes(kEncoding);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const WarpTiles place = TilesOf<kGateUp, kEncoding>(gemm, block.row_block, warp);
  const StageCopier<kEncoding, kGateUp, kTokens> copier(gemm, block, place, warp, lane);
  float first[kTokens / 2] = {}, second[kTokens / 2] = {};
  const uint32_t base = SharedAddress(stages);
  for (uint32_t k = 0; k + 1 < kStages; ++k) {
    if (k < gemm.k_tiles) copier.Copy(base + k * kBytes, k);
    CommitCopies();
  }
  uint32_t stage = 0, next = kStages - 1;
  for (uint32_t k = 0; k < gemm.k_tiles; ++k) {
    WaitCopies<kStages - 2>();
    __syncthreads();  // the stage is full for all, and all are done with the one filled next
    if (k + kStages - 1 < gemm.k_tiles) copier.Copy(base + next * kBytes, k + kStages - 1);
    CommitCopies();
    MultiplyStage<kEncoding, kTokens>(
        stages + stage * kBytes + kOperandBytes + 2 * warp * TileBytes(kEncoding),
        base + stage * kBytes, first, second, lane);
    if (++stage == kStages) stage = 0;
    if (++next == kStages) next = 0;
  }
  StoreSums<kGateUp, kTokens>(gemm, block, place, first, second, lane);
  __syncthreads();  // the next block's copies reuse the stages
}

template <Encoding kEncoding, bool kGateUp>
__global__ void __launch_bounds__(kThreads, 2) MmaSyncGemm(const GemmArguments gemm) {
  extern __shared__ __align__(128) unsigned char shared[];
  TileSchedule schedule;
  schedule.Build(gemm, RowBlocks<kGateUp>(gemm.panel_count), kMaxTokens,
                 reinterpret_cast<uint32_t*>(shared + ScheduleOffset(kEncoding)));
  for (uint32_t tile = blockIdx.x; tile < schedule.tile_count(); tile += gridDim.x) {
    const TokenBlock block = schedule.At(tile);
    switch ((block.row_count + kTokenStep - 1) / kTokenStep) {
      case 1:
        MultiplyBlock<kEncoding, kGateUp, 16>(gemm, block, shared);
        break;
      case 2:
        MultiplyBlock<kEncoding, kGateUp, 32>(gemm, block, shared);
        break;
      case 3:
        MultiplyBlock<kEncoding, kGateUp, 48>(gemm, block, shared);
        break;
      default:
        MultiplyBlock<kEncoding, kGateUp, 64>(gemm, block, shared);
    }
  }
}

template <Encoding kEncoding, bool kGateUp>
cudaError_t Launch(const GemmArguments& arguments, uint32_t multiprocessors, Stream stream) {
  const uint32_t bytes =
      ScheduleOffset(kEncoding) + TileSchedule::Words(arguments.expert_count) * 4;
  const auto kernel = MmaSyncGemm<kEncoding, kGateUp>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  int blocks = 0;  // a multiprocessor holds: one grid of one wave
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, bytes);
  if (error != cudaSuccess) return error;
  if (blocks == 0) return cudaErrorLaunchOutOfResources;
  kernel<<<multiprocessors * blocks, kThreads, bytes, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchMmaSyncGemm(const GemmKind& kind, const GemmArguments& arguments,
                              uint32_t multiprocessors, Stream stream) {
  switch (kind.encoding) {
    case Encoding::kQ4:
      return kind.gate_up ? Launch<Encoding::kQ4, true>(arguments, multiprocessors, stream)
                          : Launch<Encoding::kQ4, false>(arguments, multiprocessors, stream);
    case Encoding::kQ8:
      return kind.gate_up ? Launch<Encoding::kQ8, true>(arguments, multiprocessors, stream)
                          : Launch<Encoding::kQ8, false>(arguments, multiprocessors, stream);
    case Encoding::kBf16:
      return kind.gate_up ? Launch<Encoding::kBf16, true>(arguments, multiprocessors, stream)
                          : Launch<Encoding::kBf16, false>(arguments, multiprocessors, stream);
    default:  // GroupedGemm refuses them by name
      break;
  }
  return cudaErrorNotSupported;
}

}  // namespace moraine::gpu
