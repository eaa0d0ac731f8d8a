#include "model/blocks/gqa_attention.h"

#include <cmath>

#include "model/blocks/bias.h"
#include "model/kv_planes.h"

namespace moraine {

void GqaAttention::AppendRoles(const GqaConfig& c, uint32_t hidden, RoleList* roles) {
  const uint32_t q = c.query_heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  // Some GGUF files have the three in one tensor. Not where a gate lies among the query's rows: there that name is
  // of what the model's Gated DeltaNet layers have.
  const auto part = [&](const char* role, uint32_t rows, uint32_t first) {
    if (c.output_gate || !roles->HasName("qkv")) return roles->Matrix(role, rows, hidden);
    roles->Rows(role, rows, hidden, rows,
                {.tensor = "qkv", .shape = {q + 2 * kv, hidden}, .offset = first});
  };
  if (c.output_gate) {
    // Of each head the query's rows, then the gate's.
    const RoleSource both = {.tensor = "q", .shape = {2 * q, hidden}, .period = 2 * c.head_dim};
    roles->Rows("q", q, hidden, c.head_dim, both.At(0));
    roles->Rows("gate", q, hidden, c.head_dim, both.At(c.head_dim));
  } else {
    part("q", q, 0);
  }
  part("k", kv, q);
  part("v", kv, q + kv);
  roles->Matrix("o", hidden, q);
  if (c.qk_norm != QkNorm::kNone) {
    const bool whole = c.qk_norm == QkNorm::kWholeRow;
    roles->Norm("q_norm", whole ? q : c.head_dim);
    roles->Norm("k_norm", whole ? kv : c.head_dim);
  }
  if (c.qkv_bias) {
    const RoleSource joined = {.tensor = "qkv_bias", .shape = {q + 2 * kv}};
    const bool apart = !roles->HasName("qkv_bias");
    roles->VectorPart("q_bias", q, apart ? RoleSource{} : joined);
    roles->VectorPart("k_bias", kv, apart ? RoleSource{} : joined.At(q));
    roles->VectorPart("v_bias", kv, apart ? RoleSource{} : joined.At(q + kv));
  }
  if (c.output_bias) roles->Vector("o_bias", hidden);
  if (c.sinks) roles->Vector("sinks", c.query_heads);
}

LayerStateShape GqaAttention::StateShape(const GqaConfig& c, KvFormat format) {
  return {.position_bytes = KvPlanes::BytesPerPosition(c.kv_heads, c.head_dim, format)};
}

size_t GqaAttention::ScratchFloats(const GqaConfig& c, uint32_t, uint32_t max_tokens) {
  const size_t q = size_t{max_tokens} * c.query_heads * c.head_dim;
  const size_t kv = size_t{max_tokens} * c.kv_heads * c.head_dim;
  return (c.output_gate ? 3 : 2) * Scratch::Padded(q) + 2 * Scratch::Padded(kv);
}

GqaAttention::GqaAttention(const GqaConfig& config, const MixerContext& context,
                           const DenseSource& weights, const std::string& prefix)
    : config_(config), context_(context) {
  q_ = weights.Matrix(prefix + "q");
  k_ = weights.Matrix(prefix + "k");
  v_ = weights.Matrix(prefix + "v");
  o_ = weights.Matrix(prefix + "o");
  if (config.qk_norm != QkNorm::kNone) {
    q_norm_ = weights.Vector(prefix + "q_norm");
    k_norm_ = weights.Vector(prefix + "k_norm");
  }
  if (config.qkv_bias) {
    q_bias_ = weights.Vector(prefix + "q_bias");
    k_bias_ = weights.Vector(prefix + "k_bias");
    v_bias_ = weights.Vector(prefix + "v_bias");
  }
  if (config.output_gate) gate_ = weights.Matrix(prefix + "gate");
  if (config.output_bias) o_bias_ = weights.Vector(prefix + "o_bias");
  if (config.sinks) sinks_ = weights.Vector(prefix + "sinks");
}

// A head is a row: token rows are contiguous, so heads are too.
void GqaAttention::NormAndRotate(float* x, uint32_t token_count, uint32_t heads,
                                 std::span<const float> norm) const {
  const uint32_t stride = heads * config_.head_dim;
  if (config_.qk_norm != QkNorm::kNone) {
    const uint32_t cols = static_cast<uint32_t>(norm.size()), rows = token_count * (stride / cols);
    context_.backend->RmsNorm(x, cols, norm.data(), context_.norm_epsilon, rows, cols, x, cols);
  }
  context_.rope->Apply(*context_.backend, x, stride, {0, token_count}, heads, config_.head_dim);
}

void GqaAttention::Run(const MixerInput& input, float* out) {
  CpuBackend& backend = *context_.backend;
  const uint32_t hidden = context_.hidden, head_dim = config_.head_dim, count = input.token_count;
  const size_t q_stride = size_t{config_.query_heads} * head_dim;
  const size_t kv_stride = size_t{config_.kv_heads} * head_dim;
  Scratch& scratch = *context_.scratch;
  float* const q = scratch.Take(count * q_stride);
  float* const keys = scratch.Take(count * kv_stride);
  float* const values = scratch.Take(count * kv_stride);
  float* const attended = scratch.Take(count * q_stride);
  float* const gate = config_.output_gate ? scratch.Take(count * q_stride) : nullptr;

  const CpuBackend::MatMulTarget projections[] = {
      {q_, q, q_stride}, {k_, keys, kv_stride}, {v_, values, kv_stride}, {gate_, gate, q_stride}};
  backend.MatMulMany({projections, size_t{config_.output_gate ? 4u : 3u}}, input.x, hidden, count);
  AddBias(q, q_stride, q_bias_, count);
  AddBias(keys, kv_stride, k_bias_, count);
  AddBias(values, kv_stride, v_bias_, count);
  NormAndRotate(q, count, config_.query_heads, q_norm_);
  NormAndRotate(keys, count, config_.kv_heads, k_norm_);

  const AttentionShape shape{.query_heads = config_.query_heads,
                             .kv_heads = config_.kv_heads,
                             .head_dim = head_dim,
                             .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                             .sliding_window = config_.sliding_window,
                             .sinks = config_.sinks ? sinks_.data() : nullptr};
  for (const MixerSegment& segment : input.segments) {
    const SequenceState& state = *segment.state;
    const KvPlanes planes(state.positions(context_.layer), config_.kv_heads, head_dim,
                          state.format());
    const size_t q_row = segment.first * q_stride, kv_row = segment.first * kv_stride;
    planes.Write(state.length(), segment.count, keys + kv_row, values + kv_row);
    backend.Attention(shape, q + q_row, q_stride, planes.view(), state.length(), segment.count,
                      attended + q_row, q_stride);
  }
  if (gate != nullptr) backend.SigmoidMul(gate, attended, count * q_stride);
  backend.MatMul(o_, attended, q_stride, count, out, hidden);
  AddBias(out, hidden, o_bias_, count);
}

}  // namespace moraine
