#include "model/decoder_model.h"

#include <algorithm>
#include <string>

#include "compute/encode.h"

namespace moraine {
namespace {

// Rows of logits that are computed at a time when all positions are asked for: the vocabulary is
// large, so this bounds the scratch (32 x 151,936 floats are 19 MB).
constexpr uint32_t kLogitRows = 32;
// Tokens whose lookahead is computed at a time, which bounds its scratch.
constexpr uint32_t kLookaheadRows = 32;

// What the greediest block of a layer takes.
size_t BlockScratchFloats(const ModelConfig& config, uint32_t max_tokens) {
  size_t floats = SharedExpert::ScratchFloats(config, max_tokens);
  for (const LayerConfig& layer : config.layers) {
    floats = std::max(floats, MixerScratchFloats(layer.mixer, config.hidden, max_tokens));
    if (layer.feed_forward != FeedForwardKind::kDense) continue;
    floats = std::max(floats, DenseFeedForward::ScratchFloats(layer.intermediate, max_tokens));
  }
  return floats;
}

uint64_t RopeBytes(const ModelConfig& config, uint32_t max_tokens) {
  std::vector<const RopeConfig*> counted;
  uint64_t bytes = 0;
  for (const LayerConfig& layer : config.layers) {
    const RopeConfig* rope = RopeOf(layer.mixer);
    const auto same = [&](const RopeConfig* other) { return *other == *rope; };
    if (rope == nullptr || std::ranges::any_of(counted, same)) continue;
    counted.push_back(rope);
    bytes += RopeTable::Bytes(*rope, max_tokens);
  }
  return bytes;
}

}  // namespace

uint64_t DecoderModel::ScratchBytes(const ModelConfig& c, uint32_t max_tokens) {
  const uint64_t row = 3 * c.hidden + c.expert_count + (2 + kMaxLookahead) * c.top_k;
  const uint64_t lookahead_row = c.hidden + c.expert_count + c.top_k;
  return RopeBytes(c, max_tokens) +
         sizeof(float) * (BlockScratchFloats(c, max_tokens) + row * max_tokens +
                          lookahead_row * std::min(max_tokens, kLookaheadRows) +
                          uint64_t{c.vocab_size} * std::min(max_tokens, kLogitRows));
}

uint32_t DecoderModel::WidestInput(const ModelConfig& config) {
  uint32_t widest = config.hidden;
  for (const LayerConfig& layer : config.layers) widest = std::max(widest, layer.intermediate);
  for (const DenseRole& role : DenseRoles(config)) {
    if (role.kind != DenseRole::Kind::kVector) widest = std::max(widest, role.cols);
  }
  return widest;
}

DecoderModel::DecoderModel(const ModelConfig& config, const DenseSource& weights,
                           CpuBackend& backend, uint32_t max_tokens)
    : config_(config), backend_(backend), scratch_(BlockScratchFloats(config, max_tokens)) {
  embedding_ = weights.Matrix("embedding");
  output_ = config.tied_embeddings ? embedding_ : weights.Matrix("output");
  final_norm_ = weights.Vector("norm");
  for (const LayerConfig& layer : config.layers) TableFor(RopeOf(layer.mixer), max_tokens);
  for (uint32_t i = 0; i < config.layers.size(); ++i) layers_.push_back(MakeLayer(i, weights));
  const size_t n = max_tokens;
  hidden_.resize(n * config.hidden);
  normed_.resize(n * config.hidden);
  block_out_.resize(n * config.hidden);
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

DecoderModel::Layer DecoderModel::MakeLayer(uint32_t index, const DenseSource& weights) {
  const LayerConfig& config = config_.layers[index];
  const std::string prefix = "layers." + std::to_string(index) + ".";
  const MixerContext context = {.backend = &backend_,
                                .scratch = &scratch_,
                                .rope = TableFor(RopeOf(config.mixer), 0),
                                .hidden = config_.hidden,
                                .layer = index,
                                .norm_epsilon = config_.rms_norm_epsilon};
  Layer layer{.mixer_norm = weights.Vector(prefix + "attention.norm"),
              .feed_forward_norm = weights.Vector(prefix + "mlp.norm"),
              .mixer = MakeMixer(config.mixer, context, weights, prefix + "attention."),
              .dense = {},
              .router = {},
              .shared = {}};
  if (config.feed_forward == FeedForwardKind::kDense) {
    layer.dense.emplace(weights, prefix + "mlp.");
    return layer;
  }
  layer.router.emplace(config_, weights, prefix + "mlp.");
  if (config_.shared_expert.intermediate > 0) {
    layer.shared.emplace(config_, weights, prefix + "mlp.shared.");
  }
  return layer;
}

// The one table of all layers with this config; nullptr for none.
const RopeTable* DecoderModel::TableFor(const RopeConfig* config, uint32_t max_tokens) {
  if (config == nullptr) return nullptr;
  for (const auto& table : rope_tables_) {
    if (table->config() == *config) return table.get();
  }
  rope_tables_.push_back(std::make_unique<RopeTable>(*config, max_tokens));
  return rope_tables_.back().get();
}

Status DecoderModel::Forward(std::span<const int32_t> tokens, SequenceState& state,
                             MoeExecutor& executor, const ForwardOptions& options) {
  const uint32_t count = static_cast<uint32_t>(tokens.size());
  const uint32_t first = state.length();
  CHECK(count > 0 && first + count <= state.max_positions());
  CHECK(size_t{count} * config_.hidden <= hidden_.size(), "chunk larger than max_tokens");
  Embed(tokens);
  for (const auto& table : rope_tables_) table->Prepare(first, count);
  for (uint32_t i = 0; i < layers_.size(); ++i) {
    if (options.cancelled != nullptr && options.cancelled->load(std::memory_order_relaxed)) {
      return Cancelled("request cancelled");
    }
    RunMixer(layers_[i], count, state);
    RETURN_IF_ERROR(RunFeedForward(i, count, executor));
  }
  state.Commit(count);
  EmitLogits(first, count, options);
  return OkStatus();
}

void DecoderModel::Normalize(const float* x, std::span<const float> weight, uint32_t rows,
                             float* out) {
  backend_.RmsNorm(x, config_.hidden, weight.data(), config_.rms_norm_epsilon, rows,
                   config_.hidden, out, config_.hidden);
}

void DecoderModel::Embed(std::span<const int32_t> tokens) {
  for (size_t t = 0; t < tokens.size(); ++t) {
    CHECK(tokens[t] >= 0 && static_cast<uint32_t>(tokens[t]) < config_.vocab_size);
    DecodeRow(embedding_, static_cast<uint32_t>(tokens[t]), &hidden_[t * config_.hidden]);
  }
}

void DecoderModel::RunMixer(Layer& layer, uint32_t token_count, SequenceState& state) {
  const uint32_t hidden = config_.hidden;
  Normalize(hidden_.data(), layer.mixer_norm, token_count, normed_.data());
  scratch_.Clear();
  const MixerInput input = {.x = normed_.data(), .token_count = token_count, .state = &state};
  std::visit([&](auto& mixer) { mixer.Run(input, block_out_.data()); }, layer.mixer);
  backend_.Add(hidden_.data(), hidden, block_out_.data(), hidden, token_count, hidden);
}

Status DecoderModel::RunFeedForward(uint32_t index, uint32_t token_count, MoeExecutor& executor) {
  Layer& layer = layers_[index];
  const uint32_t hidden = config_.hidden;
  Normalize(hidden_.data(), layer.feed_forward_norm, token_count, normed_.data());
  scratch_.Clear();
  if (layer.router) {
    Route(index, token_count, executor);
    RoutingDecision routing;
    routing.token_count = token_count;
    routing.top_k = config_.top_k;
    routing.experts = routing_experts_.data();
    routing.weights = routing_weights_.data();
    LookAhead(index, std::min(executor.LookaheadDepth(), kMaxLookahead), &routing);
    RETURN_IF_ERROR(
        executor.RunExperts(LayerId(index), routing, normed_.data(), block_out_.data()));
    if (layer.shared) {
      layer.shared->AddTo(backend_, scratch_, normed_.data(), token_count, block_out_.data());
    }
  } else {
    layer.dense->Run(backend_, scratch_, normed_.data(), token_count, block_out_.data());
  }
  backend_.Add(hidden_.data(), hidden, block_out_.data(), hidden, token_count, hidden);
  return OkStatus();
}

void DecoderModel::Route(uint32_t index, uint32_t token_count, const MoeExecutor& executor) {
  Router& router = *layers_[index].router;
  router.Logits(backend_, normed_.data(), token_count, router_logits_.data());
  if (token_count == 1) {
    const float strength = executor.ResidentPreference(LayerId(index), resident_);
    if (strength > 0) {
      router.chooser().ChoosePreferring(router_logits_.data(), resident_.data(), strength,
                                        routing_experts_.data(), routing_weights_.data());
      return;
    }
  }
  for (size_t t = 0; t < token_count; ++t) {
    router.chooser().Choose(&router_logits_[t * config_.expert_count],
                            &routing_experts_[t * config_.top_k],
                            &routing_weights_[t * config_.top_k]);
  }
}

// The residual stream changes little from layer to layer, so the next routers, with their own norms, can
// be asked before this layer's experts have run.
void DecoderModel::LookAhead(uint32_t index, uint32_t depth, RoutingDecision* routing) {
  uint32_t found = 0;
  for (uint32_t layer = index + 1; layer < layers_.size() && found < depth; ++layer) {
    if (!layers_[layer].router) continue;
    uint32_t* const experts =
        &lookahead_experts_[found * lookahead_experts_.size() / kMaxLookahead];
    LookAheadTo(layers_[layer], routing->token_count, experts);
    lookaheads_[found++] = {LayerId(layer), experts};
  }
  routing->lookaheads = {lookaheads_, found};
}

void DecoderModel::LookAheadTo(Layer& layer, uint32_t token_count, uint32_t* experts) {
  const uint32_t hidden = config_.hidden;
  for (uint32_t t = 0; t < token_count; t += kLookaheadRows) {
    const uint32_t rows = std::min(kLookaheadRows, token_count - t);
    Normalize(&hidden_[size_t{t} * hidden], layer.feed_forward_norm, rows,
              lookahead_normed_.data());
    layer.router->Logits(backend_, lookahead_normed_.data(), rows, lookahead_logits_.data());
    for (uint32_t i = 0; i < rows; ++i) {
      layer.router->chooser().Choose(&lookahead_logits_[size_t{i} * config_.expert_count],
                                     &experts[size_t{t + i} * config_.top_k],
                                     lookahead_weights_.data());
    }
  }
}

void DecoderModel::EmitLogits(uint32_t first_position, uint32_t token_count,
                              const ForwardOptions& options) {
  if (options.logits == LogitsMode::kNone || options.sink == nullptr) return;
  const uint32_t hidden = config_.hidden;
  const uint32_t begin = options.logits == LogitsMode::kAll ? 0 : token_count - 1;
  const uint32_t step = static_cast<uint32_t>(logits_.size() / config_.vocab_size);
  Normalize(&hidden_[size_t{begin} * hidden], final_norm_, token_count - begin,
            &normed_[size_t{begin} * hidden]);
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
