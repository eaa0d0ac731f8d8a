#include "residency/slot_table.h"

#include "base/check.h"

namespace moraine {

SlotTable::SlotTable(std::span<const std::span<std::byte>> slabs, uint64_t slot_bytes,
                     uint32_t slot_count, uint32_t ring_slots) {
  CHECK(ring_slots <= slot_count, "more ring slots than slots");
  slots_.reserve(slot_count);
  for (std::span<std::byte> slab : slabs) {
    for (uint64_t at = 0; at + slot_bytes <= slab.size() && slots_.size() < slot_count;
         at += slot_bytes) {
      slots_.emplace_back().data = slab.data() + at;
    }
  }
  CHECK(slots_.size() == slot_count, "the slabs are too small for the slots");
  // Any slot may take any role in time.
  free_cache_.reserve(slot_count);
  free_ring_.reserve(slot_count);
  in_flight_.reserve(slot_count);
  for (uint32_t i = slot_count; i-- > 0;) {
    slots_[i].role = i >= slot_count - ring_slots ? SlotRole::kRing : SlotRole::kCache;
    Free(slots_[i].role).push_back(SlotIndex(i));
  }
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
  const Slot& slot = slots_[index.value()];
  if (slot.expert != kNoExpert || slot.lease_count > 0 || slot.under_dma()) return;
  Free(slot.role).push_back(index);
}

void SlotTable::TradeForFreeCacheSlot(SlotIndex ring) {
  CHECK(slots_[ring.value()].role == SlotRole::kRing && !free_cache_.empty(), "nothing to trade");
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

void SlotTable::CheckInvariants(uint32_t ring_slots) const {
  std::vector<uint8_t> is_free(slots_.size(), 0);
  for (SlotRole role : {SlotRole::kCache, SlotRole::kRing}) {
    for (SlotIndex index : Free(role)) {
      const Slot& slot = slots_[index.value()];
      CHECK(!is_free[index.value()], "a slot is free twice");
      is_free[index.value()] = 1;
      CHECK(slot.role == role, "a slot is free under another role");
    }
  }
  uint32_t ring = 0, under_dma = 0;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    ring += slot.role == SlotRole::kRing;
    under_dma += slot.under_dma();
    const bool in_use = slot.expert != kNoExpert || slot.lease_count > 0 || slot.under_dma();
    CHECK(in_use != static_cast<bool>(is_free[i]), "a slot is neither free nor in use, or both");
    CHECK(slot.expert != kNoExpert || !in_use || !slot.failure.ok(),
          "a slot is held without expert or failure");
    if (slot.under_dma()) {
      CHECK(in_flight_[slot.in_flight_index] == SlotIndex(i), "the DMA list is out of step");
    }
  }
  CHECK(ring == ring_slots, "the number of ring slots has changed");
  CHECK(under_dma == in_flight_.size(), "the DMA list is out of step");
}

}  // namespace moraine
