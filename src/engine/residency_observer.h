// ResidencyObserver: makes ResidencySnapshots.
//
// Cost of Observe: one pass over the experts, some 10 ns each; of NoteStep: a dozen subtractions.
// Threads: owned by the engine thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/residency_snapshot.h"
#include "engine/vram_tier.h"
#include "residency/residency_manager.h"

namespace moraine {

class ResidencyObserver {
 public:
  // In a snapshot: half a second of a GPU's 500 steps a second, which is more than two frames of a reader.
  static constexpr size_t kStepsKept = 256;

  // `residency` outlives the observer; null: the model has no experts in slots.
  ResidencyObserver(const ResidencyManager* residency, std::vector<uint32_t> experts_per_layer,
                    uint32_t top_k);

  // What is in VRAM, which the manager does not know; outlives the observer. Null: nothing.
  void set_vram(const VramTier* vram) { vram_ = vram; }

  // After each step, with the totals since the start.
  void NoteStep(const PhaseStats& prefill, const PhaseStats& decode);
  // Between two steps, or two layers of one. `stats` is of this moment.
  std::unique_ptr<ResidencySnapshot> Observe(const EngineStats& stats);

 private:
  void Note(bool decode, const PhaseStats& now, PhaseStats* before);
  void FillHeats(std::vector<uint8_t>* heats);

  const ResidencyManager* residency_;
  const VramTier* vram_ = nullptr;
  const std::vector<uint32_t> experts_per_layer_;
  const uint32_t top_k_;
  std::vector<float> heat_;   // scratch
  PhaseStats prefill_, decode_;
  std::deque<StepTimes> steps_;  // the last kStepsKept
  uint64_t step_count_ = 0;
};

}  // namespace moraine
