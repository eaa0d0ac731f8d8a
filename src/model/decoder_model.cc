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
  batch_.reserve(n);
  segments_.reserve(n);
  tokens_.resize(n);
  logits_rows_.reserve(kLogitRows);
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
  BatchSegment segment = {.tokens = tokens,
                          .state = &state,
                          .logits = options.logits,
                          .sink = options.sink,
                          .cancelled = options.cancelled};
  Forward({&segment, 1}, executor);
  return segment.status;
}

void DecoderModel::Forward(std::span<BatchSegment> batch, MoeExecutor& executor) {
  Begin(batch);
  for (uint32_t i = 0; i < layers_.size(); ++i) {
    TakeOutCancelled();
    if (rows_ == 0) return;
    RunMixer(layers_[i]);
    // Nothing has been added to the hidden state of those who are left: the layer's second half again.
    for (Status status = RunFeedForward(i, executor); !status.ok();
         status = RunFeedForward(i, executor)) {
      TakeOutFailed(status, executor.failed_expert());
      if (rows_ == 0) return;
    }
  }
  EmitLogits();
}

void DecoderModel::Begin(std::span<BatchSegment> batch) {
  batch_.clear();
  segments_.clear();
  rows_ = 0;
  for (BatchSegment& segment : batch) {
    const uint32_t count = static_cast<uint32_t>(segment.tokens.size());
    CHECK(count > 0);
    CHECK(size_t{rows_} + count <= tokens_.size(), "batch larger than max_tokens");
    if (!segment.state->Reserve(count)) {
      segment.status = ResourceExhausted("no memory for keys and values is left");
      continue;
    }
    for (uint32_t t = 0; t < count; ++t) {
      const int32_t token = segment.tokens[t];
      CHECK(token >= 0 && static_cast<uint32_t>(token) < config_.vocab_size);
      DecodeRow(embedding_, static_cast<uint32_t>(token),
                &hidden_[size_t{rows_ + t} * config_.hidden]);
      tokens_[rows_ + t] = token;
    }
    segment.status = OkStatus();
    batch_.push_back(&segment);
    segments_.push_back({rows_, count, segment.state});
    rows_ += count;
  }
  PrepareRope();
}

void DecoderModel::PrepareRope() {
  for (const auto& table : rope_tables_) {
    for (const MixerSegment& segment : segments_) {
      table->Prepare(segment.first, segment.state->length(), segment.count);
    }
  }
}

// predicate(index): of segments_. The rows of the others move up.
template <typename Predicate>
void DecoderModel::TakeOut(const Status& status, Predicate&& predicate) {
  const size_t hidden = config_.hidden;
  size_t kept = 0;
  uint32_t rows = 0;
  for (size_t i = 0; i < segments_.size(); ++i) {
    if (predicate(i)) {
      batch_[i]->status = status;
      continue;
    }
    const MixerSegment segment = segments_[i];
    const auto from = hidden_.begin() + static_cast<ptrdiff_t>(segment.first * hidden);
    std::copy(from, from + static_cast<ptrdiff_t>(segment.count * hidden),
              hidden_.begin() + static_cast<ptrdiff_t>(rows * hidden));
    std::copy_n(tokens_.begin() + segment.first, segment.count, tokens_.begin() + rows);
    batch_[kept] = batch_[i];
    segments_[kept++] = {rows, segment.count, segment.state};
    rows += segment.count;
  }
  if (kept == segments_.size()) return;
  batch_.resize(kept);
  segments_.resize(kept);
  rows_ = rows;
  PrepareRope();
}

void DecoderModel::TakeOutCancelled() {
  const auto cancelled = [&](const BatchSegment* segment) {
    return segment->cancelled != nullptr && segment->cancelled->load(std::memory_order_relaxed);
  };
  if (std::ranges::none_of(batch_, cancelled)) return;
  TakeOut(Cancelled("request cancelled"), [&](size_t i) { return cancelled(batch_[i]); });
}

// Those who wanted the expert; all, if the error is not of one or if nobody did.
void DecoderModel::TakeOutFailed(const Status& status, std::optional<ExpertId> expert) {
  const size_t top_k = config_.top_k;
  const auto wants = [&](size_t i) {
    const auto begin = routing_experts_.begin() + static_cast<ptrdiff_t>(segments_[i].first * top_k);
    const auto end = begin + static_cast<ptrdiff_t>(segments_[i].count * top_k);
    return std::find(begin, end, expert->value()) != end;
  };
  const uint32_t before = rows_;
  if (expert) TakeOut(status, wants);
  if (rows_ == before) TakeOut(status, [](size_t) { return true; });
}

void DecoderModel::Normalize(const float* x, std::span<const float> weight, uint32_t rows,
                             float* out) {
  backend_.RmsNorm(x, config_.hidden, weight.data(), config_.rms_norm_epsilon, rows,
                   config_.hidden, out, config_.hidden);
}

void DecoderModel::RunMixer(Layer& layer) {
  const uint32_t hidden = config_.hidden;
  Normalize(hidden_.data(), layer.mixer_norm, rows_, normed_.data());
  scratch_.Clear();
  const MixerInput input = {.x = normed_.data(), .token_count = rows_, .segments = segments_};
  std::visit([&](auto& mixer) { mixer.Run(input, block_out_.data()); }, layer.mixer);
  backend_.Add(hidden_.data(), hidden, block_out_.data(), hidden, rows_, hidden);
}

Status DecoderModel::RunFeedForward(uint32_t index, MoeExecutor& executor) {
  Layer& layer = layers_[index];
  const uint32_t hidden = config_.hidden;
  Normalize(hidden_.data(), layer.feed_forward_norm, rows_, normed_.data());
  scratch_.Clear();
  if (layer.router) {
    Route(index, executor);
    RoutingDecision routing;
    routing.token_count = rows_;
    routing.top_k = config_.top_k;
    routing.tokens = tokens_.data();
    routing.experts = routing_experts_.data();
    routing.weights = routing_weights_.data();
    routing.hidden = hidden_.data();
    LookAhead(index, std::min(executor.LookaheadDepth(), kMaxLookahead), &routing);
    RETURN_IF_ERROR(
        executor.RunExperts(LayerId(index), routing, normed_.data(), block_out_.data()));
    if (layer.shared) {
      layer.shared->AddTo(backend_, scratch_, normed_.data(), rows_, block_out_.data());
    }
  } else {
    layer.dense->Run(backend_, scratch_, normed_.data(), rows_, block_out_.data());
  }
  backend_.Add(hidden_.data(), hidden, block_out_.data(), hidden, rows_, hidden);
  return OkStatus();
}

Status DecoderModel::RunExperts(LayerId id, RoutingDecision routing, MoeExecutor& executor,
                                float* out) {
  Layer& layer = layers_[id.value()];
  Normalize(routing.hidden, layer.feed_forward_norm, routing.token_count, normed_.data());
  LookAhead(id.value(), std::min(executor.LookaheadDepth(), kMaxLookahead), &routing);
  return executor.RunExperts(id, routing, normed_.data(), out);
}

void DecoderModel::Route(uint32_t index, const MoeExecutor& executor) {
  Router& router = *layers_[index].router;
  router.Logits(backend_, normed_.data(), rows_, router_logits_.data());
  if (rows_ == 1) {
    const float strength = executor.ResidentPreference(LayerId(index), resident_);
    if (strength > 0) {
      router.chooser().ChoosePreferring(router_logits_.data(), resident_.data(), strength,
                                        routing_experts_.data(), routing_weights_.data());
      return;
    }
  }
  for (size_t t = 0; t < rows_; ++t) {
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
    LookAheadTo(layers_[layer], routing->hidden, routing->token_count, experts);
    lookaheads_[found++] = {LayerId(layer), experts};
  }
  routing->lookaheads = {lookaheads_, found};
}

void DecoderModel::LookAheadTo(Layer& layer, const float* stream, uint32_t token_count,
                               uint32_t* experts) {
  const uint32_t hidden = config_.hidden;
  for (uint32_t t = 0; t < token_count; t += kLookaheadRows) {
    const uint32_t rows = std::min(kLookaheadRows, token_count - t);
    Normalize(stream + size_t{t} * hidden, layer.feed_forward_norm, rows,
              lookahead_normed_.data());
    layer.router->Logits(backend_, lookahead_normed_.data(), rows, lookahead_logits_.data());
    for (uint32_t i = 0; i < rows; ++i) {
      layer.router->chooser().Choose(&lookahead_logits_[size_t{i} * config_.expert_count],
                                     &experts[size_t{t + i} * config_.top_k],
                                     lookahead_weights_.data());
    }
  }
}

// Commits, then hands out the logits of all rows that are asked for, some at a time.
void DecoderModel::EmitLogits() {
  const size_t hidden = config_.hidden, step = logits_.size() / config_.vocab_size;
  for (const MixerSegment& rows : segments_) rows.state->Commit(rows.count);
  logits_rows_.clear();
  for (size_t i = 0; i < segments_.size(); ++i) {
    const BatchSegment& segment = *batch_[i];
    const MixerSegment& rows = segments_[i];
    const uint32_t first_position = rows.state->length() - rows.count;
    if (segment.logits == LogitsMode::kNone || segment.sink == nullptr) continue;
    const uint32_t begin = segment.logits == LogitsMode::kAll ? 0 : rows.count - 1;
    for (uint32_t t = begin; t < rows.count; ++t) {
      Normalize(&hidden_[(rows.first + t) * hidden], final_norm_, 1,
                &normed_[logits_rows_.size() * hidden]);
      logits_rows_.push_back({segment.sink, first_position + t});
      if (logits_rows_.size() == step) EmitRows();
    }
  }
  EmitRows();
}

void DecoderModel::EmitRows() {
  const size_t vocab = config_.vocab_size;
  if (logits_rows_.empty()) return;
  backend_.MatMul(output_, normed_.data(), config_.hidden,
                  static_cast<uint32_t>(logits_rows_.size()), logits_.data(), vocab);
  for (size_t i = 0; i < logits_rows_.size(); ++i) {
    (*logits_rows_[i].sink)(logits_rows_[i].position, {&logits_[i * vocab], vocab});
  }
  logits_rows_.clear();
}

}  // namespace moraine
