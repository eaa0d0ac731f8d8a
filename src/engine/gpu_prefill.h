// GpuPrefill: prompts on the GPU while answers are computed on the CPU, over the same sequences, the same
// slots and the same blocks of keys and values.
//
// This is how a model larger than VRAM and DRAM is served: a prompt's chunk of thousands of tokens brings each
// expert over the link once and is multiplied by tensor cores; a token of an answer wants a few experts,
// which the CPU reads where they lie. After a chunk the CPU knows all it would know had it computed the chunk
// itself: keys and values are in its cache (gpu/gpu_handover.h), the eviction policy and the token table have
// learnt the routing.
//
// The GPU is an accelerator, not a need: whatever fails there (memory, a damaged record, the device) is
// logged, the chunk is computed on the CPU, and so is everything after it.
//
// Threads: the engine thread's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/gpu/gpu_model.h"
#include "engine/hybrid_experts.h"
#include "engine/kv_mirror.h"
#include "engine/leased_experts.h"
#include "engine/prefill_choice.h"
#include "engine/token_expert_table.h"
#include "model/batch_segment.h"
#include "model/kv_pool.h"

namespace moraine {

// Totals since Open.
struct GpuPrefillCounts {
  uint64_t tokens = 0, chunks = 0;
  uint64_t copied_bytes = 0;  // of experts, to the GPU
};

class GpuPrefill {
 public:
  struct Options {
    GpuModelOptions model;      // without source and host_kv
    uint32_t least_tokens = 0;  // of a piece for the GPU; 0: found out
    TokenExpertTable* token_table = nullptr;  // learns, too; null: none
    // Who computes pieces of few tokens together with the GPU, and the experts in VRAM, which are not copied;
    // they learn, too. Null: nobody, none.
    HybridExperts* together = nullptr;
    VramTier* tier = nullptr;
  };
  using OpenModel = std::function<Result<std::unique_ptr<GpuModel>>(const GpuModelOptions&)>;
  // All must outlive it. open: makes the model. Errors: its own.
  static Result<std::unique_ptr<GpuPrefill>> Open(const ModelConfig& config, KvPool& kv_pool,
                                                  ResidencyManager& residency, Options options,
                                                  const OpenModel& open);

  // Tokens that are best computed together; 0 when the GPU is not used any more.
  uint32_t chunk() const { return failed_ ? 0 : model_->max_chunk(); }
  // Whether the next `tokens` tokens of a prompt belong here.
  bool Wants(uint32_t tokens) const { return !failed_ && choice_.OnGpu(tokens); }
  uint32_t ProbeTokens(uint32_t tokens) const { return failed_ ? 0 : choice_.ProbeTokens(tokens); }

  // Computes the segment's tokens as the model would (status, sink, sequence), in pieces of chunk(). Returns
  // how many it has: of a segment that is ok fewer than all only if the GPU has failed. Then the CPU goes
  // on behind them. Nothing may be leased.
  uint32_t Run(BatchSegment& segment);
  // The CPU is about to compute this segment, whose sequence has blocks for it.
  void BeginOnCpu(const BatchSegment& segment);
  // The CPU has computed so many tokens of a prompt, and nothing else, in this time.
  void RecordCpu(uint32_t tokens, int64_t ns) { choice_.Record(false, tokens, ns); }

  const VramPlan& plan() const { return model_->plan(); }
  const std::string& gpu_name() const { return model_->gpu_name(); }
  // For whoever computes answers with the same model (gpu_answers.h): what both caches have, and that the GPU
  // is not to be used any more.
  GpuModel& model() { return *model_; }
  KvMirror& mirror() { return mirror_; }
  void Fail(const Status& why);

  GpuPrefillCounts counts() const;
  uint32_t break_even_tokens() const { return failed_ ? 0 : choice_.break_even_tokens(); }

 private:
  GpuPrefill(const ModelConfig& config, KvPool& kv_pool, ResidencyManager& residency,
             const Options& options);
  Status RunPiece(const BatchSegment& segment, uint32_t begin, uint32_t count);
  void Learn(std::span<const int32_t> tokens);

  const ModelConfig& config_;
  ResidencyManager& residency_;
  TokenExpertTable* const token_table_;
  HybridExperts* const together_;
  VramTier* const tier_;
  std::shared_ptr<void> kv_lock_;
  LeasedExperts experts_;
  std::unique_ptr<GpuModel> model_;  // uses all above
  KvMirror mirror_;
  PrefillChoice choice_;
  bool failed_ = false;
  GpuPrefillCounts counts_;
  std::vector<uint32_t> stale_;
  // Of a layer, for Learn.
  std::vector<uint32_t> token_counts_;
  std::vector<ExpertId> taken_;
  std::vector<float> weights_;
};

}  // namespace moraine
