// The states of one expert, and who may move it.
//
//                 Acquire / Prefetch             read submitted            last byte + checksum
//      absent ----------------------> reserved ----------------> reading ---------------------> ready
//        ^  ^                            |                          |                          |   ^
//        |  |        cancelled           |     error, cancelled     |                 Acquire  |   | last
//        |  +----------------------------+--------------------------+                          v   | release
//        |                                     (deadline: -> draining -> absent)             leased(n)
//        |                                                                                     |
//        +------------------------------- evicting <------- ChooseVictim ------- ready --------+
//
//      reading -> quarantined   checksum wrong after one re-read; stays until the process ends.
//      reading -> draining      deadline missed: the leases fail at once, but the slot is under DMA
//                               until the device lets go; only then is it free.
//
// A reserved or reading expert may already be held by leases that wait (their count pins the slot).
// All transitions are made by the ResidencyManager on the engine thread; there is no lock. evicting
// is instantaneous for host slots (there is nothing to write back) and lasts until an event for
// device slots. The table below is the diagram; Transition() checks it in every build.
#pragma once

#include <cstdint>

namespace moraine {

enum class ExpertState : uint8_t {
  kAbsent,
  kReserved,
  kReading,
  kReady,
  kLeased,
  kEvicting,
  kDraining,
  kQuarantined,
};
inline constexpr int kExpertStateCount = 8;

const char* ExpertStateName(ExpertState state);
bool IsAllowedTransition(ExpertState from, ExpertState to);
// CHECKs that the arrow exists, then takes it.
void Transition(ExpertState* state, ExpertState to);

}  // namespace moraine
