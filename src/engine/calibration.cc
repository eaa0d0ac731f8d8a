#include "engine/calibration.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "engine/manifest_check.h"
#include "memory/topology.h"

namespace moraine {
namespace {

void AddSquares(const float* x, uint32_t rows, size_t cols, double* sums) {
  for (uint32_t t = 0; t < rows; ++t) {
    for (size_t c = 0; c < cols; ++c) sums[c] += double{x[t * cols + c]} * double{x[t * cols + c]};
  }
}

// x[t][c] += bias[c]; nothing for none.
void AddBias(const float* bias, uint32_t rows, size_t cols, float* x) {
  if (bias == nullptr) return;
  for (uint32_t t = 0; t < rows; ++t) {
    for (size_t c = 0; c < cols; ++c) x[t * cols + c] += bias[c];
  }
}

// As expert_kernels.h has it. A NaN stays.
void ClampedSwiGlu(const float* up, size_t count, float limit, float* gate) {
  for (size_t i = 0; i < count; ++i) {
    const float g = std::min(gate[i], limit);
    gate[i] = g / (1 + std::exp(-1.702f * g)) * (std::clamp(up[i], -limit, limit) + 1);
  }
}

// experts x cols means; of an expert without tokens that of all.
Importance::Tensor MeanSquares(const std::vector<double>& sums, const std::vector<uint64_t>& tokens) {
  const size_t experts = tokens.size(), cols = sums.size() / experts;
  std::vector<double> all(cols);
  uint64_t all_tokens = 0;
  for (size_t e = 0; e < experts; ++e) {
    for (size_t c = 0; c < cols; ++c) all[c] += sums[e * cols + c];
    all_tokens += tokens[e];
  }
  Importance::Tensor tensor = {{experts, cols}, {}};
  tensor.values.reserve(sums.size());
  for (size_t e = 0; e < experts; ++e) {
    const double* const squares = tokens[e] > 0 ? &sums[e * cols] : all.data();
    const uint64_t count = std::max<uint64_t>(tokens[e] > 0 ? tokens[e] : all_tokens, 1);
    for (size_t c = 0; c < cols; ++c) {
      tensor.values.push_back(static_cast<float>(squares[c] / static_cast<double>(count)));
    }
  }
  return tensor;
}

}  // namespace

Result<std::unique_ptr<Calibration>> Calibration::Open(const std::string& store_directory,
                                                       int threads) {
  std::unique_ptr<Calibration> c(new Calibration());
  ASSIGN_OR_RETURN(c->store_, Store::Open(store_directory, StoreMode::kReadOnly));
  const Manifest& manifest = c->store_->manifest();
  ASSIGN_OR_RETURN(c->config_, ParseModelConfig(manifest.model_config,
                                                store_directory + ": config.json"));
  if (manifest.expert_count() == 0) {
    return InvalidArgument(store_directory + ": expected a model with routed experts, found none");
  }
  auto layouts = ReadLayouts(manifest, c->config_);
  if (!layouts.ok()) return layouts.status().WithContext(store_directory);
  c->layouts_ = std::move(*layouts);
  const Status dense = CheckDense(manifest, c->config_);
  if (!dense.ok()) return dense.WithContext(store_directory);
  for (const std::string& path : c->store_->expert_pack_paths()) {
    ASSIGN_OR_RETURN(PosixFile pack, PosixFile::Open(path, O_RDONLY));
    c->packs_.push_back(std::move(pack));
  }
  ASSIGN_OR_RETURN(c->dense_, DenseWeights::Load(*c->store_));
  ASSIGN_OR_RETURN(SequenceState state, SequenceState::Allocate(c->config_, kWindowTokens));
  c->sequence_ = std::make_unique<SequenceState>(std::move(state));
  ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  c->pool_ = std::make_unique<ThreadPool>(Topology::Detect(), ThreadPoolOptions{threads, true});
  const ModelConfig& config = c->config_;
  uint32_t widest = DecoderModel::WidestInput(config);
  for (const LayerConfig& layer : config.layers) widest = std::max(widest, layer.intermediate);
  c->backend_ = std::make_unique<CpuBackend>(isa, *c->pool_, kWindowTokens, widest);
  c->model_ = std::make_unique<DecoderModel>(config, *c->dense_, *c->backend_, kWindowTokens);
  c->AllocateScratch();
  return c;
}

void Calibration::AllocateScratch() {
  const size_t experts = config_.expert_count, hidden = config_.hidden;
  size_t intermediate = 0;
  sums_.resize(config_.layers.size());
  for (size_t i = 0; i < sums_.size(); ++i) {
    const LayerConfig& layer = config_.layers[i];
    if (layer.feed_forward != FeedForwardKind::kMoe) continue;
    sums_[i].input.resize(experts * hidden);
    sums_[i].intermediate.resize(experts * layer.intermediate);
    sums_[i].tokens.resize(experts);
    intermediate = std::max<size_t>(intermediate, layer.intermediate);
  }
  record_ = AlignedArray<std::byte>(store_->manifest().max_record_bytes());
  input_.resize(kWindowTokens * hidden);
  gate_.resize(kWindowTokens * intermediate);
  up_.resize(kWindowTokens * intermediate);
  output_row_.resize(size_t{kWindowTokens} * config_.top_k);
  outputs_.resize(output_row_.size() * hidden);
}

Status Calibration::Read(std::span<const int32_t> tokens) {
  CHECK(tokens.size() <= kWindowTokens, "a window of too many tokens");
  for (const int32_t token : tokens) {
    if (token >= 0 && static_cast<uint32_t>(token) < config_.vocab_size) continue;
    return InvalidArgument(fmt::format("expected token ids below the vocabulary's {}, found {}",
                                       config_.vocab_size, token));
  }
  sequence_->Reset();
  RETURN_IF_ERROR(model_->Forward(tokens, *sequence_, *this,
                                  {.logits = DecoderModel::LogitsMode::kNone}));
  tokens_ += tokens.size();
  return OkStatus();
}

Result<ExpertView> Calibration::ReadExpert(ExpertKey key) {
  const RecordLocation& place = store_->Locate(key);
  const std::span<std::byte> bytes(record_.data(), place.bytes);
  RETURN_IF_ERROR(packs_[place.pack].ReadAt(place.offset, bytes));
  RETURN_IF_ERROR(store_->VerifyRecord(key, bytes));
  return ViewExpert(layouts_[key.layer.value()], bytes.data());
}

void Calibration::RunExpert(ExpertKey key, const ExpertView& weights, uint32_t count, float* out) {
  const size_t hidden = config_.hidden, intermediate = weights.gate.rows;
  const CpuBackend::MatMulTarget both[] = {{weights.gate, gate_.data(), intermediate},
                                           {weights.up, up_.data(), intermediate}};
  backend_->MatMulMany(both, input_.data(), hidden, count);
  AddBias(weights.gate_bias, count, intermediate, gate_.data());
  AddBias(weights.up_bias, count, intermediate, up_.data());
  Activate(count * intermediate);
  backend_->MatMul(weights.down, gate_.data(), intermediate, count, out, hidden);
  AddBias(weights.down_bias, count, hidden, out);
  LayerSums& sums = sums_[key.layer.value()];
  const size_t expert = key.expert.value();
  AddSquares(input_.data(), count, hidden, &sums.input[expert * hidden]);
  AddSquares(gate_.data(), count, intermediate, &sums.intermediate[expert * intermediate]);
  sums.tokens[expert] += count;
}

void Calibration::Activate(size_t count) {
  switch (config_.activation.kind) {
    case ActivationKind::kSwiGlu: backend_->SiluMul(gate_.data(), up_.data(), count); break;
    case ActivationKind::kClampedSwiGlu:
      ClampedSwiGlu(up_.data(), count, config_.activation.limit, gate_.data());
      break;
  }
}

Status Calibration::RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                               float* out) {
  const uint32_t hidden = config_.hidden;
  const size_t rows = size_t{routing.token_count} * routing.top_k;
  uint32_t first = 0;  // output row of the expert's first token
  for (uint32_t expert = 0; expert < config_.expert_count; ++expert) {
    uint32_t count = 0;
    for (size_t i = 0; i < rows; ++i) {
      if (routing.experts[i] != expert) continue;
      std::memcpy(&input_[size_t{count} * hidden], x + i / routing.top_k * hidden,
                  hidden * sizeof(float));
      output_row_[i] = first + count++;
    }
    if (count == 0) continue;
    const ExpertKey key{layer, ExpertId(expert)};
    ASSIGN_OR_RETURN(const ExpertView weights, ReadExpert(key));
    RunExpert(key, weights, count, &outputs_[size_t{first} * hidden]);
    first += count;
  }
  backend_->CombineExperts({outputs_.data(), output_row_.data(), routing.weights,
                            routing.token_count, routing.top_k, hidden, out});
  return OkStatus();
}

Importance Calibration::Take() const {
  Importance importance;
  importance.tokens = tokens_;
  for (uint32_t i = 0; i < sums_.size(); ++i) {
    const LayerSums& sums = sums_[i];
    if (sums.tokens.empty()) continue;
    auto& tensors = importance.tensors();
    tensors[ImportanceName(LayerId(i), false)] = MeanSquares(sums.input, sums.tokens);
    tensors[ImportanceName(LayerId(i), true)] = MeanSquares(sums.intermediate, sums.tokens);
  }
  return importance;
}

uint64_t Calibration::unreached_experts() const {
  uint64_t count = 0;
  for (const LayerSums& sums : sums_) {
    count += static_cast<uint64_t>(std::count(sums.tokens.begin(), sums.tokens.end(), 0u));
  }
  return count;
}

}  // namespace moraine
