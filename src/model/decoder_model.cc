#include "model/decoder_model.h"

#include <algorithm>
#include <cmath>

#include "compute/encode.h"

namespace moraine {
namespace {

// Rows of logits that are computed at a time when all positions are asked for: the vocabulary is
// large, so this bounds the scratch (32 x 151,936 floats are 19 MB).
constexpr uint32_t kLogitRows = 32;
// Tokens whose lookahead is computed at a time, which bounds its scratch.
constexpr uint32_t kLookaheadRows = 32;

void AddBias(float* x, size_t stride, std::span<const float> bias, uint32_t rows) {
  if (bias.empty()) return;
  for (uint32_t t = 0; t < rows; ++t) {
    float* row = x + t * stride;
    for (size_t i = 0; i < bias.size(); ++i) row[i] += bias[i];
  }
}

}  // namespace

void RouteToken(float* logits, uint32_t expert_count, uint32_t top_k, bool normalize,
                uint32_t* experts, float* weights) {
  CHECK(top_k <= expert_count);
  float maximum = logits[0];
  for (uint32_t e = 1; e < expert_count; ++e) maximum = std::max(maximum, logits[e]);
  float sum = 0;
  for (uint32_t e = 0; e < expert_count; ++e) {
    logits[e] = std::exp(logits[e] - maximum);
    sum += logits[e];
  }
  // Selection by repeated maximum: k is at most a few dozen and this needs no scratch. A chosen expert
  // is marked, not only lowered, so that the choice stays distinct when a broken model yields NaN.
  constexpr float kChosen = -1.0f;
  float chosen_sum = 0;
  for (uint32_t k = 0; k < top_k; ++k) {
    uint32_t best = expert_count;
    for (uint32_t e = 0; e < expert_count; ++e) {
      if (logits[e] == kChosen) continue;
      if (best == expert_count || logits[e] > logits[best]) best = e;
    }
    experts[k] = best;
    weights[k] = logits[best] / sum;
    chosen_sum += weights[k];
    logits[best] = kChosen;
  }
  if (!normalize) return;
  for (uint32_t k = 0; k < top_k; ++k) weights[k] /= chosen_sum;
}

void RoutePreferring(float* logits, uint32_t expert_count, uint32_t top_k, bool normalize,
                     const uint8_t* resident, float strength, uint32_t* experts, float* weights) {
  const auto [least, most] = std::minmax_element(logits, logits + expert_count);
  const float maximum = *most, bonus = strength * (*most - *least);
  const uint32_t best = static_cast<uint32_t>(most - logits);
  float sum = 0;
  for (uint32_t e = 0; e < expert_count; ++e) sum += std::exp(logits[e] - maximum);
  const auto chosen = [&](uint32_t count, uint32_t e) {
    return std::find(experts, experts + count, e) != experts + count;
  };
  experts[0] = best;
  for (uint32_t k = 1; k < top_k; ++k) {
    uint32_t pick = expert_count;
    float pick_score = 0;
    for (uint32_t e = 0; e < expert_count; ++e) {
      const float score = logits[e] + (resident[e] ? bonus : 0);
      if ((pick != expert_count && !(score > pick_score)) || chosen(k, e)) continue;
      pick = e;
      pick_score = score;
    }
    experts[k] = pick;
  }
  std::sort(experts, experts + top_k, [&](uint32_t a, uint32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  float chosen_sum = 0;
  for (uint32_t k = 0; k < top_k; ++k) {
    weights[k] = std::exp(logits[experts[k]] - maximum) / sum;
    chosen_sum += weights[k];
  }
  if (!normalize) return;
  for (uint32_t k = 0; k < top_k; ++k) weights[k] /= chosen_sum;
}

uint64_t DecoderModel::ScratchBytes(const ModelConfig& c, uint32_t max_tokens) {
  uint64_t dense = 0;
  for (const LayerConfig& layer : c.layers) {
    if (layer.feed_forward == FeedForwardKind::kDense) {
      dense = std::max<uint64_t>(dense, layer.intermediate);
    }
  }
  const uint64_t q = uint64_t{c.query_heads} * c.head_dim;
  const uint64_t kv = uint64_t{c.kv_heads} * c.head_dim;
  const uint64_t row = 3 * c.hidden + 2 * q + 2 * kv + 2 * dense + c.head_dim + c.expert_count +
                       (2 + kMaxLookahead) * c.top_k;
  const uint64_t lookahead_row = c.hidden + c.expert_count + c.top_k;
  return sizeof(float) * (row * max_tokens + lookahead_row * std::min(max_tokens, kLookaheadRows) +
                          uint64_t{c.vocab_size} * std::min(max_tokens, kLogitRows));
}

DecoderModel::DecoderModel(const ModelConfig& config, const DenseSource& weights,
                           CpuBackend& backend, uint32_t max_tokens)
    : config_(config), backend_(backend) {
  embedding_ = weights.Matrix("embedding");
  output_ = config.tied_embeddings ? embedding_ : weights.Matrix("output");
  final_norm_ = weights.Vector("norm");
  uint32_t dense = 0;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    const std::string attention = prefix + "attention.";
    Layer layer;
    layer.attention.norm = weights.Vector(attention + "norm");
    layer.attention.q = weights.Matrix(attention + "q");
    layer.attention.k = weights.Matrix(attention + "k");
    layer.attention.v = weights.Matrix(attention + "v");
    layer.attention.o = weights.Matrix(attention + "o");
    layer.attention.q_norm = weights.Vector(attention + "q_norm");
    layer.attention.k_norm = weights.Vector(attention + "k_norm");
    if (config.attention_bias) {
      layer.attention.q_bias = weights.Vector(attention + "q_bias");
      layer.attention.k_bias = weights.Vector(attention + "k_bias");
      layer.attention.v_bias = weights.Vector(attention + "v_bias");
      layer.attention.o_bias = weights.Vector(attention + "o_bias");
    }
    layer.mlp_norm = weights.Vector(prefix + "mlp.norm");
    if (config.layers[i].feed_forward == FeedForwardKind::kMoe) {
      layer.router = weights.Matrix(prefix + "mlp.router");
    } else {
      layer.gate = weights.Matrix(prefix + "mlp.gate");
      layer.up = weights.Matrix(prefix + "mlp.up");
      layer.down = weights.Matrix(prefix + "mlp.down");
      dense = std::max(dense, config.layers[i].intermediate);
    }
    layers_.push_back(layer);
  }
  // float32 throughout, as transformers computes it: other roundings move the logits.
  for (uint32_t i = 0; i < config.head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    inverse_frequencies_.push_back(1.0f / std::pow(config.rope_theta, exponent));
  }
  const size_t n = max_tokens, q = size_t{config.query_heads} * config.head_dim;
  hidden_.resize(n * config.hidden);
  normed_.resize(n * config.hidden);
  block_out_.resize(n * config.hidden);
  q_.resize(n * q);
  keys_.resize(n * config.kv_heads * config.head_dim);
  values_.resize(keys_.size());
  attention_out_.resize(n * q);
  gate_.resize(n * dense);
  up_.resize(n * dense);
  cos_.resize(n * config.head_dim / 2);
  sin_.resize(n * config.head_dim / 2);
  router_logits_.resize(n * config.expert_count);
  routing_weights_.resize(n * config.top_k);
  routing_experts_.resize(n * config.top_k);
  resident_.resize(config.expert_count);
  const size_t lookahead_rows = std::min<size_t>(n, kLookaheadRows);
  lookahead_normed_.resize(lookahead_rows * config.hidden);
  lookahead_logits_.resize(lookahead_rows * config.expert_count);
  lookahead_weights_.resize(config.top_k);
  lookahead_experts_.resize(kMaxLookahead * n * config.top_k);
  logits_.resize(size_t{config.vocab_size} * std::min<size_t>(n, kLogitRows));
}

Status DecoderModel::Forward(std::span<const int32_t> tokens, KvCache& cache,
                             MoeExecutor& executor, const ForwardOptions& options) {
  const uint32_t count = static_cast<uint32_t>(tokens.size());
  const uint32_t first = cache.length();
  CHECK(count > 0 && first + count <= cache.max_positions());
  CHECK(size_t{count} * config_.hidden <= hidden_.size(), "chunk larger than max_tokens");
  Embed(tokens);
  PrepareRope(first, count);
  for (uint32_t i = 0; i < layers_.size(); ++i) {
    if (options.cancelled != nullptr && options.cancelled->load(std::memory_order_relaxed)) {
      return Cancelled("request cancelled");
    }
    RunAttention(layers_[i], i, count, cache);
    RETURN_IF_ERROR(RunFeedForward(layers_[i], i, count, executor));
  }
  cache.set_length(first + count);
  EmitLogits(first, count, options);
  return OkStatus();
}

void DecoderModel::Embed(std::span<const int32_t> tokens) {
  for (size_t t = 0; t < tokens.size(); ++t) {
    CHECK(tokens[t] >= 0 && static_cast<uint32_t>(tokens[t]) < config_.vocab_size);
    DecodeRow(embedding_, static_cast<uint32_t>(tokens[t]), &hidden_[t * config_.hidden]);
  }
}

void DecoderModel::PrepareRope(uint32_t first_position, uint32_t token_count) {
  const size_t half = inverse_frequencies_.size();
  for (uint32_t t = 0; t < token_count; ++t) {
    const float position = static_cast<float>(first_position + t);
    for (size_t i = 0; i < half; ++i) {
      const float angle = position * inverse_frequencies_[i];
      cos_[t * half + i] = std::cos(angle);
      sin_[t * half + i] = std::sin(angle);
    }
  }
}

void DecoderModel::RunAttention(const Layer& layer, uint32_t index, uint32_t token_count,
                                KvCache& cache) {
  const Attention& a = layer.attention;
  const uint32_t hidden = config_.hidden, head_dim = config_.head_dim;
  const size_t q_stride = size_t{config_.query_heads} * head_dim;
  const uint32_t first = cache.length();
  const size_t kv_stride = size_t{config_.kv_heads} * head_dim;
  float *const keys = keys_.data(), *const values = values_.data();

  backend_.RmsNorm(hidden_.data(), hidden, a.norm.data(), config_.rms_norm_epsilon, token_count,
                   hidden, normed_.data(), hidden);
  const CpuBackend::MatMulTarget projections[] = {
      {a.q, q_.data(), q_stride}, {a.k, keys, kv_stride}, {a.v, values, kv_stride}};
  backend_.MatMulMany(projections, normed_.data(), hidden, token_count);
  AddBias(q_.data(), q_stride, a.q_bias, token_count);
  AddBias(keys, kv_stride, a.k_bias, token_count);
  AddBias(values, kv_stride, a.v_bias, token_count);

  // Norm per head, then RoPE. A head is a row: token rows are contiguous, so heads are too.
  backend_.RmsNorm(q_.data(), head_dim, a.q_norm.data(), config_.rms_norm_epsilon,
                   token_count * config_.query_heads, head_dim, q_.data(), head_dim);
  backend_.RmsNorm(keys, head_dim, a.k_norm.data(), config_.rms_norm_epsilon,
                   token_count * config_.kv_heads, head_dim, keys, head_dim);
  backend_.Rope(q_.data(), q_stride, token_count, config_.query_heads, head_dim, head_dim,
                cos_.data(), sin_.data());
  backend_.Rope(keys, kv_stride, token_count, config_.kv_heads, head_dim, head_dim, cos_.data(),
                sin_.data());
  cache.Write(index, first, token_count, keys, values);

  const AttentionShape shape{.query_heads = config_.query_heads,
                             .kv_heads = config_.kv_heads,
                             .head_dim = head_dim,
                             .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
  backend_.Attention(shape, q_.data(), q_stride, cache.layer(index), first, token_count,
                     attention_out_.data(), q_stride);
  backend_.MatMul(a.o, attention_out_.data(), q_stride, token_count, block_out_.data(), hidden);
  AddBias(block_out_.data(), hidden, a.o_bias, token_count);
  backend_.Add(hidden_.data(), hidden, block_out_.data(), hidden, token_count, hidden);
}

Status DecoderModel::RunFeedForward(const Layer& layer, uint32_t index, uint32_t token_count,
                                    MoeExecutor& executor) {
  const uint32_t hidden = config_.hidden;
  backend_.RmsNorm(hidden_.data(), hidden, layer.mlp_norm.data(), config_.rms_norm_epsilon,
                   token_count, hidden, normed_.data(), hidden);
  if (config_.layers[index].feed_forward == FeedForwardKind::kMoe) {
    Route(index, token_count, executor);
    RoutingDecision routing;
    routing.token_count = token_count;
    routing.top_k = config_.top_k;
    routing.experts = routing_experts_.data();
    routing.weights = routing_weights_.data();
    LookAhead(index, std::min(executor.LookaheadDepth(), kMaxLookahead), &routing);
    RETURN_IF_ERROR(
        executor.RunExperts(LayerId(index), routing, normed_.data(), block_out_.data()));
  } else {
    const size_t n = config_.layers[index].intermediate;
    const CpuBackend::MatMulTarget both[] = {{layer.gate, gate_.data(), n},
                                             {layer.up, up_.data(), n}};
    backend_.MatMulMany(both, normed_.data(), hidden, token_count);
    backend_.SiluMul(gate_.data(), up_.data(), n * token_count);
    backend_.MatMul(layer.down, gate_.data(), n, token_count, block_out_.data(), hidden);
  }
  backend_.Add(hidden_.data(), hidden, block_out_.data(), hidden, token_count, hidden);
  return OkStatus();
}

void DecoderModel::Route(uint32_t index, uint32_t token_count, const MoeExecutor& executor) {
  const uint32_t experts = config_.expert_count, top_k = config_.top_k;
  backend_.MatMul(layers_[index].router, normed_.data(), config_.hidden, token_count,
                  router_logits_.data(), experts);
  if (token_count == 1) {
    const float strength = executor.ResidentPreference(LayerId(index), resident_);
    if (strength > 0) {
      RoutePreferring(router_logits_.data(), experts, top_k, config_.normalize_top_k,
                      resident_.data(), strength, routing_experts_.data(), routing_weights_.data());
      return;
    }
  }
  for (uint32_t t = 0; t < token_count; ++t) {
    RouteToken(&router_logits_[size_t{t} * experts], experts, top_k, config_.normalize_top_k,
               &routing_experts_[size_t{t} * top_k], &routing_weights_[size_t{t} * top_k]);
  }
}

// The residual stream changes little from layer to layer, so the next routers, with their own norms, can
// be asked before this layer's experts have run.
void DecoderModel::LookAhead(uint32_t index, uint32_t depth, RoutingDecision* routing) {
  uint32_t found = 0;
  for (uint32_t layer = index + 1; layer < layers_.size() && found < depth; ++layer) {
    if (config_.layers[layer].feed_forward != FeedForwardKind::kMoe) continue;
    uint32_t* const experts =
        &lookahead_experts_[found * lookahead_experts_.size() / kMaxLookahead];
    LookAheadTo(layer, routing->token_count, experts);
    lookaheads_[found++] = {LayerId(layer), experts};
  }
  routing->lookaheads = {lookaheads_, found};
}

void DecoderModel::LookAheadTo(uint32_t layer, uint32_t token_count, uint32_t* experts) {
  const uint32_t hidden = config_.hidden, top_k = config_.top_k;
  for (uint32_t t = 0; t < token_count; t += kLookaheadRows) {
    const uint32_t rows = std::min(kLookaheadRows, token_count - t);
    backend_.RmsNorm(&hidden_[size_t{t} * hidden], hidden, layers_[layer].mlp_norm.data(),
                     config_.rms_norm_epsilon, rows, hidden, lookahead_normed_.data(), hidden);
    backend_.MatMul(layers_[layer].router, lookahead_normed_.data(), hidden, rows,
                    lookahead_logits_.data(), config_.expert_count);
    for (uint32_t i = 0; i < rows; ++i) {
      RouteToken(&lookahead_logits_[size_t{i} * config_.expert_count], config_.expert_count, top_k,
                 /*normalize=*/false, &experts[size_t{t + i} * top_k], lookahead_weights_.data());
    }
  }
}

void DecoderModel::EmitLogits(uint32_t first_position, uint32_t token_count,
                              const ForwardOptions& options) {
  if (options.logits == LogitsMode::kNone || options.sink == nullptr) return;
  const uint32_t hidden = config_.hidden;
  const uint32_t begin = options.logits == LogitsMode::kAll ? 0 : token_count - 1;
  const uint32_t step = static_cast<uint32_t>(logits_.size() / config_.vocab_size);
  backend_.RmsNorm(&hidden_[size_t{begin} * hidden], hidden, final_norm_.data(),
                   config_.rms_norm_epsilon, token_count - begin, hidden,
                   &normed_[size_t{begin} * hidden], hidden);
  for (uint32_t t = begin; t < token_count; t += step) {
    const uint32_t rows = std::min(step, token_count - t);
    backend_.MatMul(output_, &normed_[size_t{t} * hidden], hidden, rows, logits_.data(),
                    config_.vocab_size);
    for (uint32_t i = 0; i < rows; ++i) {
      (*options.sink)(first_position + t + i,
                      {&logits_[size_t{i} * config_.vocab_size], config_.vocab_size});
    }
  }
}

}  // namespace moraine
