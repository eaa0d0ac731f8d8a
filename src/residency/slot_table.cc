#include "residency/slot_table.h"

#include "base/check.h"

namespace moraine {

SlotTable::SlotTable(uint32_t slot_count) : slots_(slot_count) {
  // Any slot may take any role in time.
  free_cache_.reserve(slot_count);
  free_ring_.reserve(slot_count);
  in_flight_.reserve(slot_count);
}

void SlotTable::Open(SlotIndex index, std::byte* data) {
  Slot& slot = slots_[index.value()];
  CHECK(slot.phase == SlotPhase::kRetired, "a slot is opened twice");
  slot.phase = SlotPhase::kOpen;
  slot.role = SlotRole::kCache;
  slot.data = data;
  ++open_[static_cast<int>(SlotRole::kCache)];
  free_cache_.push_back(index);
}

void SlotTable::Close(SlotIndex index) {
  Slot& slot = slots_[index.value()];
  CHECK(slot.phase == SlotPhase::kOpen, "only open slots close");
  slot.phase = SlotPhase::kClosing;
  ++closing_;
  --open_[static_cast<int>(slot.role)];
  std::erase(Free(slot.role), index);
  FreeIfUnused(index);
}

bool SlotTable::ChangeFreeRole(SlotRole from, SlotRole to) {
  if (Free(from).empty()) return false;
  const SlotIndex index = Free(from).back();
  Free(from).pop_back();
  --open_[static_cast<int>(from)];
  ++open_[static_cast<int>(to)];
  slots_[index.value()].role = to;
  Free(to).push_back(index);
  return true;
}

SlotIndex SlotTable::Take(SlotRole role, uint32_t expert) {
  std::vector<SlotIndex>& free = Free(role);
  if (free.empty()) return kNoSlot;
  const SlotIndex index = free.back();
  free.pop_back();
  Slot& slot = slots_[index.value()];
  ++slot.generation;
  slot.expert = expert;
  slot.failure = OkStatus();
  return index;
}

void SlotTable::FreeIfUnused(SlotIndex index) {
  Slot& slot = slots_[index.value()];
  if (slot.expert != kNoExpert || slot.lease_count > 0 || slot.under_dma()) return;
  if (slot.phase == SlotPhase::kOpen) {
    Free(slot.role).push_back(index);
    return;
  }
  slot.phase = SlotPhase::kRetired;
  slot.data = nullptr;
  slot.failure = OkStatus();
  --closing_;
}

void SlotTable::TradeForFreeCacheSlot(SlotIndex ring) {
  CHECK(slots_[ring.value()].role == SlotRole::kRing &&
            slots_[ring.value()].phase == SlotPhase::kOpen && !free_cache_.empty(),
        "nothing to trade");
  const SlotIndex given = free_cache_.back();
  free_cache_.pop_back();
  slots_[given.value()].role = SlotRole::kRing;
  free_ring_.push_back(given);
  slots_[ring.value()].role = SlotRole::kCache;
}

void SlotTable::BeginDma(SlotIndex index, ReadId read) {
  Slot& slot = slots_[index.value()];
  CHECK(!slot.under_dma(), "two reads into one slot");
  slot.read = read;
  slot.in_flight_index = static_cast<uint32_t>(in_flight_.size());
  in_flight_.push_back(index);
}

void SlotTable::EndDma(SlotIndex index) {
  Slot& slot = slots_[index.value()];
  CHECK(slot.under_dma(), "no read into this slot");
  const SlotIndex last = in_flight_.back();
  in_flight_[slot.in_flight_index] = last;
  slots_[last.value()].in_flight_index = slot.in_flight_index;
  in_flight_.pop_back();
  slot.in_flight_index = kNoExpert;
}

SlotIndex SlotTable::FindRead(ReadId read) const {
  for (SlotIndex index : in_flight_) {
    if (slots_[index.value()].read == read) return index;
  }
  return kNoSlot;
}

void SlotTable::CheckInvariants() const {
  std::vector<uint8_t> is_free(slots_.size(), 0);
  for (SlotRole role : {SlotRole::kCache, SlotRole::kRing}) {
    for (SlotIndex index : Free(role)) {
      const Slot& slot = slots_[index.value()];
      CHECK(!is_free[index.value()], "a slot is free twice");
      is_free[index.value()] = 1;
      CHECK(slot.role == role, "a slot is free under another role");
      CHECK(slot.phase == SlotPhase::kOpen, "a slot is free and not open");
    }
  }
  uint32_t open[2] = {0, 0}, closing = 0, under_dma = 0;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.phase == SlotPhase::kOpen) ++open[static_cast<int>(slot.role)];
    closing += slot.phase == SlotPhase::kClosing;
    under_dma += slot.under_dma();
    const bool in_use = slot.expert != kNoExpert || slot.lease_count > 0 || slot.under_dma();
    CHECK((slot.phase == SlotPhase::kRetired) == (slot.data == nullptr),
          "a slot has memory exactly while it is open or closing");
    switch (slot.phase) {
      case SlotPhase::kRetired: CHECK(!in_use, "a retired slot is in use"); break;
      case SlotPhase::kClosing: CHECK(in_use, "a slot closes and nothing holds it"); break;
      case SlotPhase::kOpen:
        CHECK(in_use != static_cast<bool>(is_free[i]), "a slot is neither free nor in use, or both");
    }
    CHECK(slot.expert != kNoExpert || !in_use || !slot.failure.ok(),
          "a slot is held without expert or failure");
    if (slot.under_dma()) {
      CHECK(in_flight_[slot.in_flight_index] == SlotIndex(i), "the DMA list is out of step");
    }
  }
  CHECK(open[0] == open_[0] && open[1] == open_[1] && closing == closing_,
        "the slots are miscounted by role or phase");
  CHECK(under_dma == in_flight_.size(), "the DMA list is out of step");
}

}  // namespace moraine
