// GpuAnswers: answers on GPU and CPU together, beside prompts on the GPU (gpu_prefill.h), over the
// same sequences, slots and blocks of keys and values.
//
// A step's attention, norms, routers and dense layers are the GPU's; each routed expert is computed
// where it is cheapest now (hybrid_experts.h); what is hot moves into VRAM slots (vram_tier.h). A
// step gives its keys and values back, so the CPU can take over at any token: when it is found to
// be faster (decode_choice.h), or when something fails, and then it computes the same step.
//
// The link is shared: what a step reads over it comes first, copies into VRAM get a share of its
// time, a large one as long as slots are free.
//
// Threads: the engine thread's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/decode_choice.h"
#include "engine/gpu_prefill.h"
#include "engine/hybrid_experts.h"
#include "engine/stats.h"
#include "engine/vram_tier.h"
#include "model/batch_segment.h"

namespace moraine {

class SlotSegments;

class GpuAnswers {
 public:
  struct Options {
    VramTierOptions tier;
    bool always = false;  // as long as it works; nothing is timed on the CPU alone
  };
  // All must outlive it.
  GpuAnswers(const ModelConfig& config, DecoderModel& model, ExpertExecutor& executor,
             ResidencyManager& residency, const Options& options, const Clock& clock = RealClock());
  ~GpuAnswers();  // waits for copies

  // For the model that is about to be opened, which then is attached:
  HybridExperts& experts() { return experts_; }
  VramTier& tier() { return tier_; }
  const VramTier& tier() const { return tier_; }
  // gpu must outlive it. heat: as VramTier::ImportHeat. page_locked: the GPU can read DRAM slots.
  void Attach(GpuPrefill& gpu, std::span<const float> heat, bool page_locked);

  // Whether the next step of so many answers belongs here.
  bool Wants(uint32_t tokens) const;
  // Computes answers, each of one token, of different sequences; at most kMostTokens together, the
  // rest in further steps. computed[i]: segments[i] has its status, as the model would give it;
  // otherwise something failed, the sequence is as it was, and the CPU shall compute it. Nothing
  // but copies may be leased.
  void Run(std::span<BatchSegment* const> segments, std::span<uint8_t> computed);
  // The CPU alone has computed a step of so many answers, and nothing else, in this time.
  void RecordCpu(uint32_t tokens, int64_t ns);
  // Waits for copies: nothing is leased then.
  void Finish() { tier_.Finish(); }

  GpuAnswersStats Stats() const;

 private:
  Status RunTogether(std::span<BatchSegment* const> segments, std::span<uint8_t> computed);
  void Enqueue(const BatchSegment& segment, uint32_t index);
  Status BeginTier(uint32_t tokens);

  const ModelConfig& config_;
  ExpertExecutor& executor_;
  ResidencyManager& residency_;
  const Clock& clock_;
  const uint32_t most_copies_;
  VramTier tier_;
  HybridExperts experts_;
  DecodeChoice choice_;
  GpuPrefill* gpu_ = nullptr;
  double link_bytes_per_ns_;
  int64_t last_step_ns_ = 0;
  uint64_t answered_tokens_ = 0, steps_ = 0, failed_steps_ = 0;
  std::vector<int32_t> tokens_;
  std::vector<GpuSegment> on_gpu_;
  std::vector<uint32_t> indices_;             // of segments, by on_gpu_
  std::vector<std::vector<uint32_t>> stale_;  // by segment
};

}  // namespace moraine
