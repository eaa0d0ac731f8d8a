#include "engine/hybrid_experts.h"

#include <algorithm>
#include <functional>

#include "base/check.h"

namespace moraine {

HybridExperts::HybridExperts(const ModelConfig& config, DecoderModel& model,
                             ExpertExecutor& executor, ResidencyManager& residency, VramTier& tier,
                             const Clock& clock)
    : config_(config),
      model_(model),
      executor_(executor),
      residency_(residency),
      tier_(tier),
      clock_(clock),
      split_(static_cast<uint32_t>(config.layers.size())) {
  const size_t most = std::min<size_t>(config.expert_count, size_t{kMostTokens} * config.top_k);
  elsewhere_.resize(config.expert_count);
  token_count_.resize(config.expert_count);
  distinct_.reserve(most);
  wanted_.reserve(most);
  leases_.resize(most);
}

void HybridExperts::AllowLink(double expected_ns) {
  link_allowed_ = true;
  split_.set_link_expected_ns(expected_ns);
}

void HybridExperts::BeginStep(std::span<const int32_t> tokens) {
  CHECK(lease_count_ == 0, "leases of the step before");
  tokens_ = tokens;
  failure_ = OkStatus();
  placed_ns_ = 0;
}

void HybridExperts::GroupByExpert(const RoutedLayer& layer) {
  for (const ExpertId expert : distinct_) token_count_[expert.value()] = 0;
  distinct_.clear();
  for (size_t i = 0; i < size_t{layer.token_count} * layer.top_k; ++i) {
    if (token_count_[layer.experts[i]]++ == 0) distinct_.emplace_back(layer.experts[i]);
  }
}

// Leases beside those that the executor takes: it needs a layer's top-k of one token to get on.
uint32_t HybridExperts::MostLeases() const {
  const ResidencyStats& stats = residency_.stats();
  const uint32_t cache = std::min(stats.slot_count, stats.slot_target) - stats.ring_slots;
  const uint32_t needed = config_.top_k + tier_.copies_in_flight();
  return cache > needed ? (cache - needed) / 2 : 0;
}

Result<uint32_t> HybridExperts::Place(const RoutedLayer& layer, const std::byte** records) {
  CHECK(layer.token_count <= kMostTokens && lease_count_ == 0,
        "a layer before has not been released");
  const int64_t begin_ns = clock_.NowNs();
  if (placed_ns_ > 0) {
    split_.RecordLayer(last_layer_, last_over_link_, last_cpu_ns_, begin_ns - placed_ns_);
  }
  GroupByExpert(layer);
  wanted_.clear();
  uint32_t in_vram = 0;
  for (const ExpertId expert : distinct_) {
    const ExpertKey key{LayerId(layer.layer), expert};
    const uint32_t tokens = token_count_[expert.value()];
    tier_.Note(key, static_cast<float>(tokens));
    const std::byte* const record = tier_.Find(key);
    records[expert.value()] = record;
    elsewhere_[expert.value()] = record != nullptr;
    if (record == nullptr) {
      wanted_.push_back({expert, tokens});
      continue;
    }
    ++in_vram;
    residency_.NoteUseElsewhere(key, static_cast<float>(tokens));
  }
  PlaceOverLink(layer, records);
  cpu_count_ = static_cast<uint32_t>(wanted_.size()) - lease_count_;
  counts_.in_vram += in_vram;
  counts_.over_link += lease_count_;
  counts_.on_cpu += cpu_count_;
  last_layer_ = layer.layer;
  last_over_link_ = lease_count_;
  last_cpu_ns_ = 0;
  placed_ns_ = clock_.NowNs();
  return in_vram + lease_count_;
}

void HybridExperts::PlaceOverLink(const RoutedLayer& layer, const std::byte** records) {
  const uint32_t most = link_allowed_ ? MostLeases() : 0;
  uint32_t movable = 0;
  for (const Wanted& wanted : wanted_) {
    const ExpertState state = residency_.state({LayerId(layer.layer), wanted.expert});
    movable += state == ExpertState::kReady || state == ExpertState::kLeased;
  }
  movable = std::min(movable, most);
  if (movable == 0) return;
  const auto fixed = static_cast<uint32_t>(wanted_.size()) - movable;
  const uint32_t over_link = split_.Choose(layer.layer, layer.token_count, movable, fixed);
  if (over_link == 0) return;
  // An expert of many tokens costs the CPU more and the link the same.
  std::ranges::stable_sort(wanted_, std::greater(), &Wanted::tokens);
  for (const Wanted& wanted : wanted_) {
    if (lease_count_ == over_link) break;
    const ExpertKey key{LayerId(layer.layer), wanted.expert};
    Lease lease = residency_.HoldReady(key);
    if (lease.state() != Lease::State::kReady) continue;
    records[wanted.expert.value()] = lease.data();
    elsewhere_[wanted.expert.value()] = 1;
    leases_[lease_count_++] = std::move(lease);
    // It stays in DRAM as what the CPU computes does.
    const float weight = static_cast<float>(wanted.tokens);
    residency_.Learn(key.layer, {&key.expert, 1}, {&weight, 1});
  }
}

Result<bool> HybridExperts::Compute(const RoutedLayer& layer, float* out) {
  const int64_t begin_ns = clock_.NowNs(), stall_before = executor_.times().stall_ns;
  RoutingDecision routing;
  routing.token_count = layer.token_count;
  routing.top_k = layer.top_k;
  routing.tokens = tokens_.size() == layer.token_count ? tokens_.data() : nullptr;
  routing.experts = layer.experts;
  routing.weights = layer.weights;
  routing.hidden = layer.hidden;
  routing.elsewhere = elsewhere_.data();
  Status status =
      model_.RunExperts(LayerId(layer.layer), routing, executor_, cpu_count_ > 0 ? out : nullptr);
  last_cpu_ns_ = clock_.NowNs() - begin_ns;
  if (!status.ok()) {
    failure_ = status;
    return status;
  }
  const int64_t stall_ns = executor_.times().stall_ns - stall_before;
  split_.RecordCpu(layer.token_count, cpu_count_, last_cpu_ns_ - stall_ns);
  return cpu_count_ > 0;
}

void HybridExperts::Release(uint32_t) {
  for (uint32_t i = 0; i < lease_count_; ++i) leases_[i].Release();
  lease_count_ = 0;
}

}  // namespace moraine
