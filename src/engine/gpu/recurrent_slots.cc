#include "engine/gpu/recurrent_slots.h"

#include "base/check.h"
#include "compute/cuda/gated_delta.h"

namespace moraine {

RecurrentSlots::Use RecurrentSlots::Begin(uint32_t sequence, uint32_t first) const {
  CHECK(sequence < sequences_.size(), "a sequence without recurrent state");
  const Sequence& s = sequences_[sequence];
  CHECK(first == 0 || first == s.length, "recurrent state of another position");
  return {first == 0 ? gpu::kZeroState : 2 * sequence + s.half, 2 * sequence + (s.half ^ 1)};
}

void RecurrentSlots::Commit(uint32_t sequence, uint32_t length) {
  Sequence& s = sequences_[sequence];
  s.half ^= 1;
  s.length = length;
}

}  // namespace moraine
