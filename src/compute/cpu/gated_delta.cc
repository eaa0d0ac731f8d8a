#include "compute/cpu/gated_delta.h"

#include <algorithm>

#include "base/check.h"

namespace moraine {
namespace {

// Channels of a task: 4 taps and a sigmoid each are some 2 us.
constexpr uint32_t kConvChannels = 2048;
constexpr uint32_t kMaxTaps = 16;
// Columns of a task: both panels of a pass (recurrent_kernels.h).
constexpr uint32_t kDeltaColumns = 2 * kLaneCount;

uint32_t CeilDivide(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

}  // namespace

void RunCausalConv(const KernelTable& kernels, ThreadPool& pool, const CausalConvCall& call) {
  if (call.token_count == 0) return;
  CHECK(call.taps >= 1 && call.taps <= kMaxTaps, "convolution kernel too long");
  const uint32_t chunks = CeilDivide(call.channels, kConvChannels);
  pool.ParallelFor(call.token_count * chunks, [&](uint32_t task, uint32_t) {
    const uint32_t token = task / chunks, channel = task % chunks * kConvChannels;
    const float* rows[kMaxTaps];
    for (uint32_t i = 0; i < call.taps; ++i) {
      rows[i] = call.x + token * call.x_stride - (call.taps - 1 - i) * call.x_stride + channel;
    }
    kernels.conv_silu(rows, call.weights + channel, call.channels, call.taps,
                      std::min(kConvChannels, call.channels - channel),
                      call.out + token * call.out_stride + channel);
  });
}

void RunGatedDelta(const KernelTable& kernels, ThreadPool& pool, const GatedDeltaCall& call) {
  const GatedDeltaShape& shape = call.shape;
  if (call.token_count == 0) return;
  CHECK(shape.key_heads > 0 && shape.value_heads % shape.key_heads == 0,
        "value heads must be a multiple of key heads");
  const uint32_t group = shape.value_heads / shape.key_heads;
  const uint32_t tasks = CeilDivide(shape.value_dim, kDeltaColumns);
  const size_t head_floats = shape.state_floats() / shape.value_heads;
  pool.ParallelFor(shape.value_heads * tasks, [&](uint32_t task, uint32_t) {
    const uint32_t head = task / tasks, column = task % tasks * kDeltaColumns;
    const size_t key = size_t{head / group} * shape.key_dim;
    const size_t value = size_t{head} * shape.value_dim + column;
    const size_t state = head * head_floats + size_t{column} * shape.key_dim;
    kernels.delta_rule({.q = call.q + key,
                        .k = call.k + key,
                        .qk_stride = call.stride,
                        .v = call.v + value,
                        .v_stride = call.stride,
                        .decay = call.decay + head,
                        .beta = call.beta + head,
                        .gate_stride = shape.value_heads,
                        .state_in = call.state + state,
                        .state_out = call.new_state + state,
                        .out = call.out + value,
                        .out_stride = call.out_stride,
                        .token_count = call.token_count,
                        .key_dim = shape.key_dim,
                        .columns = std::min(kDeltaColumns, shape.value_dim - column)});
  });
}

}  // namespace moraine
