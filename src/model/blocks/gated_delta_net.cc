#include "model/blocks/gated_delta_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace moraine {
namespace {

// Scratch is 26 MB for Qwen3-Next; the projections are read again for each so many tokens.
constexpr uint32_t kDeltaTokens = 256;
// Added to the sum of squares of q and of k.
constexpr float kLengthEpsilon = 1e-6f;

GatedDeltaShape ShapeOf(const GatedDeltaConfig& c) {
  return {c.key_heads, c.value_heads, c.key_dim, c.value_dim};
}
uint32_t KeyRows(const GatedDeltaConfig& c) { return c.key_heads * c.key_dim; }
uint32_t ValueRows(const GatedDeltaConfig& c) { return c.value_heads * c.value_dim; }
uint32_t Channels(const GatedDeltaConfig& c) { return 2 * KeyRows(c) + ValueRows(c); }
size_t WindowFloats(const GatedDeltaConfig& c) {
  return AlignUp(size_t{c.taps - 1} * Channels(c), 16);
}

// torch.nn.functional.softplus: beyond 20 x itself.
float Softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }
float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace

void GatedDeltaNet::AppendRoles(const GatedDeltaConfig& c, uint32_t hidden, RoleList* roles) {
  const uint32_t keys = KeyRows(c), values = ValueRows(c), heads = c.value_heads;
  const uint32_t group = heads / c.key_heads, key_dim = c.key_dim;
  const uint32_t group_values = group * c.value_dim;
  const PartOrder order = roles->tiles_value_heads() && !c.by_key_head
                              ? PartOrder{c.key_heads, group}
                              : PartOrder{};
  // For each key head: its q, k, and the v and z of its value heads; the same with b and a. GGUF files
  // of such models have only b and a that way.
  if (c.by_key_head && roles->HasName("delta_qkvz")) {
    const uint32_t period = 2 * key_dim + 2 * group_values;
    const RoleSource all = {.tensor = "delta_qkvz",
                            .shape = {uint64_t{period} * c.key_heads, hidden},
                            .period = period};
    roles->Rows("delta_q", keys, hidden, key_dim, all.At(0));
    roles->Rows("delta_k", keys, hidden, key_dim, all.At(key_dim));
    roles->Rows("delta_v", values, hidden, group_values, all.At(2 * key_dim));
    roles->Rows("delta_z", values, hidden, group_values, all.At(2 * key_dim + group_values));
  } else {
    RoleSource all = {.tensor = "delta_qkv", .shape = {Channels(c), hidden}};
    roles->Rows("delta_q", keys, hidden, keys, all.At(0));
    roles->Rows("delta_k", keys, hidden, keys, all.At(keys));
    all.period = c.value_dim;
    all.order = order;
    roles->Rows("delta_v", values, hidden, c.value_dim, all.At(2 * keys));
    roles->Rows("delta_z", values, hidden, c.value_dim,
                {.shape = {values, hidden}, .period = c.value_dim, .order = order});
  }
  if (c.by_key_head) {
    const RoleSource gates = {
        .tensor = "delta_ba", .shape = {uint64_t{2} * heads, hidden}, .period = 2 * group};
    roles->ExactRows("delta_b", heads, hidden, group, gates.At(0));
    roles->ExactRows("delta_a", heads, hidden, group, gates.At(group));
  } else {
    const RoleSource gates = {.shape = {heads, hidden}, .period = 1, .order = order};
    roles->ExactRows("delta_b", heads, hidden, 1, gates);
    roles->ExactRows("delta_a", heads, hidden, 1, gates);
  }
  roles->Vector("delta_conv", Channels(c) * c.taps, {Channels(c), 1, c.taps},
                {order, 2 * keys * c.taps, c.value_dim * c.taps});
  roles->DecayLog("delta_decay_log", heads, {order, 0, 1});
  roles->Vector("delta_decay_bias", heads, {}, {order, 0, 1});
  roles->Vector("delta_norm", c.value_dim);
  roles->Matrix("delta_o", hidden, values, {order, 0, c.value_dim});
}

LayerStateShape GatedDeltaNet::StateShape(const GatedDeltaConfig& c, KvFormat) {
  return {.recurrent_bytes = (WindowFloats(c) + ShapeOf(c).state_floats()) * sizeof(float)};
}

size_t GatedDeltaNet::ScratchFloats(const GatedDeltaConfig& c, uint32_t, uint32_t max_tokens) {
  const size_t tokens = std::min(max_tokens, kDeltaTokens);
  return Scratch::Padded((tokens + c.taps - 1) * Channels(c)) +
         Scratch::Padded(tokens * Channels(c)) + 2 * Scratch::Padded(tokens * ValueRows(c)) +
         2 * Scratch::Padded(tokens * c.value_heads);
}

GatedDeltaNet::GatedDeltaNet(const GatedDeltaConfig& config, const MixerContext& context,
                             const DenseSource& weights, const std::string& prefix)
    : config_(config),
      context_(context),
      q_(weights.Matrix(prefix + "delta_q")),
      k_(weights.Matrix(prefix + "delta_k")),
      v_(weights.Matrix(prefix + "delta_v")),
      z_(weights.Matrix(prefix + "delta_z")),
      a_(weights.Matrix(prefix + "delta_a")),
      b_(weights.Matrix(prefix + "delta_b")),
      o_(weights.Matrix(prefix + "delta_o")),
      norm_(weights.Vector(prefix + "delta_norm")),
      decay_bias_(weights.Vector(prefix + "delta_decay_bias")) {
  const std::span<const float> conv = weights.Vector(prefix + "delta_conv");
  const uint32_t channels = Channels(config);
  conv_.resize(conv.size());
  for (uint32_t c = 0; c < channels; ++c) {
    for (uint32_t i = 0; i < config.taps; ++i) {
      conv_[size_t{i} * channels + c] = conv[size_t{c} * config.taps + i];
    }
  }
  for (const float log : weights.Vector(prefix + "delta_decay_log")) {
    decay_rate_.push_back(-std::exp(log));
  }
  const float length = 1.0f / std::sqrt(static_cast<float>(config.key_dim));
  q_scale_.assign(config.key_dim, length * length);
  k_scale_.assign(config.key_dim, length);
}

void GatedDeltaNet::Run(const MixerInput& input, float* out) {
  Scratch& scratch = *context_.scratch;
  const uint32_t channels = Channels(config_);
  const size_t tokens = std::min(input.token_count, kDeltaTokens), before = config_.taps - 1;
  Work work;
  work.inputs = scratch.Take((tokens + before) * channels) + before * channels;
  work.mixed = scratch.Take(tokens * channels);
  work.z = scratch.Take(tokens * ValueRows(config_));
  work.values = scratch.Take(tokens * ValueRows(config_));
  work.a = scratch.Take(tokens * config_.value_heads);
  work.b = scratch.Take(tokens * config_.value_heads);
  for (uint32_t t = 0; t < input.token_count; t += kDeltaTokens) {
    RunPart(work, input, t, std::min(kDeltaTokens, input.token_count - t),
            out + size_t{t} * context_.hidden);
  }
}

// Rows of a segment behind its first go on where those before them have written.
GatedDeltaNet::Memory GatedDeltaNet::MemoryOf(const MixerSegment& segment, uint32_t row) const {
  SequenceState& state = *segment.state;
  auto* const next = reinterpret_cast<float*>(state.pending(context_.layer));
  const auto* const last =
      row == segment.first ? reinterpret_cast<const float*>(state.committed(context_.layer)) : next;
  const size_t window = WindowFloats(config_);
  return {last, last + window, next, next + window};
}

// Puts the window before the rows of a sequence, over inputs of the sequence before it, which has been
// convolved.
void GatedDeltaNet::Convolve(const Work& work, const Memory& memory, uint32_t row,
                             uint32_t count) const {
  const size_t channels = Channels(config_), window = (config_.taps - 1) * channels;
  float* const inputs = work.inputs + row * channels;
  std::memcpy(inputs - window, memory.window, window * sizeof(float));
  context_.backend->CausalConv({.x = inputs,
                                .x_stride = channels,
                                .token_count = count,
                                .channels = static_cast<uint32_t>(channels),
                                .taps = config_.taps,
                                .weights = conv_.data(),
                                .out = work.mixed + row * channels,
                                .out_stride = channels});
  std::memcpy(memory.new_window, inputs + count * channels - window, window * sizeof(float));
}

void GatedDeltaNet::RunPart(const Work& work, const MixerInput& input, uint32_t first,
                            uint32_t count, float* out) const {
  CpuBackend& backend = *context_.backend;
  const GatedDeltaShape shape = ShapeOf(config_);
  const size_t channels = Channels(config_), keys = KeyRows(config_);
  const size_t values = ValueRows(config_), heads = shape.value_heads;
  const CpuBackend::MatMulTarget projections[] = {
      {q_, work.inputs, channels}, {k_, work.inputs + keys, channels},
      {v_, work.inputs + 2 * keys, channels}, {z_, work.z, values},
      {a_, work.a, heads}, {b_, work.b, heads}};
  backend.MatMulMany(projections, input.x + size_t{first} * context_.hidden, context_.hidden,
                     count);
  ForSegments(input, first, count, [&](const MixerSegment& segment, uint32_t row, uint32_t rows) {
    Convolve(work, MemoryOf(segment, row), row - first, rows);
  });
  Normalize(work.mixed, count);
  Gates(work, count);
  ForSegments(input, first, count, [&](const MixerSegment& segment, uint32_t row, uint32_t rows) {
    const Memory memory = MemoryOf(segment, row);
    const size_t at = row - first;
    const float* const mixed = work.mixed + at * channels;
    backend.GatedDelta({.shape = shape,
                        .q = mixed,
                        .k = mixed + keys,
                        .v = mixed + 2 * keys,
                        .stride = channels,
                        .decay = work.a + at * heads,
                        .beta = work.b + at * heads,
                        .token_count = rows,
                        .state = memory.state,
                        .new_state = memory.new_state,
                        .out = work.values + at * values,
                        .out_stride = values});
  });
  const uint32_t value_rows = static_cast<uint32_t>(count * heads);
  backend.RmsNorm(work.values, shape.value_dim, norm_.data(), context_.norm_epsilon, value_rows,
                  shape.value_dim, work.values, shape.value_dim);
  backend.SiluMul(work.z, work.values, size_t{count} * values);
  backend.MatMul(o_, work.z, values, count, out, context_.hidden);
}

// x / sqrt(sum + epsilon) is RmsNorm's with both under the root divided by key_dim.
void GatedDeltaNet::Normalize(float* mixed, uint32_t count) const {
  const uint32_t dim = config_.key_dim, channels = Channels(config_);
  const float epsilon = kLengthEpsilon / static_cast<float>(dim);
  for (uint32_t head = 0; head < 2 * config_.key_heads; ++head) {
    const bool query = head < config_.key_heads;
    float* const x = mixed + size_t{head} * dim;
    context_.backend->RmsNorm(x, channels, (query ? q_scale_ : k_scale_).data(), epsilon, count, dim,
                              x, channels);
  }
}

// a becomes the decay, b beta.
void GatedDeltaNet::Gates(const Work& work, uint32_t count) const {
  const size_t heads = config_.value_heads;
  context_.backend->pool().ParallelFor(count, [&](uint32_t t, uint32_t) {
    for (size_t h = 0; h < heads; ++h) {
      float& a = work.a[t * heads + h];
      float& b = work.b[t * heads + h];
      a = std::exp(decay_rate_[h] * Softplus(a + decay_bias_[h]));
      b = Sigmoid(b);
    }
  });
}

}  // namespace moraine
