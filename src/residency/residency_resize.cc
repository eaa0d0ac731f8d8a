// The number of slots changes while requests run.
//
// AdvanceResize brings what is mapped to the target, a bounded piece of work at a time, between steps.
// A segment is given back in four moves, none of which waits:
//
//   close     its slots are not taken any more; free ones retire at once
//   vacate    the policy names as many victims, anywhere, as do not fit the open slots; the ready
//             experts that remain are copied out of the segment (25 GB of records at 10 GB/s are
//             seconds less than reading them again). Leased experts and slots under DMA stay; the
//             last release or completion makes them ready, and the next call goes on with them
//   unmap     once all its slots have retired: unregistered, then unmapped
//
// At most one segment is not whole. When whole segments do not add up to the target, that one is
// replaced: the new one is mapped before the old one closes, so that there are never fewer slots than
// the smaller of the old and the new target; for as long, memory is above the target by less than a
// segment.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"
#include "residency/residency_manager_impl.h"

namespace moraine {
namespace {

constexpr uint32_t kNoSegment = std::numeric_limits<uint32_t>::max();

// An eighth of the slots, as many as keep a drive busy (32 records of two or three chunks fill a
// queue of 64 to 96), and what the cache needs for one layer stays with the cache. With room for
// every expert a prompt needs no ring; two slots are what keeps prefill from waiting for itself.
uint32_t DeriveRingSlots(uint32_t slot_count, uint32_t top_k, size_t experts) {
  const uint32_t ring = slot_count >= experts + 2 ? 2 : std::clamp(slot_count / 8, 2u, 32u);
  return std::min(ring, slot_count - top_k);
}

void Spend(uint64_t bytes, uint64_t* work_bytes) { *work_bytes -= std::min(bytes, *work_bytes); }

}  // namespace

Status ResidencyManager::Impl::MapSlots() {
  while (slots_.open_count() < stats_.slot_target) {
    const uint32_t slots =
        std::min(segments_.slots_per_segment(), stats_.slot_target - slots_.open_count());
    RETURN_IF_ERROR(OpenSegment(slots));
  }
  BalanceRing();
  return OkStatus();
}

Status ResidencyManager::Impl::OpenSegment(uint32_t slots) {
  ASSIGN_OR_RETURN(const uint32_t segment, segments_.Map(slots));
  for (uint32_t i = slots; i-- > 0;) {
    slots_.Open(SlotIndex(segment * segments_.slots_per_segment() + i), segments_.slot(segment, i));
  }
  return OkStatus();
}

Status ResidencyManager::Impl::SetSlotTarget(uint32_t slots) {
  const uint32_t minimum = MinimumSlots(top_k_);
  if (slots < minimum) {
    return InvalidArgument(fmt::format("{} expert slots: the minimum for top-{} routing is {}",
                                       slots, top_k_, minimum));
  }
  if (slots > max_slots_) {
    return InvalidArgument(
        fmt::format("{} expert slots: the maximum set at start is {}", slots, max_slots_));
  }
  stats_.slot_target = slots;
  return OkStatus();
}

bool ResidencyManager::Impl::AtTarget() const {
  return slots_.open_count() == stats_.slot_target && slots_.closing_count() == 0 &&
         segments_.mapped_slots() == stats_.slot_target &&
         slots_.open_count(SlotRole::kRing) == WantedRing();
}

bool ResidencyManager::Impl::AdvanceResize(uint64_t work_bytes) {
  if (AtTarget()) return false;
  CHECK(work_bytes > 0, "a resize that may do nothing");
  bool progress = true;
  while (progress && work_bytes > 0) {
    progress = ChangeSegments(&work_bytes);
    BalanceRing();
    progress |= VacateClosing(&work_bytes);
    progress |= UnmapRetired(&work_bytes);
  }
  BalanceRing();
  return !AtTarget();
}

bool ResidencyManager::Impl::ChangeSegments(uint64_t* work_bytes) {
  bool progress = false;
  while (slots_.open_count() > stats_.slot_target && CloseExcess(work_bytes)) progress = true;
  while (slots_.open_count() < stats_.slot_target && *work_bytes > 0 && OpenMissing(work_bytes)) {
    progress = true;
  }
  return progress;
}

bool ResidencyManager::Impl::CloseExcess(uint64_t* work_bytes) {
  const uint32_t excess = slots_.open_count() - stats_.slot_target;
  const uint32_t whole = CheapestSegment(excess);
  if (whole != kNoSegment) {
    CloseSegment(whole);
    return true;
  }
  // Memory is returned before any is taken for a smaller segment.
  if (std::count(segment_closing_.begin(), segment_closing_.end(), 1) > 0) return false;
  uint32_t replaced = PartialSegment();
  if (replaced == kNoSegment) replaced = CheapestSegment(segments_.slots_per_segment());
  if (!MapSegment(segments_.slots(replaced) - excess, work_bytes)) return false;
  CloseSegment(replaced);
  return true;
}

bool ResidencyManager::Impl::OpenMissing(uint64_t* work_bytes) {
  const uint32_t whole = segments_.slots_per_segment();
  if (segments_.mapped_slots() >= stats_.slot_target) return false;  // until closing ones are gone
  const uint32_t room = stats_.slot_target - segments_.mapped_slots();
  if (room >= whole) return MapSegment(whole, work_bytes);
  const uint32_t partial = PartialSegment();
  if (partial == kNoSegment) return MapSegment(room, work_bytes);
  if (slots_.closing_count() > 0) return false;
  if (!MapSegment(std::min(room + segments_.slots(partial), whole), work_bytes)) return false;
  CloseSegment(partial);
  return true;
}

// False: the memory is not there. Then what there is becomes the target.
bool ResidencyManager::Impl::MapSegment(uint32_t count, uint64_t* work_bytes) {
  const Status opened = OpenSegment(count);
  if (!opened.ok()) {
    LOG_WARN("expert slots stay at {} instead of {}: {}", slots_.open_count(), stats_.slot_target,
             opened.message());
    stats_.slot_target = slots_.open_count();
    return false;
  }
  Spend(count * segments_.slot_bytes(), work_bytes);
  return true;
}

void ResidencyManager::Impl::CloseSegment(uint32_t segment) {
  segment_closing_[segment] = 1;
  for (uint32_t i = 0; i < segments_.slots(segment); ++i) {
    const SlotIndex index(segment * segments_.slots_per_segment() + i);
    slots_.Close(index);
    const Slot& slot = slots_[index];
    if (slot.under_dma() && slot.expert != kNoExpert && experts_[slot.expert].speculative) {
      scheduler_.Cancel(slot.read);
    }
  }
}

// The mapped segment of at most `most_slots` slots that is emptied with the least work; one that
// somebody holds parts of last.
uint32_t ResidencyManager::Impl::CheapestSegment(uint32_t most_slots) const {
  constexpr uint64_t kHeld = 1 << 20;  // above any number of copies
  uint32_t best = kNoSegment;
  uint64_t best_cost = 0;
  for (uint32_t segment = 0; segment < segments_.segment_count(); ++segment) {
    const uint32_t count = segments_.slots(segment);
    if (count == 0 || count > most_slots || segment_closing_[segment]) continue;
    uint64_t cost = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const Slot& slot = slots_[SlotIndex(segment * segments_.slots_per_segment() + i)];
      cost += slot.expert != kNoExpert;
      if (slot.lease_count > 0 || slot.under_dma()) cost += kHeld;
    }
    if (best != kNoSegment && cost >= best_cost) continue;
    best = segment;
    best_cost = cost;
  }
  return best;
}

uint32_t ResidencyManager::Impl::PartialSegment() const {
  for (uint32_t segment = 0; segment < segments_.segment_count(); ++segment) {
    const uint32_t count = segments_.slots(segment);
    if (count > 0 && count < segments_.slots_per_segment() && !segment_closing_[segment]) {
      return segment;
    }
  }
  return kNoSegment;
}

bool ResidencyManager::Impl::VacateClosing(uint64_t* work_bytes) {
  bool progress = false;
  for (uint32_t segment = 0; segment < segments_.segment_count(); ++segment) {
    if (!segment_closing_[segment]) continue;
    for (uint32_t i = 0; i < segments_.slots(segment); ++i) {
      const Slot& slot = slots_[SlotIndex(segment * segments_.slots_per_segment() + i)];
      if (slot.expert == kNoExpert) continue;
      Expert& expert = experts_[slot.expert];
      if (expert.state != ExpertState::kReady) continue;
      if (*work_bytes == 0) return progress;
      Vacate(&expert, work_bytes);
      progress = true;
    }
  }
  return progress;
}

// Between steps no layer is being computed, but policies spare the one they are told of; so they are
// asked twice, for the ends of the model.
bool ResidencyManager::Impl::EvictColdest(bool closing_too) {
  const IsReady evictable(*this, closing_too);
  const LayerId first(0), last(static_cast<uint32_t>(first_expert_.size()) - 2);
  std::optional<ExpertKey> victim = policy_->ChooseVictim(last, evictable);
  const std::optional<ExpertKey> other = policy_->ChooseVictim(first, evictable);
  if (!victim) return false;
  if (*other != *victim && policy_->Prefers(*victim, *other, first)) victim = other;
  ++stats_.evictions;
  Evict(&experts_[IndexOf(*victim)]);
  return true;
}

// Copies a ready expert into an open slot, over what the policy would rather lose; if that is this
// expert, it goes.
void ResidencyManager::Impl::Vacate(Expert* expert, uint64_t* work_bytes) {
  if (DropStreamed(expert)) return;
  while (slots_.free_count(SlotRole::kCache) == 0) {
    CHECK(EvictColdest(/*closing_too=*/true), "a ready expert is no victim");
    if (expert->state == ExpertState::kAbsent) return;
  }
  const SlotIndex from = expert->slot;
  const SlotIndex to = slots_.Take(SlotRole::kCache, IndexOf(expert->key));
  std::memcpy(slots_[to].data, slots_[from].data, expert->location.bytes);
  expert->slot = to;
  slots_[from].expert = kNoExpert;
  slots_.FreeIfUnused(from);
  ++stats_.moved;
  Spend(expert->location.bytes, work_bytes);
}

bool ResidencyManager::Impl::UnmapRetired(uint64_t* work_bytes) {
  bool progress = false;
  for (uint32_t segment = 0; segment < segments_.segment_count(); ++segment) {
    if (!segment_closing_[segment] || *work_bytes == 0) continue;
    const uint32_t first = segment * segments_.slots_per_segment();
    bool retired = true;
    for (uint32_t i = 0; retired && i < segments_.slots(segment); ++i) {
      retired = slots_[SlotIndex(first + i)].phase == SlotPhase::kRetired;
    }
    if (!retired) continue;
    Spend(segments_.slots(segment) * segments_.slot_bytes(), work_bytes);
    segments_.Unmap(segment);
    segment_closing_[segment] = 0;
    progress = true;
  }
  return progress;
}

uint32_t ResidencyManager::Impl::WantedRing() const {
  const uint32_t open = slots_.open_count();
  return explicit_ring_ != 0 ? std::min(explicit_ring_, open - top_k_)
                             : DeriveRingSlots(open, top_k_, experts_.size());
}

// Free slots change their role; for the ring, experts are evicted. Ring slots in use follow when they
// are free.
void ResidencyManager::Impl::BalanceRing() {
  const uint32_t wanted = WantedRing();
  while (slots_.open_count(SlotRole::kRing) < wanted) {
    if (slots_.ChangeFreeRole(SlotRole::kCache, SlotRole::kRing)) continue;
    if (!EvictColdest(/*closing_too=*/false)) break;
  }
  while (slots_.open_count(SlotRole::kRing) > wanted &&
         slots_.ChangeFreeRole(SlotRole::kRing, SlotRole::kCache)) {
  }
  policy_->SetCapacity(slots_.open_count(SlotRole::kCache));
  stats_.slot_count = slots_.open_count();
  stats_.ring_slots = slots_.open_count(SlotRole::kRing);
  stats_.closing_slots = slots_.closing_count();
}

}  // namespace moraine
