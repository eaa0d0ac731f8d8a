// The grouped GEMM on Hopper: one warp copies, two warpgroups multiply.
//
// A block has 3 warpgroups. Warp 0 fills a ring of stages: 64 or 128 columns of up to 128 tokens
// by tensor copies (swizzled, as wgmma reads it), and the weight tiles of the 8 compute warps by
// plain bulk copies, as they lie in the record. A compute warp unpacks its two tiles to bf16
// fragments in registers while the tensor cores work on the step before (fragments are
// double-buffered), and one warpgroup's unpacking also hides behind the other's products. 128 rows
// x 128 tokens x 2 matrices keep 128 sums a thread in registers: the largest tile that leaves room
// for fragments.
//
//   stage: empty --(copies issued, bytes expected)--> filling --(all bytes there)--> full
//          full --(8 compute warps have read tiles and finished their products)--> empty
#include <cuda.h>
#include <cuda_runtime.h>

#include "compute/cuda/gemm_tiles.cuh"
#include "compute/cuda/hopper.cuh"
#include "compute/cuda/tensor_map.h"
#include "compute/cuda/wgmma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kMaxTokens = 128, kTokenStep = 16, kTokenSizes = kMaxTokens / kTokenStep;
constexpr uint32_t kThreads = 384, kProducerWarps = 4;
constexpr uint32_t kOperandBytes = kMaxTokens * kTileCols * 2;  // activations of 64 columns
// Registers a thread after the split: 128 x 24 + 256 x 240 of 65,536.
constexpr uint32_t kProducerRegisters = 24, kComputeRegisters = 240;

constexpr uint32_t WeightBytes(Encoding encoding) {
  return 2 * kComputeWarps * TileBytes(encoding);
}
// Tiles of 64 columns a stage has. Two of q4 and q8: one tile of down, 576 bytes, would be half its
// copies across 128-byte lines, and twice as many.
constexpr uint32_t Depth(Encoding encoding) { return encoding == Encoding::kBf16 ? 1 : 2; }
constexpr uint32_t StageBytes(Encoding encoding) {
  return Depth(encoding) * (kOperandBytes + WeightBytes(encoding));
}
constexpr uint32_t kTableBytes = TileSchedule::Words(kMaxGroupedExperts) * 4;
// As many stages as fit 227 KB: 4 for q4, 3 for q8, 4 for bf16.
constexpr uint32_t Stages(Encoding encoding) {
  return (227 * 1024 - 1024 - kTableBytes) / (StageBytes(encoding) + 16);
}
// The first warpgroup goes ahead of the second by half the ring, so that one multiplies while the
// other stores its sums.
constexpr uint32_t Lead(Encoding encoding) { return Stages(encoding) / 2 * Depth(encoding); }
// Activations (1024-byte aligned for the swizzle), weights, two barriers a stage, the schedule.
constexpr uint32_t SharedBytes(Encoding encoding) {
  return 1024 + Stages(encoding) * (StageBytes(encoding) + 16) + kTableBytes;
}

struct Parameters {
  CUtensorMap operand[kTokenSizes];  // boxes of 64 columns x 16, 32, .. 128 tokens
  GemmArguments gemm;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The first warpgroup's one signal to the second.
__device__ void SignalIf(bool condition) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p barrier.cta.arrive 1, %1; }" ::"r"(
                   static_cast<int>(condition)),
               "n"(kComputeWarps * 32)
               : "memory");
}
__device__ void WaitSignal() {
  asm volatile("barrier.cta.sync 1, %0;" ::"n"(kComputeWarps * 32) : "memory");
}

// The ring as one thread sees it: which stage is next, and how often it has gone round.
template <Encoding kEncoding>
struct Ring {
  uint32_t operands, weights, barriers;  // shared addresses
  uint32_t stage = 0, parity = 0;

  __device__ uint32_t operand() const {
    return operands + stage * Depth(kEncoding) * kOperandBytes;
  }
  __device__ uint32_t weight() const { return weights + WeightOffset(); }
  __device__ uint32_t WeightOffset() const {
    return stage * Depth(kEncoding) * WeightBytes(kEncoding);
  }
  __device__ uint32_t full() const { return barriers + stage * 16; }
  __device__ uint32_t empty() const { return full() + 8; }
  __device__ void Advance() {
    if (++stage == Stages(kEncoding)) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// One warp. Lanes 0 .. 15 copy a panel's weight tiles each (gate and up lie together: lanes 0 .. 7,
// both), lanes 16 and 17 the activations of 64 columns each.
template <Encoding kEncoding, bool kGateUp>
__device__ void Produce(const Parameters& parameters, const TileSchedule& schedule,
                        Ring<kEncoding> ring) {
  const GemmArguments& gemm = parameters.gemm;
  const uint32_t lane = threadIdx.x % 32;
  constexpr uint32_t kCopies = kGateUp ? kComputeWarps : 2 * kComputeWarps;
  constexpr uint32_t kDepth = Depth(kEncoding);
  constexpr uint32_t kCopyBytes = WeightBytes(kEncoding) / kCopies;  // of 64 columns
  for (uint32_t tile = blockIdx.x; tile < schedule.tile_count(); tile += gridDim.x) {
    const TokenBlock block = schedule.At(tile);
    const uint32_t panel = block.row_block * kCopies + lane;
    const bool copies = lane < kCopies && panel < gemm.panel_count;
    const uint32_t copy_count = min(kCopies, gemm.panel_count - block.row_block * kCopies);
    const uint32_t size = (block.row_count + kTokenStep - 1) / kTokenStep;
    const uint32_t bytes = copy_count * kCopyBytes + size * kTokenStep * kTileCols * 2;
    const std::byte* source = RecordOf(gemm, block.expert) + gemm.matrix_offset +
                              uint64_t{panel} * gemm.k_tiles * kCopyBytes;
    for (uint32_t k = 0; k < gemm.k_tiles; k += kDepth) {
      const uint32_t depth = min(kDepth, gemm.k_tiles - k);
      WaitPhase(ring.empty(), ring.parity ^ 1);
      if (lane == 0) ExpectBytes(ring.full(), depth * bytes);
      __syncwarp();
      if (copies) {
        CopyBytes(ring.weight() + lane * kDepth * kCopyBytes, source, depth * kCopyBytes,
                  ring.full());
        source += kDepth * kCopyBytes;
      } else if (lane >= 16 && lane - 16 < depth) {
        const uint32_t part = lane - 16;
        CopyBox(ring.operand() + part * kOperandBytes, &parameters.operand[size - 1],
                (k + part) * kTileCols, block.first_row, ring.full());
      }
      ring.Advance();
    }
  }
}

template <Encoding kEncoding, bool kGateUp, int kTokens>
__device__ __forceinline__ void MultiplyBlock(const GemmArguments& gemm, const TokenBlock& block,
                                              const unsigned char* weights, Ring<kEncoding>& ring,
                                              uint32_t warp, uint32_t lane, bool leads) {
  float first[kTokens / 2] = {}, second[kTokens / 2] = {};
  uint32_t fragments[2][2][4];
  uint32_t previous_empty = 0;
  constexpr uint32_t kDepth = Depth(kEncoding), kTile = TileBytes(kEncoding);
  // In a stage: gate and up of a warp's panel in turns, tile by tile; or down's two panels one by
  // one.
  constexpr uint32_t kNextTile = kGateUp ? 2 * kTile : kTile,
                     kSecond = kGateUp ? kTile : kDepth * kTile;
  for (uint32_t k = 0; k < gemm.k_tiles; ++k) {
    const uint32_t part = k % kDepth;
    if (part == 0) WaitPhase(ring.full(), ring.parity);
    const unsigned char* tiles =
        weights + ring.WeightOffset() + warp * 2 * kDepth * kTile + part * kNextTile;
    LaneTile<kEncoding> lane_tiles[2];
    lane_tiles[0].Load(tiles, lane);
    lane_tiles[1].Load(tiles + kSecond, lane);
    const uint64_t operand = OperandDescriptor(ring.operand() + part * kOperandBytes);
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      uint32_t(&a)[2][4] = fragments[s % 2];
      lane_tiles[0].Fragment(s, a[0]);
      lane_tiles[1].Fragment(s, a[1]);
      WgmmaFence();
      Wgmma(first, a[0], operand + 2 * s);
      Wgmma(second, a[1], operand + 2 * s);
      WgmmaCommit();
      WgmmaWait<1>();  // the step before is done: its fragments, at s = 0 its stage, are free
      if (s == 0) SignalIf(leads && k == Lead(kEncoding));
      if (s == 0) ArriveIf(part == 0 && k > 0 && lane == 0, previous_empty);
    }
    if (part == kDepth - 1 || k == gemm.k_tiles - 1) {
      previous_empty = ring.empty();
      ring.Advance();
    }
  }
  WgmmaWait<0>();
  ArriveIf(lane == 0, previous_empty);
  // Keeps the compiler from reading sums before the wait.
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i)
    asm volatile("" : "+f"(first[i]), "+f"(second[i])::"memory");
  StoreSums<kGateUp, kTokens>(gemm, block, TilesOf<kGateUp, kEncoding>(gemm, block.row_block, warp),
                              first, second, lane);
}

template <Encoding kEncoding, bool kGateUp>
__device__ void Multiply(const GemmArguments& gemm, const TileSchedule& schedule,
                         const unsigned char* weights, Ring<kEncoding> ring) {
  const uint32_t warp = Uniform(threadIdx.x / 32) - kProducerWarps, lane = threadIdx.x % 32;
  const uint32_t tile_count = Uniform(schedule.tile_count());
  bool leads = false;  // this warp still has to let the second warpgroup go
  if (blockIdx.x < tile_count && gemm.k_tiles > Lead(kEncoding)) {
    leads = warp < kComputeWarps / 2;
    if (!leads) WaitSignal();
  }
  for (uint32_t tile = blockIdx.x; tile < tile_count; tile += gridDim.x) {
    const TokenBlock block = schedule.At(tile);
    switch (Uniform((block.row_count + kTokenStep - 1) / kTokenStep)) {
      case 1:
        MultiplyBlock<kEncoding, kGateUp, 16>(gemm, block, weights, ring, warp, lane, leads);
        break;
      case 2:
        MultiplyBlock<kEncoding, kGateUp, 32>(gemm, block, weights, ring, warp, lane, leads);
        break;
      case 3:
        MultiplyBlock<kEncoding, kGateUp, 48>(gemm, block, weights, ring, warp, lane, leads);
        break;
      case 4:
        MultiplyBlock<kEncoding, kGateUp, 64>(gemm, block, weights, ring, warp, lane, leads);
        break;
      case 5:
        MultiplyBlock<kEncoding, kGateUp, 80>(gemm, block, weights, ring, warp, lane, leads);
        break;
      case 6:
        MultiplyBlock<kEncoding, kGateUp, 96>(gemm, block, weights, ring, warp, lane, leads);
        break;
      case 7:
        MultiplyBlock<kEncoding, kGateUp, 112>(gemm, block, weights, ring, warp, lane, leads);
        break;
      default:
        MultiplyBlock<kEncoding, kGateUp, 128>(gemm, block, weights, ring, warp, lane, leads);
    }
    leads = false;
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <Encoding kEncoding, bool kGateUp>
__global__ void __launch_bounds__(kThreads, 1)
    WgmmaGemm(const __grid_constant__ Parameters parameters) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr uint32_t kStages = Stages(kEncoding);
  extern __shared__ unsigned char raw[];
  unsigned char* const operands = raw + (1024 - SharedAddress(raw) % 1024) % 1024;
  unsigned char* const weights = operands + kStages * Depth(kEncoding) * kOperandBytes;
  unsigned char* const barriers = operands + kStages * StageBytes(kEncoding);
  Ring<kEncoding> ring{SharedAddress(operands), SharedAddress(weights), SharedAddress(barriers)};
  if (threadIdx.x == 0) {
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      InitBarrier(ring.barriers + stage * 16, 1);
      InitBarrier(ring.barriers + stage * 16 + 8, kComputeWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  TileSchedule schedule;  // its barriers order the initialisation above, too
  schedule.Build(parameters.gemm, RowBlocks<kGateUp>(parameters.gemm.panel_count), kMaxTokens,
                 reinterpret_cast<uint32_t*>(barriers + kStages * 16));
  if (threadIdx.x < kProducerWarps * 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    if (threadIdx.x < 32) Produce<kEncoding, kGateUp>(parameters, schedule, ring);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
    Multiply<kEncoding, kGateUp>(parameters.gemm, schedule, weights, ring);
  }
#endif
}

cudaError_t FillMaps(Parameters* parameters) {
  EncodeTensorMap encode = nullptr;
  if (const cudaError_t error = FindEncodeTensorMap(&encode); error != cudaSuccess) return error;
  const GemmArguments& gemm = parameters->gemm;
  const cuuint64_t sizes[2] = {uint64_t{gemm.k_tiles} * kTileCols, gemm.row_count};
  const cuuint64_t strides[1] = {sizes[0] * 2};
  const cuuint32_t steps[2] = {1, 1};
  for (uint32_t i = 0; i < kTokenSizes; ++i) {
    const cuuint32_t box[2] = {kTileCols, (i + 1) * kTokenStep};
    const CUresult result =
        encode(&parameters->operand[i], CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
               const_cast<uint16_t*>(gemm.operand), sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

template <Encoding kEncoding, bool kGateUp>
cudaError_t Launch(const Parameters& parameters, uint32_t blocks, Stream stream) {
  constexpr uint32_t kShared = SharedBytes(kEncoding);
  static_assert(kShared <= 227 * 1024);
  const auto kernel = WgmmaGemm<kEncoding, kGateUp>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, kThreads, kShared, stream>>>(parameters);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchWgmmaGemm(const GemmKind& kind, const GemmArguments& arguments,
                            uint32_t multiprocessors, Stream stream) {
  Parameters parameters;
  parameters.gemm = arguments;
  if (const cudaError_t error = FillMaps(&parameters); error != cudaSuccess) return error;
  switch (kind.encoding) {
    case Encoding::kQ4:
      return kind.gate_up ? Launch<Encoding::kQ4, true>(parameters, multiprocessors, stream)
                          : Launch<Encoding::kQ4, false>(parameters, multiprocessors, stream);
    case Encoding::kQ8:
      return kind.gate_up ? Launch<Encoding::kQ8, true>(parameters, multiprocessors, stream)
                          : Launch<Encoding::kQ8, false>(parameters, multiprocessors, stream);
    case Encoding::kBf16:
      return kind.gate_up ? Launch<Encoding::kBf16, true>(parameters, multiprocessors, stream)
                          : Launch<Encoding::kBf16, false>(parameters, multiprocessors, stream);
    default:  // GroupedGemm refuses them by name
      break;
  }
  return cudaErrorNotSupported;
}

}  // namespace moraine::gpu
