// HybridExperts: the routed experts of an answer's step that GPU and CPU compute together
// (gpu/host_experts.h): who computes which.
//
//   in a VRAM slot            the GPU                               VramTier
//   in a page-locked slot     the GPU, over the link, or the CPU    ExpertSplit; a lease till
//   Release anywhere else             the CPU, which reads it               ExpertExecutor, as
//   always
//
// What the CPU would learn of the routing, had it computed the layer alone, it learns: the token
// table, the co-activation, the eviction policy; of experts in VRAM the policy hears only for the
// heat that outlives the run, so that they leave DRAM. What the next router probably wants is read
// ahead, but for what is in VRAM.
//
// Cost: some microseconds of the host a layer, beside what the executor takes. Threads: the engine
// thread's. No allocation after construction.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/clock.h"
#include "engine/expert_executor.h"
#include "engine/expert_split.h"
#include "engine/gpu/host_experts.h"
#include "engine/vram_tier.h"
#include "model/decoder_model.h"
#include "residency/residency_manager.h"

namespace moraine {

// Experts of layers, each counted once a step that wants it, by where they were computed.
struct HybridCounts {
  uint64_t in_vram = 0, over_link = 0, on_cpu = 0;
};

class HybridExperts final : public HostExperts {
 public:
  // A step's most tokens; of more the GPU makes several.
  static constexpr uint32_t kMostTokens = ExpertSplit::kMostTokens;

  // All must outlive it.
  HybridExperts(const ModelConfig& config, DecoderModel& model, ExpertExecutor& executor,
                ResidencyManager& residency, VramTier& tier, const Clock& clock = RealClock());

  // The GPU can read DRAM slots in place, about so many ns an expert. Without it, it does not.
  void AllowLink(double expected_ns);
  // A step of these tokens begins. Nothing is leased.
  void BeginStep(std::span<const int32_t> tokens);

  Result<uint32_t> Place(const RoutedLayer& layer, const std::byte** records) override;
  Result<bool> Compute(const RoutedLayer& layer, float* out) override;
  void Release(uint32_t layer) override;

  // Whether a layer of this step has been placed.
  bool asked() const { return placed_ns_ > 0; }
  // Why this step failed on the host's side; ok if it did not.
  const Status& failure() const { return failure_; }
  const HybridCounts& counts() const { return counts_; }
  const ExpertSplit& split() const { return split_; }

 private:
  // Of the layer at hand: an expert that is not in VRAM.
  struct Wanted {
    ExpertId expert;
    uint32_t tokens = 0;
  };

  void GroupByExpert(const RoutedLayer& layer);
  void PlaceOverLink(const RoutedLayer& layer, const std::byte** records);
  uint32_t MostLeases() const;

  const ModelConfig& config_;
  DecoderModel& model_;
  ExpertExecutor& executor_;
  ResidencyManager& residency_;
  VramTier& tier_;
  const Clock& clock_;
  ExpertSplit split_;
  bool link_allowed_ = false;
  std::span<const int32_t> tokens_;  // of the step
  Status failure_;
  HybridCounts counts_;

  // The layer at hand.
  std::vector<uint8_t> elsewhere_;     // by expert
  std::vector<uint32_t> token_count_;  // by expert
  std::vector<ExpertId> distinct_;
  std::vector<Wanted> wanted_;
  std::vector<Lease> leases_;
  uint32_t lease_count_ = 0, cpu_count_ = 0;
  // For ExpertSplit::RecordLayer; placed_ns_ 0: no layer before in this step.
  uint32_t last_layer_ = 0, last_over_link_ = 0;
  int64_t placed_ns_ = 0, last_cpu_ns_ = 0;
};

}  // namespace moraine
