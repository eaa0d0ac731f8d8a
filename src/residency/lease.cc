// Lease, and what the manager does for it.
#include <utility>

#include "base/check.h"
#include "residency/residency_manager_impl.h"

namespace moraine {

Lease::State ResidencyManager::Impl::LeaseState(SlotIndex index, uint32_t generation) const {
  if (index == kNoSlot) return Lease::State::kFailed;  // in quarantine at lookup
  const Slot& slot = slots_[index];
  CHECK(slot.generation == generation, "a leased slot was reused");
  if (!slot.failure.ok()) return Lease::State::kFailed;
  return experts_[slot.expert].state == ExpertState::kLeased ? Lease::State::kReady
                                                             : Lease::State::kPending;
}

const std::byte* ResidencyManager::Impl::LeaseData(SlotIndex index, uint32_t generation) const {
  CHECK(LeaseState(index, generation) == Lease::State::kReady, "the lease is not ready");
  return slots_[index].data;
}

const Status& ResidencyManager::Impl::LeaseFailure(ExpertKey key, SlotIndex index,
                                                   uint32_t generation) const {
  CHECK(LeaseState(index, generation) == Lease::State::kFailed, "the lease has not failed");
  return index == kNoSlot ? quarantine_.at(IndexOf(key)) : slots_[index].failure;
}

void ResidencyManager::Impl::Release(SlotIndex index, uint32_t generation) {
  if (index == kNoSlot) {
    --quarantine_leases_;
    return;
  }
  Slot& slot = slots_[index];
  CHECK(slot.generation == generation && slot.lease_count > 0, "a leased slot was reused");
  --slot_leases_;
  if (--slot.lease_count > 0) return;
  if (slot.expert == kNoExpert) {
    slots_.FreeIfUnused(index);
    return;
  }
  Expert& expert = experts_[slot.expert];
  if (expert.state != ExpertState::kLeased) return;  // being read or draining: Poll goes on with it
  Transition(&expert.state, ExpertState::kReady);
  if (slot.role == SlotRole::kRing) RetireFromRing(&expert);
}

Lease::Lease(Lease&& other) noexcept
    : manager_(std::exchange(other.manager_, nullptr)),
      key_(other.key_),
      slot_(other.slot_),
      generation_(other.generation_) {}

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  manager_ = std::exchange(other.manager_, nullptr);
  key_ = other.key_;
  slot_ = other.slot_;
  generation_ = other.generation_;
  return *this;
}

Lease::~Lease() { Release(); }

Lease::State Lease::state() const {
  return manager_ ? manager_->impl_->LeaseState(slot_, generation_) : State::kEmpty;
}
const std::byte* Lease::data() const {
  CHECK(manager_, "an empty lease has no data");
  return manager_->impl_->LeaseData(slot_, generation_);
}
const Status& Lease::failure() const {
  CHECK(manager_, "an empty lease has not failed");
  return manager_->impl_->LeaseFailure(key_, slot_, generation_);
}
void Lease::Release() {
  if (ResidencyManager* manager = std::exchange(manager_, nullptr)) {
    manager->impl_->Release(slot_, generation_);
  }
}

}  // namespace moraine
