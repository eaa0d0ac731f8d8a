// ExpertExecutor: the routed experts of one layer, wherever they are.
//
// Decode: leases for all experts of the tokens (one of each sequence of the batch, who gain from one
// another's reads), misses submitted in one batch; the resident ones are computed while the misses land,
// each missing one as it arrives. Prefill: the same over all experts that
// the chunk routes to, each read once, through the ring. Behind them the drive reads what the next
// layers' routers probably want (their answer to this layer's hidden state), which changes when bytes
// arrive and never what is computed. Outputs are kept per (token, rank) and summed in router order at
// the end, so arrival order does not change a bit.
//
// Threads: the engine thread's. No allocation in RunExperts.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "compute/expert_kernels.h"
#include "engine/co_activation.h"
#include "engine/expert_deferral.h"
#include "engine/routing_recorder.h"
#include "engine/speculation_watchdog.h"
#include "engine/token_expert_table.h"
#include "model/decoder_model.h"
#include "residency/residency_manager.h"

namespace moraine {

struct ExecutorTimes {
  int64_t kernel_ns = 0;  // expert kernels and the final sum
  int64_t stall_ns = 0;   // waiting for reads with nothing to compute
  int64_t verify_ns = 0;  // checksums of what arrived
  int64_t residency_ns = 0;  // lookups, evictions, submitting and reaping reads
  int64_t total_ns = 0;   // all of RunExperts
};

class VramTier;

class ExpertExecutor final : public MoeExecutor {
 public:
  // layouts: one per layer (unused for dense layers). All must outlive the executor.
  ExpertExecutor(const ModelConfig& config, std::vector<ExpertLayout> layouts,
                 ResidencyManager& residency, ExpertKernels& kernels, uint32_t max_tokens,
                 const Clock& clock = RealClock());

  static uint64_t ScratchBytes(const ModelConfig& config, uint32_t max_tokens);

  // What the following RunExperts belong to: decode keeps its misses, prefill streams them. tokens: those
  // that are decoded, for the token table; empty if unknown. vram: what a GPU has and computes in this step,
  // which is not read ahead; null: nothing.
  void BeginStep(AcquireMode mode, std::span<const int32_t> tokens = {},
                 const VramTier* vram = nullptr);
  // out may be null if all experts are elsewhere.
  Status RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                    float* out) override;
  std::optional<ExpertId> failed_expert() const override { return failed_expert_; }
  uint32_t LookaheadDepth() const override;
  // Off: only what routers have asked for is read. On by default.
  void set_lookahead(bool on) { lookahead_allowed_ = on; }
  // A table to learn from and to read ahead for the first MoE layer by; null: none. Not owned.
  void set_token_table(TokenExpertTable* table) { token_table_ = table; }
  // Writes down all routing from now on; null: no more. Not owned.
  void set_recorder(RoutingRecorder* recorder) { recorder_ = recorder; }
  // Called when a layer's experts are about to be looked up and nothing is leased: whoever shows what happens
  // can look in then, in the middle of a step. What it takes is accounted for as `other`. Null: nobody.
  void set_layer_listener(std::function<void()> listener) { layer_listener_ = std::move(listener); }
  // Lossy, see expert_deferral.h: experts a layer that may join one layer late; 0: none. It and the next
  // work in steps of one token only, so not while several sequences decode together.
  void set_deferral(uint32_t experts) { deferral_.set_limit(experts); }
  // Lossy: how much a router's choice leans to what is in memory, in shares of the span between the token's
  // highest and lowest router logit; 0: not at all. After "Mixture of Cache-Conditional Experts"
  // (Skliar et al., 2024), whose best expert always stays.
  void set_resident_preference(float strength) { resident_preference_ = strength; }
  float ResidentPreference(LayerId layer, std::span<uint8_t> resident) const override;
  uint64_t deferred() const { return deferral_.deferred(); }

  const ExecutorTimes& times() const { return times_; }
  const CoActivation& co_activation() const { return co_activation_; }
  CoActivation& co_activation() { return co_activation_; }
  const std::vector<int64_t>& stall_ns_per_layer() const { return layer_stall_ns_; }

 private:
  // How many layers ahead to read; a recorder wants to know more than that.
  uint32_t ReadAheadDepth() const;
  void GroupByExpert(const RoutingDecision& routing);
  void OrderByResidency(LayerId layer);
  bool Defers(const RoutingDecision& routing) const;
  void SkipDeferredRows(const RoutingDecision& routing);
  void LearnTokens(LayerId layer, const RoutingDecision& routing);
  Status ComputeAll(LayerId layer, const RoutingDecision& routing);
  void Speculate(const RoutingDecision& routing);
  void KeepDistinct(LayerId layer, std::vector<ExpertId>* experts);
  void PlanStream(const RoutingDecision& routing);
  void Stream();
  class PollTimer;
  void CollectArrivals();
  size_t Poll(int64_t wait_ns);
  Status ComputeReady(LayerId layer, size_t acquired, size_t* done);

  const uint32_t hidden_;
  const std::vector<ExpertLayout> layouts_;
  ResidencyManager& residency_;
  ExpertKernels& kernels_;
  const Clock& clock_;
  AcquireMode mode_ = AcquireMode::kCached;
  const VramTier* vram_ = nullptr;
  bool lookahead_allowed_ = true;
  uint64_t expert_total_ = 0;
  SpeculationWatchdog watchdog_;
  int64_t step_begin_ns_ = 0, step_end_ns_ = 0;  // of the last decode step: to its last layer's experts
  const ModelConfig& config_;
  LayerId first_moe_layer_;
  std::optional<ExpertId> failed_expert_;  // of the last RunExperts
  TokenExpertTable* token_table_ = nullptr;
  RoutingRecorder* recorder_ = nullptr;
  std::function<void()> layer_listener_;
  ExpertDeferral deferral_;
  float resident_preference_ = 0;
  CoActivation co_activation_;
  ExecutorTimes times_;
  std::vector<int64_t> layer_stall_ns_;

  // The experts of this call, and per expert its tokens; all sized for the worst case.
  std::vector<ExpertId> experts_;      // distinct, in the order of acquisition
  std::vector<float> expert_weights_;  // tokens that route to each
  std::vector<Lease> leases_;          // parallel to experts_
  size_t region_experts_ = 8;          // computed before the drive is looked at, by how long the last took
  std::vector<uint32_t> first_row_;    // by expert id: first output row
  std::vector<uint32_t> row_count_;    // by expert id
  std::vector<uint32_t> token_rows_;   // by output row: its token
  std::vector<uint32_t> output_row_;   // by token x rank: its output row
  std::vector<float> outputs_;         // output rows x hidden; the last row: zeros, of experts elsewhere
  std::vector<ExpertTask> tasks_;
  std::vector<uint32_t> task_expert_;  // index into experts_ of each task
  std::vector<ExpertId> lookahead_;
  // Prefill: what the next layer will want, in file order, and how much of it has been dealt with.
  LayerId stream_layer_;
  std::vector<ExpertId> stream_;
  std::vector<uint8_t> named_;  // by expert id, while a list is made
  size_t stream_next_ = 0;
};

}  // namespace moraine
