// The inside of Runner: what it owns, and the steps of its calls. Included by the files beside it that implement
// it: runner_open.cc puts it together, runner.cc computes with it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "compute/cpu_backend.h"
#include "engine/dense_weights.h"
#include "engine/expert_executor.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu_answers.h"
#include "engine/gpu_prefill.h"
#include "engine/prefix_disk.h"
#include "engine/runner.h"
#include "engine/store_record_source.h"
#include "io/mirrored_reader.h"
#include "model/decoder_model.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"
#include "residency/slot_segments.h"

namespace moraine {

// What a change of budget may move before a chunk: 64 MiB are copied or zeroed in about 10 ms.
inline constexpr uint64_t kStepResizeBytes = 64 * kMiB;

inline constexpr char kTokenSection[] = "token_experts";  // of the profile: TokenExpertTable

class Runner::Impl {
 public:
  Status Open(const RunnerOptions& options);
  Status Forward(std::span<const int32_t> tokens, const ForwardOptions& options);
  void Step(std::span<BatchSegment> batch);
  void Compute(std::span<BatchSegment> batch);
  void Account(std::span<const BatchSegment> batch, const PhaseStats& step);
  // What the executor and the drive have done since, in a step that began then.
  struct StepBegin {
    int64_t ns = 0;
    ExecutorTimes executor;
    uint64_t bytes_read = 0;
  };
  StepBegin BeginTiming() const;
  PhaseStats EndTiming(const StepBegin& begin) const;
  Status Warm(WarmOrder order, const std::function<void(uint64_t, uint64_t)>& progress);
  ProfileSnapshot Snapshot() const;
  Status LoadProfile();
  void SetProfileAside(const Status& why);
  EngineStats Stats() const;
  std::string LossyModes() const;

  Result<std::vector<FileId>> OpenPacks(std::unique_ptr<BlockReader>* reader);
  Status PlanMemory(const Manifest& manifest, const MemoryLimit& limit);
  // Of the CPU, or of a GPU that has everything.
  uint32_t step_tokens() const { return std::max(options_.prefill_chunk, options_.max_sequences); }
  Status OpenSequences(const std::vector<LayerStateShape>& shapes);
  void OpenPrefixDisk(Isa isa);
  Status OpenGpu();
  void StepOnGpu(std::span<BatchSegment> batch);
  // runner_prefill.cc: prompts on a GPU.
  void OpenGpuPrefill(uint32_t prefill_chunk);
  uint32_t prefill_chunk() const;
  void MakeGpuAnswers();
  void StepWithGpu(std::span<BatchSegment> batch);
  void AnswerWithGpu();
  uint32_t PrefillOnGpu(BatchSegment& segment);
  void ComputeParts();
  void ComputeSomeParts();
  Status OpenResidency(const Topology& topology);
  Status SetRamBudget(const RamBudget& budget);
  RamBudgetRange BudgetRange() const;
  bool AdvanceResize(uint64_t work_bytes, bool wait);
  Status Settle(int64_t wait_ns);

  RunnerOptions options_;
  ModelConfig config_;
  ModelInfo info_;
  uint32_t kv_tokens_ = 0, max_context_ = 0;  // of all sequences; of one
  std::vector<ExpertLayout> layouts_;
  SlotPlan plan_;
  FixedMemory fixed_;
  uint32_t max_slots_ = 0;
  // Written by SetRamBudget on any thread, taken up by AdvanceResize. relaxed: each stands for itself.
  std::atomic<uint32_t> wanted_slots_{0};
  std::atomic<uint64_t> wanted_budget_bytes_{0};
  uint32_t taken_slots_ = 0;  // of wanted_slots_
  WorkloadProfile profile_;
  bool has_profile_ = false;
  uint64_t learnt_tokens_ = 0;  // by SaveProfile
  int64_t opened_ns_ = 0;
  PhaseStats prefill_, decode_;
  int64_t resizing_ns_ = 0;

  // In order of construction; destroyed in reverse: residency waits for reads before segments go.
  std::unique_ptr<Store> store_;
  std::unique_ptr<DenseWeights> dense_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<CpuBackend> backend_;
  std::unique_ptr<KvPool> kv_pool_;
  std::unique_ptr<PrefixDisk> prefix_disk_;  // null: there is none
  std::vector<SequenceState> sequences_;
  std::vector<int32_t> decode_tokens_;  // of a step
  std::unique_ptr<SlotSegments> segments_;
  std::unique_ptr<ReadScheduler> scheduler_;
  const MirroredReader* mirrored_ = nullptr;  // the scheduler's reader, if the store has a mirror
  std::unique_ptr<StoreRecordSource> source_;
  std::unique_ptr<ResidencyManager> residency_;
  std::unique_ptr<TokenExpertTable> token_table_;
  std::unique_ptr<ExpertExecutor> executor_;
  std::unique_ptr<DecoderModel> model_;
  // A prompt's or an answer's tokens that are computed on the CPU beside a GPU, and how far they are.
  struct Part {
    BatchSegment* segment = nullptr;
    uint32_t done = 0, length_before = 0;
    uint32_t count = 0;  // in parts_batch_
  };
  std::vector<Part> parts_;
  std::vector<BatchSegment> parts_batch_;
  std::vector<BatchSegment*> answers_;  // of a step
  std::vector<uint8_t> answered_;
  std::unique_ptr<GpuPrefill> gpu_prefill_;
  std::unique_ptr<GpuAnswers> gpu_answers_;  // copies with gpu_prefill_'s model
  bool recording_ = false;  // routing, which only the CPU tells of
  // Instead of all of these but the store.
  std::unique_ptr<GpuModel> gpu_;
  std::vector<GpuSegment> gpu_batch_;  // of a step
};

}  // namespace moraine
