// Linear attention of a pass (gpu_delta.h).
#include <algorithm>

#include "engine/gpu/gpu_pass.h"

namespace moraine {

// From what is projected to what goes into the output product.
Status GpuPass::RunDelta(const GpuDelta& delta, const gpu::DeltaMix& mix, float* values,
                         const gpu::DeltaOutput& output) {
  RETURN_IF_ERROR(gpu::RunDeltaMix(mix, stream_));
  RETURN_IF_ERROR(gpu::RunDeltaMemory({.shape = mix.shape,
                                       .states = mix.states,
                                       .mixed = mix.mixed,
                                       .decay = mix.a,
                                       .beta = mix.b,
                                       .out = values},
                                      stream_));
  gpu::DeltaOutput whole = output;
  whole.shape = mix.shape;
  whole.values = values;
  whole.row_count = mix.row_count;
  whole.z_stride = mix.stride;
  whole.norm = delta.norm;
  whole.epsilon = config_.rms_norm_epsilon;
  return gpu::RunDeltaOutput(whole, stream_);
}

Status GpuPass::DeltaGates(const GpuLayer& layer, const GpuDelta& delta, const DeltaScratch& s) {
  const auto multiply = [&](const gpu::DeviceMatrix& matrix, float* y) {
    return gpu::RunGemv({.matrix = matrix,
                         .input = Input(scratch_->hidden, config_.hidden, layer.attention_norm),
                         .token_count = token_count_,
                         .y = y,
                         .y_stride = matrix.rows},
                        stream_);
  };
  RETURN_IF_ERROR(multiply(delta.a, s.a));
  return multiply(delta.b, s.b);
}

gpu::DeltaMix GpuPass::MixOf(const GpuDelta& delta, const DeltaScratch& s) const {
  return {.shape = DeltaShapeOf(delta.config),
          .states = {.slots = delta.slots},
          .stride = delta.first.rows,
          .row_count = token_count_,
          .conv = delta.conv,
          .mixed = s.mixed,
          .a = s.a,
          .b = s.b,
          .decay_log = delta.decay_log,
          .decay_bias = delta.decay_bias};
}

Status GpuPass::FewDelta(const GpuLayer& layer, const GpuDelta& delta) {
  const DeltaScratch& s = scratch_->few_delta;
  RETURN_IF_ERROR(RunProjection(
      delta.first, Input(scratch_->hidden, config_.hidden, layer.attention_norm), s.first));
  RETURN_IF_ERROR(DeltaGates(layer, delta, s));
  gpu::DeltaMix mix = MixOf(delta, s);
  mix.states.segments = scratch_->segments;
  mix.states.segment_count = token_count_;  // as many as there can be: a graph is of a number of tokens
  mix.f32 = s.first;
  RETURN_IF_ERROR(RunDelta(
      delta, mix, s.values, {.z_f32 = s.first + mix.shape.channels(), .rows = s.gated}));
  return gpu::RunGemv({.matrix = delta.o,
                       .input = Input(s.gated, mix.shape.values(), nullptr),
                       .token_count = token_count_,
                       .y = scratch_->hidden,
                       .y_stride = config_.hidden,
                       .add = true},
                      stream_);
}

Status GpuPass::ManyDelta(const GpuLayer& layer, const GpuDelta& delta) {
  const DeltaScratch& s = scratch_->many_delta;
  RETURN_IF_ERROR(Normalize(layer.attention_norm, scratch_->normed, nullptr));
  RETURN_IF_ERROR(RunProjection(delta.first, scratch_->normed, s.first_rows));
  RETURN_IF_ERROR(DeltaGates(layer, delta, s));
  const gpu::DeltaShape shape = DeltaShapeOf(delta.config);
  for (uint32_t row = 0; row < token_count_; row += kDeltaRows) {
    const uint32_t rows = std::min(kDeltaRows, token_count_ - row);
    gpu::DeltaMix mix = MixOf(delta, s);
    mix.row_count = rows;
    mix.bf16 = s.first_rows + uint64_t{row} * delta.first.rows;
    mix.a += uint64_t{row} * shape.value_heads;
    mix.b += uint64_t{row} * shape.value_heads;
    // Behind the first rows of what was prepared, on what those before them have left.
    const bool goes_on = first_ + row > prompt_first_;
    mix.states.only = {.first_row = 0,
                       .row_count = rows,
                       .from = goes_on ? prompt_state_.to : prompt_state_.from,
                       .to = prompt_state_.to};
    RETURN_IF_ERROR(RunDelta(
        delta, mix, s.values,
        {.z_bf16 = mix.bf16 + shape.channels(),
         .operand = scratch_->attended_rows + uint64_t{row} * gpu::OperandStride(shape.values())}));
  }
  return gemm_.Dense({.matrix = delta.o,
                      .operand = scratch_->attended_rows,
                      .token_count = token_count_,
                      .output = gpu::DenseProduct::Output::kAddF32,
                      .y = scratch_->hidden,
                      .stride = config_.hidden},
                     stream_);
}

}  // namespace moraine
