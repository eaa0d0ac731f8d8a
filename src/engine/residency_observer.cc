#include "engine/residency_observer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace moraine {
namespace {

uint32_t Microseconds(int64_t ns) {
  return static_cast<uint32_t>(std::clamp<int64_t>(ns / 1000, 0, UINT32_MAX));
}

}  // namespace

ResidencyObserver::ResidencyObserver(const ResidencyManager* residency,
                                     std::vector<uint32_t> experts_per_layer, uint32_t top_k)
    : residency_(residency), experts_per_layer_(std::move(experts_per_layer)), top_k_(top_k) {
  const size_t experts =
      std::accumulate(experts_per_layer_.begin(), experts_per_layer_.end(), size_t{0});
  heat_.resize(experts);
}

void ResidencyObserver::NoteStep(const PhaseStats& prefill, const PhaseStats& decode) {
  Note(false, prefill, &prefill_);
  Note(true, decode, &decode_);
}

void ResidencyObserver::Note(bool decode, const PhaseStats& now, PhaseStats* before) {
  if (now.tokens == before->tokens) return;
  StepTimes step;
  step.decode = decode;
  step.tokens = static_cast<uint32_t>(now.tokens - before->tokens);
  step.attention_us = Microseconds(now.attention_ns - before->attention_ns);
  step.expert_us = Microseconds(now.expert_ns - before->expert_ns);
  step.stall_us = Microseconds(now.stall_ns - before->stall_ns);
  step.verify_us = Microseconds(now.verify_ns - before->verify_ns);
  step.residency_us = Microseconds(now.residency_ns - before->residency_ns);
  step.other_us = Microseconds(now.other_ns() - before->other_ns());
  *before = now;
  if (steps_.size() == kStepsKept) steps_.pop_front();
  steps_.push_back(step);
  ++step_count_;
}

// The policy's long-term heat is in counts that fade; of a layer they sum to top_k a token.
void ResidencyObserver::FillHeats(std::vector<uint8_t>* heats) {
  residency_->policy().ExportHeat(heat_);
  auto begin = heat_.begin();
  for (const uint32_t experts : experts_per_layer_) {
    const auto end = begin + experts;
    const float total = std::accumulate(begin, end, 0.0f);
    const float scale = total > 0 ? static_cast<float>(top_k_) / total : 0;
    for (; begin != end; ++begin) {
      heats->push_back(static_cast<uint8_t>(255 * std::sqrt(std::min(1.0f, *begin * scale)) + 0.5f));
    }
  }
}

std::unique_ptr<ResidencySnapshot> ResidencyObserver::Observe(const EngineStats& stats) {
  auto snapshot = std::make_unique<ResidencySnapshot>();
  snapshot->top_k = top_k_;
  snapshot->stats = stats;
  snapshot->steps.assign(steps_.begin(), steps_.end());
  snapshot->step_count = step_count_;
  if (residency_ == nullptr) return snapshot;
  const size_t experts = heat_.size();
  snapshot->residences.reserve(experts);
  snapshot->heats.reserve(experts);
  snapshot->lookups.reserve(experts);
  snapshot->misses.reserve(experts);
  for (uint32_t layer = 0; layer < experts_per_layer_.size(); ++layer) {
    for (uint32_t expert = 0; expert < experts_per_layer_[layer]; ++expert) {
      const ExpertKey key{LayerId(layer), ExpertId(expert)};
      const LookupCounters& counters = residency_->counters(key);
      const uint64_t misses = counters.cold_miss + counters.in_flight_miss;
      const uint64_t lookups = counters.hit + counters.prefetch_hit + misses;
      const bool in_vram = vram_ != nullptr && vram_->Find(key) != nullptr;
      snapshot->residences.push_back(in_vram ? Residence::kVram : residency_->residence(key));
      snapshot->lookups.push_back(static_cast<uint16_t>(lookups));
      snapshot->misses.push_back(static_cast<uint16_t>(misses));
    }
  }
  FillHeats(&snapshot->heats);
  return snapshot;
}

}  // namespace moraine
