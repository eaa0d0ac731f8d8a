// Multi-head latent attention of a pass (gpu_mla.h): few tokens absorbed, many with keys and values of their own.
#include <algorithm>

#include "compute/cuda/row_ops.h"
#include "compute/cuda/stacked_gemv.h"
#include "engine/gpu/gpu_pass.h"

namespace moraine {
namespace {

// Matrices first .. first + count - 1 of a stack whose matrices have `rows` rows.
gpu::DeviceMatrix PartOfStack(const gpu::DeviceMatrix& stack, uint32_t rows, uint32_t first,
                              uint32_t count) {
  const uint32_t padded = PanelCount(rows) * kTileRows;
  gpu::DeviceMatrix part = stack;
  part.data += MatrixBytes(stack.encoding, first * padded, stack.cols);
  part.rows = count * padded;
  return part;
}

}  // namespace

gpu::LatentRows GpuPass::Latents(const GpuMla& mla, const gpu::LatentCache& cache) const {
  return {.token_count = token_count_,
          .heads = mla.config.heads,
          .nope = mla.config.nope_dim,
          .norm = mla.kv_a_norm,
          .epsilon = mla.config.norm_epsilon,
          .cos = mla.cos,
          .sin = mla.sin,
          .interleaved = mla.config.rope.interleaved,
          .cache = cache};
}

Status GpuPass::FewLatent(const GpuLayer& layer, const GpuMla& mla) {
  const MlaConfig& c = mla.config;
  const LatentScratch& s = scratch_->latent;
  gpu::LatentCache cache = mla.cache;
  cache.block_tables = scratch_->tables;
  cache.table_stride = table_blocks_;
  RETURN_IF_ERROR(RunProjection(
      mla.first, Input(scratch_->hidden, config_.hidden, layer.attention_norm), s.first));
  const float* queries = s.first;
  uint32_t query_stride = mla.first.rows;
  if (c.q_rank > 0) {
    RETURN_IF_ERROR(gpu::RunGemv({.matrix = mla.q,
                                  .input = {.x = s.first,
                                            .stride = mla.first.rows,
                                            .norm = mla.q_a_norm,
                                            .epsilon = c.norm_epsilon},
                                  .token_count = token_count_,
                                  .y = s.queries,
                                  .y_stride = mla.query_width()},
                                 stream_));
    queries = s.queries;
    query_stride = mla.query_width();
  }
  const uint32_t absorbed_stride = c.heads * cache.width();
  gpu::LatentRows rows = Latents(mla, cache);
  rows.latents = s.first + (mla.first.rows - cache.width());
  rows.latent_stride = mla.first.rows;
  rows.positions = scratch_->positions;
  rows.queries_f32 = queries;
  rows.query_stride = query_stride;
  rows.absorbed = s.absorbed;
  RETURN_IF_ERROR(gpu::RunLatentRows(rows, stream_));
  RETURN_IF_ERROR(gpu::RunStackedGemv({.matrix = mla.k_up,
                                       .count = c.heads,
                                       .rows = c.kv_rank,
                                       .x = queries,
                                       .x_stride = query_stride,
                                       .x_head_stride = c.nope_dim + c.rope_dim,
                                       .token_count = token_count_,
                                       .y = s.absorbed,
                                       .y_stride = absorbed_stride,
                                       .y_head_stride = cache.width()},
                                      stream_));
  RETURN_IF_ERROR(gpu::RunLatentDecodeAttention({.queries = s.absorbed,
                                                 .token_count = token_count_,
                                                 .heads = c.heads,
                                                 .positions = scratch_->positions,
                                                 .cache = cache,
                                                 .scale = c.scale,
                                                 .scratch = s.runs,
                                                 .out = s.attended},
                                                stream_));
  RETURN_IF_ERROR(gpu::RunStackedGemv({.matrix = mla.v_up,
                                       .count = c.heads,
                                       .rows = c.value_dim,
                                       .x = s.attended,
                                       .x_stride = c.heads * c.kv_rank,
                                       .x_head_stride = c.kv_rank,
                                       .token_count = token_count_,
                                       .y = s.values,
                                       .y_stride = mla.value_width(),
                                       .y_head_stride = c.value_dim},
                                      stream_));
  return gpu::RunGemv({.matrix = mla.o,
                       .input = Input(s.values, mla.value_width(), nullptr),
                       .token_count = token_count_,
                       .y = scratch_->hidden,
                       .y_stride = config_.hidden,
                       .add = true},
                      stream_);
}

// Projected, not turned yet.
Status GpuPass::ManyLatentQueries(const GpuMla& mla) {
  const LatentScratch& s = scratch_->latent;
  const uint32_t rank = mla.config.q_rank;
  const uint16_t* operand = scratch_->normed;
  if (rank > 0) {
    RETURN_IF_ERROR(gemm_.Dense({.matrix = mla.q_a,
                                 .operand = operand,
                                 .token_count = token_count_,
                                 .output = gpu::DenseProduct::Output::kF32,
                                 .y = s.q_low,
                                 .stride = gpu::RowStride(rank)},
                                stream_));
    RETURN_IF_ERROR(gpu::RunRowNorm({.x = s.q_low,
                                     .x_stride = gpu::RowStride(rank),
                                     .weight = mla.q_a_norm,
                                     .epsilon = mla.config.norm_epsilon,
                                     .token_count = token_count_,
                                     .cols = rank,
                                     .operand = s.q_operand},
                                    stream_));
    operand = s.q_operand;
  }
  return gemm_.Dense({.matrix = mla.q,
                      .operand = operand,
                      .token_count = token_count_,
                      .output = gpu::DenseProduct::Output::kBf16,
                      .y = s.query_rows,
                      .stride = mla.query_width()},
                     stream_);
}

Status GpuPass::ManyLatent(const GpuLayer& layer, const GpuMla& mla) {
  const MlaConfig& c = mla.config;
  const LatentScratch& s = scratch_->latent;
  gpu::LatentCache cache = mla.cache;
  cache.block_tables = scratch_->tables;
  RETURN_IF_ERROR(Normalize(layer.attention_norm, scratch_->normed, nullptr));
  RETURN_IF_ERROR(ManyLatentQueries(mla));
  RETURN_IF_ERROR(gemm_.Dense({.matrix = mla.kv_a,
                               .operand = scratch_->normed,
                               .token_count = token_count_,
                               .output = gpu::DenseProduct::Output::kF32,
                               .y = s.latent_rows,
                               .stride = gpu::RowStride(cache.width())},
                              stream_));
  gpu::LatentRows rows = Latents(mla, cache);
  rows.latents = s.latent_rows;
  rows.latent_stride = gpu::RowStride(cache.width());
  rows.first_position = first_;
  rows.queries_bf16 = s.query_rows;
  rows.query_stride = mla.query_width();
  RETURN_IF_ERROR(gpu::RunLatentRows(rows, stream_));

  // Of all positions so far, whichever chunk brought them.
  const uint32_t positions = first_ + token_count_, head_dim = c.nope_dim + c.rope_dim;
  RETURN_IF_ERROR(gpu::GatherLatents(cache, positions, s.latent_operand, stream_));
  const uint64_t of_head = uint64_t{positions} * (c.nope_dim + c.value_dim);
  const auto heads_at_once =
      static_cast<uint32_t>(std::clamp<uint64_t>(s.key_and_value_elements / of_head, 1, c.heads));
  for (uint32_t head = 0; head < c.heads; head += heads_at_once) {
    const uint32_t heads = std::min(heads_at_once, c.heads - head);
    uint16_t* const keys = s.keys_and_values;
    uint16_t* const values = keys + uint64_t{positions} * heads * c.nope_dim;
    const auto multiply = [&](const gpu::DeviceMatrix& stack, uint32_t width, uint16_t* to) {
      return gemm_.Dense({.matrix = PartOfStack(stack, width, head, heads),
                          .operand = s.latent_operand,
                          .token_count = positions,
                          .output = gpu::DenseProduct::Output::kBf16,
                          .y = to,
                          .stride = heads * width},
                         stream_);
    };
    RETURN_IF_ERROR(multiply(mla.k_rows, c.nope_dim, keys));
    RETURN_IF_ERROR(multiply(mla.v_up, c.value_dim, values));
    RETURN_IF_ERROR(gpu::RunLatentPrefillAttention(
        {.queries = s.query_rows + head * head_dim,
         .query_stride = mla.query_width(),
         .token_count = token_count_,
         .heads = heads,
         .first_position = first_,
         .keys = keys,
         .values = values,
         .sizes = mla.sizes(),
         .cache = cache,
         .scale = c.scale,
         .operand = scratch_->attended_rows + head * c.value_dim,
         .operand_stride = gpu::OperandStride(mla.value_width())},
        stream_));
  }
  return gemm_.Dense({.matrix = mla.o,
                      .operand = scratch_->attended_rows,
                      .token_count = token_count_,
                      .output = gpu::DenseProduct::Output::kAddF32,
                      .y = scratch_->hidden,
                      .stride = config_.hidden},
                     stream_);
}

}  // namespace moraine
