// Where one expert is, as somebody who watches wants to know it: coarser than ExpertState, which is about
// who may do what, and finer where a slot's role or speculation matters.
#pragma once

#include <cstdint>

namespace moraine {

enum class Residence : uint8_t {
  kDrive,
  kReading,
  kReadingAhead,  // by speculation, nobody has asked yet
  kMemory,
  kMemoryAhead,   // read by speculation and not asked for since
  kRing,          // passes through, for a prompt
  kLost,          // its record is damaged (quarantined)
  kVram,          // on a GPU, whether in memory or not; the manager does not know of it
};
inline constexpr int kResidenceCount = 8;

constexpr const char* ResidenceName(Residence residence) {
  constexpr const char* kNames[kResidenceCount] = {"drive",  "reading", "reading_ahead", "memory",
                                                   "memory_ahead", "ring", "lost", "vram"};
  return kNames[static_cast<int>(residence)];
}

constexpr bool IsInMemory(Residence residence) {
  return residence == Residence::kMemory || residence == Residence::kMemoryAhead ||
         residence == Residence::kRing || residence == Residence::kVram;
}

}  // namespace moraine
