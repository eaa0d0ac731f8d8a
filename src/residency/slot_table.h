// SlotTable: the slots, their two roles, and who has each of them.
//
//                Take(role)                   read decided
//      free ------------------> under DMA -------------------> holds an expert
//       ^  ^                        |                               |
//       |  |                        | read failed, leases remain    | evicted (no lease, no DMA)
//       |  +--- last release --- failed <--- (deadline: still under DMA until the device lets go)
//       +-----------------------------------------------------------+
//
// Leases are counted here and not by expert, because a failed read outlives its expert's state: the
// expert is absent again and may be read into another slot while somebody still holds the failure.
// Roles (cache, ring) are a property of the slot; they are traded, so that their numbers change only
// when the budget does.
//
// A slot has memory while it is open or closing (residency_resize.cc):
//
//      retired ---- Open ----> open ---- Close ----> closing ---- nothing uses it any more ----+
//         ^                      +---- Close, while it is free ----+                           |
//         +--------------------------------------------------------+---------------------------+
//
// A closing slot is never taken again, nor counted under a role; what is in it is used until it goes.
//
// Threads: owned by the ResidencyManager's thread. No allocation after construction, failure
// messages aside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "io/read_scheduler.h"

namespace moraine {

inline constexpr SlotIndex kNoSlot{std::numeric_limits<uint32_t>::max()};
inline constexpr uint32_t kNoExpert = std::numeric_limits<uint32_t>::max();

enum class SlotRole : uint8_t { kCache, kRing };
enum class SlotPhase : uint8_t { kRetired, kOpen, kClosing };

struct Slot {
  std::byte* data = nullptr;     // null: retired
  SlotPhase phase = SlotPhase::kRetired;
  SlotRole role = SlotRole::kCache;
  uint32_t generation = 0;       // increments at each reuse
  uint32_t lease_count = 0;
  uint32_t expert = kNoExpert;   // flat index; kNoExpert when free or failed
  uint32_t in_flight_index = kNoExpert;  // position in in_flight(); kNoExpert: not under DMA
  ReadId read = 0;               // while under DMA
  Status failure;                // not ok: leases of this generation have failed

  bool under_dma() const { return in_flight_index != kNoExpert; }
};

class SlotTable {
 public:
  // All retired.
  explicit SlotTable(uint32_t slot_count);

  // A retired slot gets memory and is a free cache slot.
  void Open(SlotIndex index, std::byte* data);
  // An open slot closes, and retires at once if it is free.
  void Close(SlotIndex index);
  // A free slot of role `from`, if there is one, changes it.
  bool ChangeFreeRole(SlotRole from, SlotRole to);

  Slot& operator[](SlotIndex index) { return slots_[index.value()]; }
  const Slot& operator[](SlotIndex index) const { return slots_[index.value()]; }
  uint32_t size() const { return static_cast<uint32_t>(slots_.size()); }
  uint32_t free_count(SlotRole role) const { return static_cast<uint32_t>(Free(role).size()); }
  uint32_t open_count(SlotRole role) const { return open_[static_cast<int>(role)]; }
  uint32_t open_count() const { return open_[0] + open_[1]; }
  uint32_t closing_count() const { return closing_; }

  // A free slot of that role with a new generation, for `expert`; kNoSlot if there is none.
  SlotIndex Take(SlotRole role, uint32_t expert);
  // Frees the slot, or retires it if it is closing, if nothing needs it any more: no expert, no
  // lease, no DMA.
  void FreeIfUnused(SlotIndex index);
  // `ring` is an open ring slot, in use; a free cache slot becomes ring in exchange. CHECKs that there is
  // one.
  void TradeForFreeCacheSlot(SlotIndex ring);

  void BeginDma(SlotIndex index, ReadId read);
  void EndDma(SlotIndex index);
  // Slots under DMA, in no order.
  std::span<const SlotIndex> in_flight() const { return in_flight_; }
  // kNoSlot if no slot waits for this read. Linear in what is in flight: at most a few hundred ids
  // beside reads of megabytes.
  SlotIndex FindRead(ReadId read) const;

  // CHECKs free lists, roles and the DMA list against the slots.
  void CheckInvariants() const;

 private:
  std::vector<SlotIndex>& Free(SlotRole role) {
    return role == SlotRole::kCache ? free_cache_ : free_ring_;
  }
  const std::vector<SlotIndex>& Free(SlotRole role) const {
    return role == SlotRole::kCache ? free_cache_ : free_ring_;
  }

  std::vector<Slot> slots_;
  std::vector<SlotIndex> free_cache_, free_ring_, in_flight_;
  uint32_t open_[2] = {0, 0};  // by role
  uint32_t closing_ = 0;
};

}  // namespace moraine
