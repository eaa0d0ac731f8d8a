// RecurrentSlots: where each sequence's recurrent state is in VRAM, for mixers whose memory is replaced by each step
// instead of extended (linear attention).
//
// Two slots a sequence, taken in turn, as on the CPU (model/sequence_state.h): a step reads one and writes the other,
// and only Commit makes the other one count. So a step that failed or was cancelled has changed nothing.
//
// Pure bookkeeping; slot numbers are those of compute/cuda/gated_delta.h. Threads: owned by one thread.
#pragma once

#include <cstdint>
#include <vector>

namespace moraine {

class RecurrentSlots {
 public:
  explicit RecurrentSlots(uint32_t sequences) : sequences_(sequences) {}

  static uint32_t SlotCount(uint32_t sequences) { return 2 * sequences; }

  struct Use {
    uint32_t from = 0, to = 0;  // from: gpu::kZeroState at a sequence's beginning
  };
  // Of a step whose first token is at position `first`: 0, which begins anew, or where the last committed
  // step has ended (CHECKed: recurrent state cannot go back).
  Use Begin(uint32_t sequence, uint32_t first) const;
  // The step has been computed; the sequence has `length` positions now.
  void Commit(uint32_t sequence, uint32_t length);

 private:
  struct Sequence {
    uint32_t length = 0;
    uint32_t half = 0;  // that counts
  };
  std::vector<Sequence> sequences_;
};

}  // namespace moraine
