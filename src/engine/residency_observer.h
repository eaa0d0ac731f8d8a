// ResidencyObserver: makes ResidencySnapshots.
//
// Cost of Observe: one pass over the experts, some 10 ns each; of NoteStep: a dozen subtractions.
// Threads: owned by the engine thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/residency_snapshot.h"
#include "residency/residency_manager.h"

namespace moraine {

class ResidencyObserver {
 public:
  // Of one snapshot: at 300 tokens/s, a fifth of a second.
  static constexpr size_t kStepsKept = 64;

  // `residency` outlives the observer; null: the model has no experts in slots.
  ResidencyObserver(const ResidencyManager* residency, std::vector<uint32_t> experts_per_layer,
                    uint32_t top_k);

  // After each step, with the totals since the start.
  void NoteStep(const PhaseStats& prefill, const PhaseStats& decode);
  // Between two steps. `stats` is of this moment.
  std::unique_ptr<ResidencySnapshot> Observe(const EngineStats& stats);

 private:
  void Note(bool decode, const PhaseStats& now, PhaseStats* before);
  void FillHeats(std::vector<uint8_t>* heats);

  const ResidencyManager* residency_;
  const std::vector<uint32_t> experts_per_layer_;
  const uint32_t top_k_;
  std::vector<float> heat_;   // scratch
  PhaseStats prefill_, decode_;
  std::vector<StepTimes> steps_;
};

}  // namespace moraine
