// Gated DeltaNet on the device (model/blocks/gated_delta_net.h has the formulas): linear attention whose memory
// of a sequence is a matrix a value head.
//
//   RunDeltaMix     projected q, k, v -> causal convolution, silu, q and k to length 1 a head; a and b -> decay
//                   and beta
//   RunDeltaMemory  for each token in turn: S <- decay S; S <- S + k (beta (v - S^T k))^T; out = S^T q
//   RunDeltaOutput  out -> norm of each head, by silu(z) -> rows of the output product
//
// A column of S takes part in no other column's sums: eight lanes have one in registers from the first token to
// the last, a warp has 4, so 32 value heads of 128 columns are 1024 warps that never meet. Token after token as the
// formula says it, not by chunks of matrix products: a layer of Qwen3-Next takes the time of its own
// arithmetic, 3 x 128 x 4096 multiplications a token, and one token or thousands are the same bits.
//
// State of a layer: slots of StateFloats() floats, each a window of the convolution's last taps - 1 inputs and the
// matrices (value head, key dim, value dim). A segment is the rows of one sequence: it reads one slot (or
// zeros) and writes another, or the same. So a chunk that fails has changed nothing that the next one reads.
//
// Rounding: all float32 but for the inputs where they are bf16 and the output rows. Sums in a fixed order: two runs
// give the same bits.
//
// Units, pointers, threads, capture: as in row_ops.h; key_dim at most 256, taps at most 8.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"

namespace moraine::gpu {

struct DeltaShape {
  uint32_t key_heads = 0, value_heads = 0;  // value head h goes with key head h / (ratio of both)
  uint32_t key_dim = 0, value_dim = 0;      // of a head
  uint32_t taps = 0;

  constexpr uint32_t keys() const { return key_heads * key_dim; }
  constexpr uint32_t values() const { return value_heads * value_dim; }
  constexpr uint32_t channels() const { return 2 * keys() + values(); }
  constexpr uint64_t window_floats() const { return uint64_t{taps - 1} * channels(); }
  constexpr uint64_t StateFloats() const {
    return window_floats() + uint64_t{value_heads} * key_dim * value_dim;
  }
};

inline constexpr uint32_t kZeroState = UINT32_MAX;

// Rows first_row .. first_row + row_count - 1 follow on the state in slot `from`, kZeroState: on nothing; the
// state behind them goes to slot `to`, which no other segment has. Without rows: nothing is done.
struct DeltaSegment {
  uint32_t first_row = 0, row_count = 0;
  uint32_t from = kZeroState, to = 0;
};

struct DeltaStates {
  float* slots = nullptr;                  // of a layer
  // On the device; together they have all rows once. Null: `only` has them.
  const DeltaSegment* segments = nullptr;
  uint32_t segment_count = 1;
  DeltaSegment only = {};
};

struct DeltaMix {
  DeltaShape shape;
  DeltaStates states;
  // Rows of channels() values, q then k then v; one of the two: prefill's and decode's.
  const uint16_t* bf16 = nullptr;
  const float* f32 = nullptr;
  uint32_t stride = 0;
  uint32_t row_count = 0;
  const float* conv = nullptr;  // channels x taps
  float* mixed = nullptr;       // row_count x channels
  // value_heads a row, in place; decay = exp(-exp(decay_log) softplus(a + decay_bias)), beta = sigmoid(b).
  float* a = nullptr;
  float* b = nullptr;
  const float* decay_log = nullptr;   // value_heads
  const float* decay_bias = nullptr;  // value_heads
};
Status RunDeltaMix(const DeltaMix& mix, Stream stream);

struct DeltaMemory {
  DeltaShape shape;
  DeltaStates states;
  const float* mixed = nullptr;
  const float* decay = nullptr;
  const float* beta = nullptr;
  float* out = nullptr;  // rows of values()
};
Status RunDeltaMemory(const DeltaMemory& memory, Stream stream);

struct DeltaOutput {
  DeltaShape shape = {};
  const float* values = nullptr;  // RunDeltaMemory's out
  uint32_t row_count = 0;
  const uint16_t* z_bf16 = nullptr;  // one of the two
  const float* z_f32 = nullptr;
  uint32_t z_stride = 0;
  const float* norm = nullptr;  // value_dim weights
  float epsilon = 0;
  uint16_t* operand = nullptr;  // one of the two: OperandStride(values()) a row, operand order, padding zeros
  float* rows = nullptr;        // values() a row
};
Status RunDeltaOutput(const DeltaOutput& output, Stream stream);

}  // namespace moraine::gpu
