// What becomes of an expert when its read ends: ready, read again, failed, quarantined, or free at last
// after a deadline had given it up. The arrows are in expert_state.h.
#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "residency/residency_manager_impl.h"

namespace moraine {

size_t ResidencyManager::Impl::Poll(int64_t wait_ns) {
  size_t decided = 0;
  for (;;) {
    outcomes_.clear();
    const size_t count = scheduler_.Poll(&outcomes_, wait_ns);
    for (const ReadOutcome& outcome : outcomes_) decided += Decide(outcome);
    // A wait is for a decision; a record that is being read again is none.
    if (wait_ns >= 0 || decided > 0 || count == 0) return decided;
  }
}

void ResidencyManager::Impl::Collect() {
  outcomes_.clear();
  scheduler_.Collect(&outcomes_);
  for (const ReadOutcome& outcome : outcomes_) Decide(outcome);
}

// Returns what Poll counts: the leases that waited; 1 for a read that nobody waited for and for a
// slot that has drained; 0 if the record is read again.
size_t ResidencyManager::Impl::Decide(const ReadOutcome& outcome) {
  const SlotIndex index = slots_.FindRead(outcome.id);
  CHECK(index != kNoSlot, "the outcome of a read that is not the manager's");
  Slot& slot = slots_[index];
  Expert& expert = experts_[slot.expert];
  const size_t waiting = std::max(slot.lease_count, 1u);
  if (!outcome.buffer_released) {
    Fail(&expert, outcome.status, ExpertState::kDraining, outcome.delivered_bytes);
    return waiting;
  }
  slots_.EndDma(index);
  if (expert.state == ExpertState::kDraining) {
    Transition(&expert.state, ExpertState::kAbsent);
    Detach(&expert);
    return 1;
  }
  if (outcome.status.ok()) return DecideRead(index, &expert);
  if (outcome.status.code() == StatusCode::kCancelled && slot.lease_count > 0) {
    ReadAgain(&expert);  // demanded after it was given up
    return 0;
  }
  Fail(&expert, outcome.status, ExpertState::kAbsent, outcome.delivered_bytes);
  return waiting;
}

void ResidencyManager::Impl::OnPart(ReadId id, uint64_t offset, uint64_t length) {
  const SlotIndex index = slots_.FindRead(id);
  CHECK(index != kNoSlot, "a part of a read that is not the manager's");
  const Slot& slot = slots_[index];
  const Expert& expert = experts_[slot.expert];
  if (expert.state == ExpertState::kDraining) return;
  const int64_t begin_ns = clock_.NowNs();
  source_.OnPart(index.value(), {slot.data, expert.location.bytes}, offset, length);
  stats_.verify_ns += clock_.NowNs() - begin_ns;
}

// All bytes are there: are they the right ones?
size_t ResidencyManager::Impl::DecideRead(SlotIndex index, Expert* expert) {
  const size_t waiting = std::max(slots_[index].lease_count, 1u);
  stats_.bytes_read += expert->location.bytes;
  const int64_t verify_begin_ns = clock_.NowNs();
  Status verified =
      source_.Verify(expert->key, index.value(), {slots_[index].data, expert->location.bytes});
  stats_.verify_ns += clock_.NowNs() - verify_begin_ns;
  const uint32_t copies = expert->location.copies;
  if (verified.ok()) {
    stats_.healed += expert->wrong_reads > 0;
    Ready(expert);
  } else if (expert->wrong_reads < copies) {
    // A flipped bit between drive and memory is gone the second time; one on a drive is in one copy.
    ++expert->wrong_reads;
    ReadAgain(expert);
    return 0;
  } else {
    if (copies > 1) verified = verified.WithContext(fmt::format("all {} copies are bad", copies));
    quarantine_.emplace(IndexOf(expert->key), verified);
    ++stats_.quarantined;
    Fail(expert, verified, ExpertState::kQuarantined, expert->location.bytes);
  }
  return waiting;
}

void ResidencyManager::Impl::ReadAgain(Expert* expert) {
  ReadInto(*expert, expert->speculative ? ReadPriority::kSpeculative : ReadPriority::kDemand);
  scheduler_.Flush();
}

void ResidencyManager::Impl::Ready(Expert* expert) {
  const Slot& slot = slots_[expert->slot];
  Transition(&expert->state, ExpertState::kReady);
  ++stats_.resident;
  if (slot.role == SlotRole::kCache) EnterPolicy(expert);
  if (slot.lease_count > 0) {
    Transition(&expert->state, ExpertState::kLeased);
  } else if (slot.role == SlotRole::kRing) {
    if (expert->speculative) {
      ++streamed_;
    } else {
      RetireFromRing(expert);  // its leases were released while it was read
    }
  }
}

Status ResidencyManager::Impl::Describe(const Expert& expert, const Status& status) const {
  return status.WithContext(fmt::format(
      "layer {} expert {} ({} at offset {})", expert.key.layer.value(), expert.key.expert.value(),
      scheduler_.reader().path(expert.location.file), expert.location.offset));
}

// The leases that wait have failed. next: absent or quarantined (the slot is theirs until they are
// released), or draining (the slot stays the expert's until the device lets go).
void ResidencyManager::Impl::Fail(Expert* expert, const Status& status, ExpertState next,
                                  uint64_t delivered_bytes) {
  Slot& slot = slots_[expert->slot];
  if (slot.lease_count > 0 || next == ExpertState::kDraining) {
    // Verify's message names the record already.
    slot.failure = next == ExpertState::kQuarantined ? status : Describe(*expert, status);
  }
  stats_.failed_reads += status.code() != StatusCode::kCancelled;
  if (expert->speculative) {
    NoLongerSpeculative(expert, Speculation::kWasted, delivered_bytes);
  }
  Transition(&expert->state, next);
  if (next != ExpertState::kDraining) Detach(expert);
}

}  // namespace moraine
