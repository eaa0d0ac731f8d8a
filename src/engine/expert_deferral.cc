#include "engine/expert_deferral.h"

#include <algorithm>
#include <utility>

namespace moraine {

ExpertDeferral::ExpertDeferral(const ModelConfig& config, ResidencyManager& residency)
    : hidden_(config.hidden),
      most_(config.top_k - 1),
      activation_(config.activation),
      residency_(residency) {
  for (uint32_t i = 0; i < config.layers.size(); ++i) {
    if (config.layers[i].feed_forward == FeedForwardKind::kMoe) last_layer_ = i;
  }
  for (Batch* batch : {&chosen_, &late_}) {
    batch->experts.reserve(most_);
    batch->weights.reserve(most_);
    batch->leases.resize(most_);
    batch->input.resize(hidden_);
  }
  weights_.resize(config.top_k);
  outputs_.resize(size_t{most_} * hidden_);
  tasks_.reserve(most_);
}

void ExpertDeferral::set_limit(uint32_t limit) { limit_ = std::min(limit, most_); }

void ExpertDeferral::Reset() {
  for (Batch* batch : {&chosen_, &late_}) {
    for (Lease& lease : batch->leases) lease.Release();
    batch->experts.clear();
    batch->weights.clear();
    batch->leased = 0;
  }
}

void ExpertDeferral::Choose(LayerId layer, const RoutingDecision& routing, const float* x,
                            std::vector<ExpertId>* experts) {
  std::copy_n(routing.weights, routing.top_k, weights_.begin());
  chosen_.layer = layer;
  if (layer.value() == last_layer_) return;
  // The weights need not be sorted by rank in every family's router.
  for (uint32_t n = 0; n < limit_; ++n) {
    uint32_t least = routing.top_k;
    for (uint32_t rank = 1; rank < routing.top_k; ++rank) {
      const ExpertId expert(routing.experts[rank]);
      if (weights_[rank] == 0 || residency_.state({layer, expert}) != ExpertState::kAbsent) continue;
      if (least == routing.top_k || weights_[rank] < weights_[least]) least = rank;
    }
    if (least == routing.top_k) break;
    chosen_.experts.emplace_back(routing.experts[least]);
    chosen_.weights.push_back(std::exchange(weights_[least], 0.0f));
    std::erase(*experts, chosen_.experts.back());
    ++total_;
  }
  if (!chosen_.experts.empty()) std::copy_n(x, hidden_, chosen_.input.begin());
}

bool ExpertDeferral::Start() {
  if (chosen_.leased == chosen_.experts.size()) return true;
  const auto rest = std::span(chosen_.experts).subspan(chosen_.leased);
  chosen_.leased += residency_.Acquire(
      chosen_.layer, rest, std::span(chosen_.weights).subspan(chosen_.leased).first(0),
      AcquireMode::kCached, std::span(chosen_.leases).subspan(chosen_.leased, rest.size()));
  return chosen_.leased == chosen_.experts.size();
}

Status ExpertDeferral::Finish(const std::vector<ExpertLayout>& layouts, ExpertKernels& kernels,
                              const std::function<size_t()>& wait, float* out) {
  if (!late_.experts.empty()) {
    tasks_.clear();
    static constexpr uint32_t kOnlyToken[] = {0};
    const ExpertLayout& layout = layouts[late_.layer.value()];
    for (size_t i = 0; i < late_.experts.size(); ++i) {
      while (late_.leases[i].state() == Lease::State::kPending) wait();
      if (late_.leases[i].state() == Lease::State::kFailed) return late_.leases[i].failure();
      tasks_.push_back({ViewExpert(layout, late_.leases[i].data()), kOnlyToken, 1,
                        &outputs_[i * hidden_], activation_});
    }
    kernels.SetExpertInput(late_.input.data(), hidden_, 1, hidden_, layout.gate_up);
    kernels.RunExperts(tasks_);
    for (size_t i = 0; i < late_.experts.size(); ++i) {
      late_.leases[i].Release();
      for (uint32_t c = 0; c < hidden_; ++c) out[c] += late_.weights[i] * outputs_[i * hidden_ + c];
    }
  }
  late_.experts.clear();
  late_.weights.clear();
  late_.leased = 0;
  while (!Start()) wait();  // nothing else is leased now
  std::swap(chosen_, late_);
  return OkStatus();
}

}  // namespace moraine
