#include "engine/vram_tier.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace moraine {
namespace {

constexpr uint32_t kMostCandidates = 64;  // of a plan, which is eight steps' worth of copies
// A longer prompt leaves nothing of what was before it.
constexpr double kMaxStepTokens = 1e4;
// The policies' long-term heat, which ImportHeat gets, is of a thousand tokens.
constexpr double kPolicyMemoryTokens = 1000;

}  // namespace

VramTier::VramTier(const VramTierOptions& options, ResidencyManager& residency)
    : residency_(residency),
      record_bytes_(options.record_bytes),
      heat_(0, 1, 1),
      most_copies_(options.most_copies) {
  for (uint32_t layer = 0; layer < options.experts_per_layer.size(); ++layer) {
    first_.push_back(static_cast<uint32_t>(keys_.size()));
    for (uint32_t e = 0; e < options.experts_per_layer[layer]; ++e) {
      keys_.push_back({LayerId(layer), ExpertId(e)});
    }
  }
  const auto experts = static_cast<uint32_t>(keys_.size());
  heat_ = DecayedCounts(experts, 1 - 1 / kMemoryTokens, kMaxStepTokens);
  slot_of_.assign(experts, kNoSlot);
  is_touched_.assign(experts, 0);
  touched_.reserve(experts);
  candidates_.reserve(kMostCandidates);
  copies_.reserve(most_copies_);
}

VramTier::~VramTier() { Finish(); }

void VramTier::Attach(const VramSlots& slots, DeviceCopier& copier) {
  for (const ExpertKey& key : keys_) {
    CHECK(record_bytes_[key.layer.value()] <= slots.slot_bytes, "a record larger than a slot");
  }
  memory_ = slots;
  copier_ = &copier;
  slots_.assign(slots.count, {});
  for (uint32_t slot = slots.count; slot-- > 0;) free_.push_back(slot);
  ranked_.reserve(std::max<size_t>(keys_.size(), slots.count));
  counts_.slots = slots.count;
}

void VramTier::ImportHeat(std::span<const float> heat) {
  CHECK(heat.size() == keys_.size(), "heat has another shape");
  for (uint32_t i = 0; i < heat.size(); ++i) {
    heat_.Set(i, heat[i] * (kMemoryTokens / kPolicyMemoryTokens));
    if (heat[i] > 0 && !std::exchange(is_touched_[i], 1)) touched_.push_back(i);
  }
}

void VramTier::Note(ExpertKey key, float tokens) {
  const uint32_t i = IndexOf(key);
  heat_.Add(i, tokens);
  if (slot_of_[i] == kNoSlot && !std::exchange(is_touched_[i], 1)) touched_.push_back(i);
}

Status VramTier::BeginStep(uint32_t tokens, uint64_t copy_bytes) {
  heat_.BeginStep(tokens);
  if (dropped_ || memory_.count == 0) return OkStatus();
  TakeArrivals(/*wait=*/false);
  // What a burst of copies may be, after steps without any.
  credit_bytes_ = std::min(credit_bytes_ + copy_bytes, most_copies_ * memory_.slot_bytes);
  if (++steps_since_plan_ >= kPlanSteps) {
    steps_since_plan_ = 0;
    Plan();
  }
  Status status = Start();
  if (!status.ok()) Drop();
  return status;
}

void VramTier::TakeArrivals(bool wait) {
  size_t arrived = 0;
  for (; arrived < copies_.size(); ++arrived) {
    CopyInFlight& copy = copies_[arrived];
    if (wait) copier_->Wait(copy.mark);
    if (!wait && !copier_->Reached(copy.mark)) break;
    slots_[copy.slot].live = !dropped_;
    counts_.live += !dropped_;
    copy.lease.Release();
  }
  copies_.erase(copies_.begin(), copies_.begin() + static_cast<ptrdiff_t>(arrived));
}

bool VramTier::Pays(uint32_t hot, uint32_t cold) const {
  const double h = heat_.Get(hot), c = heat_.Get(cold), gain = h - c;
  // A count that fades by 1/n a token varies by half its mean.
  return gain >= kLeastGain && gain * gain >= kDeviations * kDeviations * (h + c) / 2;
}

void VramTier::Plan() {
  candidates_.clear();
  next_candidate_ = 0;
  ChooseCandidates();
  PairWithColder();
}

// The hottest of those that were touched and are in DRAM. While slots are free the others are
// remembered.
void VramTier::ChooseCandidates() {
  ranked_.clear();
  size_t remembered = 0;
  const auto remember = [&](uint32_t i) {
    if (filling()) {
      touched_[remembered++] = i;
    } else {
      is_touched_[i] = 0;
    }
  };
  for (size_t at = 0; at < touched_.size(); ++at) {
    const uint32_t i = touched_[at];
    const ExpertState state = residency_.state(keys_[i]);
    if (slot_of_[i] != kNoSlot) {
      is_touched_[i] = 0;
    } else if (state == ExpertState::kReady || state == ExpertState::kLeased) {
      ranked_.push_back(i);
    } else {
      remember(i);
    }
  }
  const size_t chosen = std::min<size_t>(ranked_.size(), kMostCandidates);
  std::partial_sort(ranked_.begin(), ranked_.begin() + static_cast<ptrdiff_t>(chosen),
                    ranked_.end(), [this](uint32_t a, uint32_t b) {
                      const double x = heat_.Get(a), y = heat_.Get(b);
                      return x != y ? x > y : a < b;
                    });
  for (size_t at = 0; at < ranked_.size(); ++at) {
    if (at < chosen) candidates_.push_back({.expert = ranked_[at]});
    remember(ranked_[at]);
  }
  touched_.resize(remembered);
}

// Free slots first; then the hottest candidate with the coldest expert, as long as that pays.
void VramTier::PairWithColder() {
  if (candidates_.size() <= free_.size()) return;
  ranked_.clear();
  for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].live) ranked_.push_back(slot);
  }
  const size_t wanted = std::min(candidates_.size() - free_.size(), ranked_.size());
  std::partial_sort(ranked_.begin(), ranked_.begin() + static_cast<ptrdiff_t>(wanted),
                    ranked_.end(), [this](uint32_t a, uint32_t b) {
                      const double x = heat_.Get(slots_[a].expert), y = heat_.Get(slots_[b].expert);
                      return x != y ? x < y : a < b;
                    });
  size_t kept = free_.size();
  for (size_t i = 0; i < wanted; ++i, ++kept) {
    if (!Pays(candidates_[kept].expert, slots_[ranked_[i]].expert)) break;
    candidates_[kept].slot = ranked_[i];
  }
  candidates_.resize(kept);
}

Status VramTier::Start() {
  const size_t before = copies_.size();
  Status status;
  while (next_candidate_ < candidates_.size() && copies_.size() < most_copies_) {
    const Candidate candidate = candidates_[next_candidate_];
    const uint64_t bytes = record_bytes_[keys_[candidate.expert].layer.value()];
    if (credit_bytes_ < bytes) break;
    ++next_candidate_;
    bool started = false;
    status = StartOne(candidate, &started);
    if (started) credit_bytes_ -= bytes;
    if (!status.ok()) break;
  }
  if (copies_.size() == before) return status;
  const Result<uint64_t> mark = copier_->Mark();
  // A device that cannot mark has failed, and copies nothing any more.
  for (size_t i = before; i < copies_.size(); ++i) copies_[i].mark = mark.ok() ? *mark : 0;
  return status.ok() ? mark.status() : status;
}

Status VramTier::StartOne(const Candidate& candidate, bool* started) {
  if (slot_of_[candidate.expert] != kNoSlot) return OkStatus();
  const bool into_free = candidate.slot == kNoSlot;
  if (into_free && free_.empty()) return OkStatus();
  if (!into_free && !Pays(candidate.expert, slots_[candidate.slot].expert)) return OkStatus();
  const ExpertKey key = keys_[candidate.expert];
  Lease lease = residency_.HoldReady(key);
  if (lease.state() != Lease::State::kReady) return OkStatus();
  const uint32_t index = into_free ? free_.back() : candidate.slot;
  Slot& slot = slots_[index];
  if (into_free) {
    free_.pop_back();
  } else {
    slot_of_[slot.expert] = kNoSlot;
    slot.live = false;
    --counts_.live;
    ++counts_.demotions;
  }
  slot.expert = candidate.expert;
  slot_of_[candidate.expert] = index;
  *started = true;
  const uint64_t bytes = record_bytes_[key.layer.value()];
  ++counts_.promotions;
  counts_.copied_bytes += bytes;
  const std::byte* const from = lease.data();
  // Of a copy that could not be asked for nobody knows how far it got: held, too.
  copies_.push_back({std::move(lease), index, 0});
  return copier_->Copy(memory_.slot(index), from, bytes);
}

void VramTier::Finish() {
  if (copier_ != nullptr) TakeArrivals(/*wait=*/true);
}

void VramTier::Drop() {
  dropped_ = true;
  Finish();
  for (Slot& slot : slots_) slot = {};
  std::ranges::fill(slot_of_, kNoSlot);
  free_.clear();
  candidates_.clear();
  next_candidate_ = 0;
  counts_.live = 0;
}

void VramTier::CheckInvariants() const {
  uint32_t live = 0, held = 0;
  for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const Slot& entry = slots_[slot];
    live += entry.live;
    held += entry.expert != kNoExpert;
    CHECK(!entry.live || entry.expert != kNoExpert, "a live slot without an expert");
    CHECK(entry.expert == kNoExpert || slot_of_[entry.expert] == slot,
          "the map names another slot");
  }
  CHECK(live == counts_.live && live + copies_.size() == held, "slots were lost");
  CHECK(dropped_ || held + free_.size() == slots_.size(), "slots are neither held nor free");
  for (uint32_t i = 0; i < slot_of_.size(); ++i) {
    CHECK(slot_of_[i] == kNoSlot || slots_[slot_of_[i]].expert == i, "a slot of another expert");
  }
  for (const CopyInFlight& copy : copies_) {
    CHECK(!slots_[copy.slot].live, "a live slot is being written");
    CHECK(copy.lease.state() == Lease::State::kReady, "a copy without a lease");
    CHECK(copy.lease.key() == keys_[slots_[copy.slot].expert], "a copy of another expert");
  }
}

}  // namespace moraine
