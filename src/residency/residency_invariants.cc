#include "base/check.h"
#include "residency/residency_manager_impl.h"

namespace moraine {

// Between calls:
//  1. SlotTable's own: each slot is free, under DMA, an expert's or held by failed leases, or retired.
//  2. Expert and slot point at each other; only absent and quarantined experts have no slot.
//  3. ready: no lease; leased: some. Neither is under DMA nor failed; reading and draining are under
//     DMA; draining has failed. Nothing is reserved or evicting.
//  4. The policy knows the ready and leased experts in cache slots, and no others; no unleased expert
//     sits in the ring but those streamed there ahead of their layer.
//  5. Only reading and ready experts without leases count as speculative; every prefetch is used,
//     wasted or still speculative.
//  6. Slots of unmapped segments are retired, of mapped ones open, of closing ones not open.
//  7. The totals (resident, leases, lookups) are the sums of the parts.
void ResidencyManager::Impl::CheckInvariants() const {
  slots_.CheckInvariants();
  CheckSegments();
  CHECK(reserved_.empty(), "a reserved expert between calls");
  uint64_t resident = 0, speculative = 0, leases = 0, in_slots = 0, streamed = 0;
  LookupCounters sum;
  for (const Expert& expert : experts_) {
    CheckExpert(expert);
    resident += expert.state == ExpertState::kReady || expert.state == ExpertState::kLeased;
    speculative += expert.speculative;
    streamed += expert.state == ExpertState::kReady && slots_[expert.slot].role == SlotRole::kRing;
    in_slots += expert.slot != kNoSlot;
    sum.hit += expert.counters.hit;
    sum.cold_miss += expert.counters.cold_miss;
    sum.in_flight_miss += expert.counters.in_flight_miss;
    sum.prefetch_hit += expert.counters.prefetch_hit;
  }
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    leases += slots_[SlotIndex(i)].lease_count;
    in_slots -= slots_[SlotIndex(i)].expert != kNoExpert;
  }
  CHECK(in_slots == 0, "a slot's expert is elsewhere");
  CHECK(resident == stats_.resident, "the resident count is wrong");
  CHECK(streamed == streamed_, "the count of streamed experts is wrong");
  CHECK(leases == slot_leases_, "the lease count is wrong");
  CHECK(stats_.prefetch_issued == stats_.prefetch_used + stats_.prefetch_wasted + speculative,
        "a prefetch is neither used, wasted nor open");
  CHECK(sum.hit == stats_.decode.hit + stats_.prefill.hit &&
            sum.cold_miss == stats_.decode.cold_miss + stats_.prefill.cold_miss &&
            sum.in_flight_miss == stats_.decode.in_flight_miss + stats_.prefill.in_flight_miss &&
            sum.prefetch_hit == stats_.decode.prefetch_hit + stats_.prefill.prefetch_hit,
        "the experts' counters do not sum to the totals");
}

void ResidencyManager::Impl::CheckSegments() const {
  const uint32_t per_segment = segments_.slots_per_segment();
  for (uint32_t segment = 0; segment < segments_.segment_count(); ++segment) {
    CHECK(segments_.slots(segment) > 0 || !segment_closing_[segment], "a segment closes unmapped");
    for (uint32_t i = 0; i < per_segment; ++i) {
      const Slot& slot = slots_[SlotIndex(segment * per_segment + i)];
      if (i >= segments_.slots(segment)) {
        CHECK(slot.phase == SlotPhase::kRetired, "a slot without memory is in use");
      } else if (segment_closing_[segment]) {
        CHECK(slot.phase != SlotPhase::kOpen, "an open slot in a closing segment");
      } else {
        CHECK(slot.phase == SlotPhase::kOpen, "a mapped slot lies idle");
      }
      CHECK(slot.data == nullptr || slot.data == segments_.slot(segment, i), "a slot has moved");
    }
  }
  CHECK(stats_.slot_count == slots_.open_count() &&
            stats_.ring_slots == slots_.open_count(SlotRole::kRing),
        "the slot statistics are wrong");
  CHECK(stats_.slot_count >= MinimumSlots(top_k_), "fewer slots than one layer needs");
}

void ResidencyManager::Impl::CheckExpert(const Expert& expert) const {
  const bool has_slot =
      expert.state != ExpertState::kAbsent && expert.state != ExpertState::kQuarantined;
  CHECK(has_slot == (expert.slot != kNoSlot), "only absent and quarantined experts have no slot");
  CHECK(quarantine_.contains(IndexOf(expert.key)) == (expert.state == ExpertState::kQuarantined),
        "a quarantine without its reason");
  if (!has_slot) {
    CHECK(!expert.in_policy && !expert.speculative, "an absent expert is counted as present");
    return;
  }
  const Slot& slot = slots_[expert.slot];
  CHECK(slot.expert == IndexOf(expert.key), "expert and slot disagree");
  const bool resident =
      expert.state == ExpertState::kReady || expert.state == ExpertState::kLeased;
  const bool reading =
      expert.state == ExpertState::kReading || expert.state == ExpertState::kDraining;
  CHECK(resident || reading, "reserved and evicting do not outlast a call");
  CHECK(slot.under_dma() == reading, "DMA without a read, or a read without DMA");
  CHECK(!resident || (slot.lease_count > 0) == (expert.state == ExpertState::kLeased),
        "ready means no lease, leased means some");
  CHECK(slot.failure.ok() == (expert.state != ExpertState::kDraining),
        "of experts with a slot only those draining have failed");
  CHECK(expert.in_policy == (resident && slot.role == SlotRole::kCache),
        "the policy knows what it should not, or does not know what it should");
  CHECK(expert.state != ExpertState::kReady || slot.role == SlotRole::kCache || expert.speculative,
        "an unleased expert stays in the ring that was not streamed there");
  CHECK(!expert.speculative ||
            (slot.lease_count == 0 && expert.state != ExpertState::kDraining),
        "a demanded expert counts as speculative");
}

}  // namespace moraine
