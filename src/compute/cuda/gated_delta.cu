// Gated DeltaNet (gated_delta.h).
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "compute/cuda/gated_delta.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kMaxKeyDim = 256, kMaxTaps = 8, kThreads = 256;
// Added to the sum of squares of q and of k.
constexpr float kLengthEpsilon = 1e-6f;

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
// torch.nn.functional.softplus: beyond 20 x itself.
__device__ float Softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// ---- Convolution, lengths, gates ----

__device__ DeltaSegment SegmentOf(const DeltaStates& states, uint32_t index) {
  return states.segments != nullptr ? states.segments[index] : states.only;
}

struct RowPlace {
  DeltaSegment segment;
  uint32_t index;  // of the row in its segment
};
__device__ RowPlace PlaceOf(const DeltaStates& states, uint32_t row) {
  for (uint32_t s = 0; s < states.segment_count; ++s) {
    const DeltaSegment segment = SegmentOf(states, s);
    if (row >= segment.first_row && row - segment.first_row < segment.row_count) {
      return {segment, row - segment.first_row};
    }
  }
  return {};
}

// What the convolution reads `back` rows before the segment's row `index`.
__device__ float InputAt(const DeltaMix& mix, const DeltaSegment& segment, uint32_t index,
                         uint32_t back, uint32_t channel) {
  if (back <= index) {
    const uint64_t at =
        uint64_t{segment.first_row + index - back} * mix.stride + channel;
    return mix.bf16 != nullptr ? Bf16Float(mix.bf16[at]) : mix.f32[at];
  }
  if (segment.from == kZeroState) return 0;
  const uint32_t row = mix.shape.taps - 1 + index - back;  // of the window
  return mix.states.slots[segment.from * mix.shape.StateFloats() +
                          uint64_t{row} * mix.shape.channels() + channel];
}

// A warp a head of q, k or v; behind the heads, one for the gates.
__global__ void __launch_bounds__(kThreads) MixRows(const DeltaMix mix) {
  const DeltaShape& shape = mix.shape;
  const uint32_t lane = threadIdx.x % 32, row = blockIdx.x;
  const uint32_t index = blockIdx.y * (kThreads / 32) + threadIdx.x / 32;
  const uint32_t heads = 2 * shape.key_heads + shape.value_heads;
  if (index == heads) {
    for (uint32_t h = lane; h < shape.value_heads; h += 32) {
      float* const a = mix.a + uint64_t{row} * shape.value_heads + h;
      float* const b = mix.b + uint64_t{row} * shape.value_heads + h;
      *a = expf(-expf(mix.decay_log[h]) * Softplus(*a + mix.decay_bias[h]));
      *b = Sigmoid(*b);
    }
  }
  if (index >= heads) return;
  const RowPlace place = PlaceOf(mix.states, row);
  const bool is_value = index >= 2 * shape.key_heads;
  const uint32_t dim = is_value ? shape.value_dim : shape.key_dim;
  const uint32_t first = is_value ? 2 * shape.keys() + (index - 2 * shape.key_heads) * dim
                                  : index * dim;
  float* const to = mix.mixed + uint64_t{row} * shape.channels() + first;
  float squares = 0;
  for (uint32_t d = lane; d < dim; d += 32) {
    const uint32_t channel = first + d;
    float sum = 0;
    for (uint32_t i = 0; i < shape.taps; ++i) {
      sum += mix.conv[uint64_t{channel} * shape.taps + i] *
             InputAt(mix, place.segment, place.index, shape.taps - 1 - i, channel);
    }
    const float x = sum * Sigmoid(sum);
    to[d] = x;
    squares += x * x;
  }
  if (is_value) return;
  float scale = rsqrtf(WarpSum(squares) + kLengthEpsilon);
  if (index < shape.key_heads) scale *= rsqrtf(static_cast<float>(dim));
  for (uint32_t d = lane; d < dim; d += 32) to[d] *= scale;
}

// Behind MixRows, which reads the old windows.
__global__ void __launch_bounds__(kThreads) MoveWindows(const DeltaMix mix) {
  const uint32_t channel = blockIdx.x * kThreads + threadIdx.x;
  if (channel >= mix.shape.channels()) return;
  const DeltaSegment segment = SegmentOf(mix.states, blockIdx.y);
  if (segment.row_count == 0) return;
  float* const window =
      mix.states.slots + segment.to * mix.shape.StateFloats() + channel;
  // Ascending: what is read in place lies at or behind what is written.
  for (uint32_t i = 0; i + 1 < mix.shape.taps; ++i) {
    window[uint64_t{i} * mix.shape.channels()] =
        InputAt(mix, segment, segment.row_count - 1, mix.shape.taps - 2 - i, channel);
  }
}

// ---- Memory ----

constexpr uint32_t kMemoryWarps = 8, kMemoryThreads = kMemoryWarps * 32;
constexpr uint32_t kColumnLanes = 8;  // that share a column
constexpr uint32_t kWarpColumns = 32 / kColumnLanes, kBlockColumns = kMemoryWarps * kWarpColumns;
constexpr uint32_t kStagedTokens = 8;

// `there` floats of kFloats, the rest zeros.
template <uint32_t kFloats>
__device__ void CopyFloats(float* to, const float* from, uint32_t there) {
  if constexpr (kFloats == 4) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)),
                 "l"(from), "r"(there * 4)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(to)),
                 "l"(from), "r"(there * 4)
                 : "memory");
  }
}

template <uint32_t kKeyDim>
struct Staged {
  // Of a token: its key, its query, the values of the block's columns.
  float x[kStagedTokens][2 * kKeyDim + kBlockColumns];
  float decay[kStagedTokens], beta[kStagedTokens];
};

// Token `first` of the segment and those after it, kFloats at a time: 4 where all rows and heads are aligned so.
template <uint32_t kKeyDim, uint32_t kFloats>
__device__ void Stage(const DeltaMemory& memory, const DeltaSegment& segment, uint32_t first,
                      uint32_t head, uint32_t column, Staged<kKeyDim>& staged) {
  constexpr uint32_t kPieces = (2 * kKeyDim + kBlockColumns) / kFloats;
  const DeltaShape& shape = memory.shape;
  const uint32_t key_head = head / (shape.value_heads / shape.key_heads);
  const uint32_t count = first < segment.row_count ? min(kStagedTokens, segment.row_count - first)
                                                   : 0;
  const uint64_t first_row = uint64_t{segment.first_row} + first;
  const float* const mixed = memory.mixed + first_row * shape.channels();
  for (uint32_t i = threadIdx.x; i < count * kPieces; i += kMemoryThreads) {
    const uint32_t t = i / kPieces, at = i % kPieces * kFloats;
    const bool is_value = at >= 2 * kKeyDim;
    const uint32_t in_part = at % kKeyDim;  // kBlockColumns is at most kKeyDim
    const uint32_t begin = is_value ? 2 * shape.keys() + head * shape.value_dim + column
                           : at >= kKeyDim ? key_head * shape.key_dim
                                           : shape.keys() + key_head * shape.key_dim;
    const uint32_t size = is_value ? shape.value_dim - column : shape.key_dim;
    const uint32_t there = in_part < size ? min(kFloats, size - in_part) : 0;
    CopyFloats<kFloats>(&staged.x[t][at],
                        mixed + uint64_t{t} * shape.channels() + begin + (there > 0 ? in_part : 0),
                        there);
  }
  if (threadIdx.x < 2 * count) {
    const uint32_t t = threadIdx.x / 2;
    const uint64_t from = (first_row + t) * shape.value_heads + head;
    const bool is_beta = threadIdx.x % 2 != 0;
    CopyFloats<1>(is_beta ? &staged.beta[t] : &staged.decay[t],
                  (is_beta ? memory.beta : memory.decay) + from, 1);
  }
  CommitCopies();
}

__device__ float SumOfColumn(float value) {
  for (uint32_t step = 1; step < kColumnLanes; step *= 2) {
    value += __shfl_xor_sync(~0u, value, step);
  }
  return value;
}

template <uint32_t kKeyDim, uint32_t kFloats>
__global__ void __launch_bounds__(kMemoryThreads) RunMemory(const DeltaMemory memory) {
  constexpr uint32_t kRows = kKeyDim / kColumnLanes;  // of a lane: 32 i + 4 (lane % 8) .. + 3
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const staged = reinterpret_cast<Staged<kKeyDim>*>(shared);
  const DeltaShape& shape = memory.shape;
  const DeltaSegment segment = SegmentOf(memory.states, blockIdx.z);
  if (segment.row_count == 0) return;
  const uint32_t head = blockIdx.y, lane = threadIdx.x % 32, part = lane % kColumnLanes * 4;
  const uint32_t block_column = blockIdx.x * kBlockColumns;
  const uint32_t in_block = threadIdx.x / 32 * kWarpColumns + lane / kColumnLanes;
  const uint32_t column = block_column + in_block;
  const bool inside = column < shape.value_dim;
  const uint64_t matrix = shape.window_floats() + uint64_t{head} * shape.key_dim * shape.value_dim;
  const auto row_of = [&](uint32_t i) { return i / 4 * (4 * kColumnLanes) + part + i % 4; };

  float s[kRows];
  const float* const from = memory.states.slots + segment.from * shape.StateFloats() + matrix;
#pragma unroll
  for (uint32_t i = 0; i < kRows; ++i) {
    const bool there = inside && segment.from != kZeroState && row_of(i) < shape.key_dim;
    s[i] = there ? from[uint64_t{row_of(i)} * shape.value_dim + column] : 0;
  }
  float* out = memory.out + uint64_t{segment.first_row} * shape.values() + head * shape.value_dim +
               column;
  float last_out = 0;  // a lane's part of the token before: added up beside the next one's
  const auto store_last = [&] {
    const float sum = SumOfColumn(last_out);
    if (inside && lane % kColumnLanes == 0) *out = sum;
    out += shape.values();
  };
  Stage<kKeyDim, kFloats>(memory, segment, 0, head, block_column, staged[0]);
  for (uint32_t first = 0; first < segment.row_count; first += kStagedTokens) {
    const Staged<kKeyDim>& now = staged[first / kStagedTokens % 2];
    Stage<kKeyDim, kFloats>(memory, segment, first + kStagedTokens, head, block_column,
                            staged[(first / kStagedTokens + 1) % 2]);
    WaitCopies<1>();
    __syncthreads();
    const uint32_t count = min(kStagedTokens, segment.row_count - first);
    for (uint32_t t = 0; t < count; ++t) {
      const float* const x = now.x[t];
      const float decay = now.decay[t];
      float sums[4] = {};
#pragma unroll
      for (uint32_t i = 0; i < kRows; i += 4) {
        const float4 k = *reinterpret_cast<const float4*>(&x[row_of(i)]);
        s[i] *= decay, s[i + 1] *= decay, s[i + 2] *= decay, s[i + 3] *= decay;
        sums[0] += s[i] * k.x, sums[1] += s[i + 1] * k.y;
        sums[2] += s[i + 2] * k.z, sums[3] += s[i + 3] * k.w;
      }
      const float known = SumOfColumn((sums[0] + sums[1]) + (sums[2] + sums[3]));
      if (first + t > 0) store_last();
      const float delta = now.beta[t] * (x[2 * kKeyDim + in_block] - known);
      float outs[4] = {};
#pragma unroll
      for (uint32_t i = 0; i < kRows; i += 4) {
        const float4 k = *reinterpret_cast<const float4*>(&x[row_of(i)]);
        const float4 q = *reinterpret_cast<const float4*>(&x[kKeyDim + row_of(i)]);
        s[i] += k.x * delta, s[i + 1] += k.y * delta;
        s[i + 2] += k.z * delta, s[i + 3] += k.w * delta;
        outs[0] += s[i] * q.x, outs[1] += s[i + 1] * q.y;
        outs[2] += s[i + 2] * q.z, outs[3] += s[i + 3] * q.w;
      }
      last_out = (outs[0] + outs[1]) + (outs[2] + outs[3]);
    }
    __syncthreads();  // all are done with what is overwritten next
  }
  store_last();
  if (!inside) return;
  float* const to = memory.states.slots + segment.to * shape.StateFloats() + matrix;
#pragma unroll
  for (uint32_t i = 0; i < kRows; ++i) {
    if (row_of(i) < shape.key_dim) to[uint64_t{row_of(i)} * shape.value_dim + column] = s[i];
  }
}

template <uint32_t kKeyDim>
Status LaunchMemory(const DeltaMemory& memory, Stream stream) {
  const bool aligned = memory.shape.key_dim % 4 == 0 && memory.shape.value_dim % 4 == 0;
  const auto kernel = aligned ? RunMemory<kKeyDim, 4> : RunMemory<kKeyDim, 1>;
  const uint32_t bytes = 2 * sizeof(Staged<kKeyDim>);
  RETURN_IF_ERROR(Checked(AllowShared(kernel, bytes), "gated delta rule"));
  const dim3 grid(CeilDivide(memory.shape.value_dim, kBlockColumns), memory.shape.value_heads,
                  memory.states.segment_count);
  kernel<<<grid, kMemoryThreads, bytes, stream>>>(memory);
  return Checked(cudaGetLastError(), "gated delta rule");
}

// ---- Output ----

// A warp a value head of a row.
__global__ void __launch_bounds__(kThreads) NormAndGate(const DeltaOutput output) {
  const DeltaShape& shape = output.shape;
  const uint32_t lane = threadIdx.x % 32, row = blockIdx.x;
  const uint32_t head = blockIdx.y * (kThreads / 32) + threadIdx.x / 32, dim = shape.value_dim;
  if (head >= shape.value_heads) {
    const uint32_t padded = OperandStride(shape.values());
    if (head > shape.value_heads || output.operand == nullptr) return;
    for (uint32_t c = shape.values() + lane; c < padded; c += 32) {
      output.operand[uint64_t{row} * padded + OperandPosition(c)] = 0;
    }
    return;
  }
  const float* const x = output.values + uint64_t{row} * shape.values() + head * dim;
  float squares = 0;
  for (uint32_t d = lane; d < dim; d += 32) squares += x[d] * x[d];
  const float factor = rsqrtf(WarpSum(squares) / static_cast<float>(dim) + output.epsilon);
  for (uint32_t d = lane; d < dim; d += 32) {
    const uint32_t c = head * dim + d;
    const uint64_t at = uint64_t{row} * output.z_stride + c;
    const float z = output.z_bf16 != nullptr ? Bf16Float(output.z_bf16[at]) : output.z_f32[at];
    const float value = x[d] * factor * output.norm[d] * (z * Sigmoid(z));
    if (output.operand != nullptr) {
      output.operand[uint64_t{row} * OperandStride(shape.values()) + OperandPosition(c)] =
          Bf16Bits(value);
    } else {
      output.rows[uint64_t{row} * shape.values() + c] = value;
    }
  }
}

Status CheckShape(const DeltaShape& shape) {
  if (shape.key_dim == 0 || shape.key_dim > kMaxKeyDim || shape.taps == 0 ||
      shape.taps > kMaxTaps || shape.key_heads == 0 || shape.value_heads % shape.key_heads != 0) {
    return Unsupported("linear attention with " + std::to_string(shape.key_heads) + " key heads of " +
                       std::to_string(shape.key_dim) + " dimensions, " +
                       std::to_string(shape.value_heads) + " value heads and " +
                       std::to_string(shape.taps) + " taps, on the GPU: expected at most " +
                       std::to_string(kMaxKeyDim) + " dimensions, " + std::to_string(kMaxTaps) +
                       " taps, and a multiple of the key heads");
  }
  return OkStatus();
}

}  // namespace

Status RunDeltaMix(const DeltaMix& mix, Stream stream) {
  RETURN_IF_ERROR(CheckShape(mix.shape));
  if (mix.row_count == 0) return OkStatus();
  const uint32_t warps = 2 * mix.shape.key_heads + mix.shape.value_heads + 1;
  const dim3 grid(mix.row_count, CeilDivide(warps, kThreads / 32));
  MixRows<<<grid, kThreads, 0, stream>>>(mix);
  RETURN_IF_ERROR(Checked(cudaGetLastError(), "convolution of linear attention"));
  const dim3 windows(CeilDivide(mix.shape.channels(), kThreads), mix.states.segment_count);
  MoveWindows<<<windows, kThreads, 0, stream>>>(mix);
  return Checked(cudaGetLastError(), "windows of linear attention");
}

Status RunDeltaMemory(const DeltaMemory& memory, Stream stream) {
  RETURN_IF_ERROR(CheckShape(memory.shape));
  if (memory.states.segment_count == 0) return OkStatus();
  if (memory.shape.key_dim <= 32) return LaunchMemory<32>(memory, stream);
  if (memory.shape.key_dim <= 64) return LaunchMemory<64>(memory, stream);
  if (memory.shape.key_dim <= 128) return LaunchMemory<128>(memory, stream);
  return LaunchMemory<kMaxKeyDim>(memory, stream);
}

Status RunDeltaOutput(const DeltaOutput& output, Stream stream) {
  RETURN_IF_ERROR(CheckShape(output.shape));
  if (output.row_count == 0) return OkStatus();
  const dim3 grid(output.row_count, CeilDivide(output.shape.value_heads + 1, kThreads / 32));
  NormAndGate<<<grid, kThreads, 0, stream>>>(output);
  return Checked(cudaGetLastError(), "output of linear attention");
}

}  // namespace moraine::gpu
