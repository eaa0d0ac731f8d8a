// GpuModel of a build with CUDA: budget, loading, and the order of a pass.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/clock.h"
#include "engine/gpu/gpu_handover.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/gpu_stage.h"
#include "engine/gpu/gpu_support.h"
#include "engine/gpu/host_meeting.h"
#include "engine/gpu/hybrid_step.h"
#include "engine/gpu/vram_needs.h"
#include "memory/cuda/gpu_runtime.h"

namespace moraine {
namespace {

// Left to CUDA where no budget is given: modules that are loaded when first used, graphs, stacks.
constexpr uint64_t kReserveBytes = 512 * kMiB;
static_assert(kGpuPagePositions == gpu::kKvPagePositions);

class CudaModel final : public GpuModel {
 public:
  Status Load(const Store& store, const ModelConfig& config, std::span<const ExpertLayout> layouts,
              const GpuModelOptions& options);
  ~CudaModel() override {
    if (stage_ != nullptr) static_cast<void>(stage_->Synchronize());
    if (slot_stream_.get() != nullptr) static_cast<void>(slot_stream_.Synchronize());
  }
  void Step(std::span<GpuSegment> batch) override;
  uint32_t max_chunk() const override { return plan_.chunk; }
  uint32_t page_count() const override { return page_count_; }
  const VramPlan& plan() const override { return plan_; }
  const std::string& gpu_name() const override { return info_.name; }
  const uint32_t* routed(uint32_t layer) const override { return handover_->routed(layer); }
  VramSlots vram_slots() const override { return stage_->experts().hot_slots(); }
  DeviceCopier& slot_copier() override { return *slot_copier_; }
  Result<double> MeasureLink() override;

 private:
  Status Plan(const Store& store, const GpuModelOptions& options);
  void StepHandingOver(GpuSegment& segment);
  Status Begin(const GpuSegment& segment);
  Status AwaitSlotCopies();
  void StepFew(std::span<GpuSegment* const> segments);
  Status RunFew(std::span<GpuSegment* const> segments, uint32_t count, bool logits);
  Status RunMany(const GpuSegment& segment);

  ModelConfig config_;
  gpu::GpuInfo info_;
  VramPlan plan_;
  uint32_t page_count_ = 0;
  gpu::OwnedStream slot_stream_;
  std::unique_ptr<GpuStage> stage_;
  std::unique_ptr<GpuHandover> handover_;  // of a model for prompts only; copies from the stage's cache
  std::unique_ptr<HostMeeting> meeting_;   // of a model whose answers the CPU computes, too
  std::unique_ptr<HybridStep> hybrid_;
  std::optional<StreamCopier> slot_copier_;
  gpu::Event slots_copied_;
  std::vector<GpuPass::Row> rows_;
  std::vector<GpuSegment*> few_;
  std::vector<uint32_t> written_;  // pages
};

Status CudaModel::Plan(const Store& store, const GpuModelOptions& options) {
  page_count_ = (options.max_context + kGpuPagePositions - 1) / kGpuPagePositions;
  const VramNeeds needs = CountVramNeeds(store.manifest(), config_,
                                         {.max_context = options.max_context,
                                          .prefill_chunk = options.prefill_chunk,
                                          .kv_format = options.kv_format,
                                          .hot_experts = options.host_experts != nullptr});
  uint64_t budget = options.vram_budget_bytes;
  if (budget == 0) budget = info_.free_bytes - std::min(info_.free_bytes, kReserveBytes);
  if (budget > info_.free_bytes) {
    return ResourceExhausted(fmt::format("VRAM budget {}: {} has {} of {} free",
                                         FormatByteSize(budget), info_.name,
                                         FormatByteSize(info_.free_bytes),
                                         FormatByteSize(info_.total_bytes)));
  }
  auto plan = PlanVram(needs, budget);
  if (!plan.ok()) return plan.status().WithContext(info_.name);
  plan_ = std::move(*plan);
  return OkStatus();
}

Status CudaModel::Load(const Store& store, const ModelConfig& config,
                       std::span<const ExpertLayout> layouts, const GpuModelOptions& options) {
  config_ = config;
  ASSIGN_OR_RETURN(info_, gpu::QueryGpu());
  RETURN_IF_ERROR(CheckGpuSupport(config, layouts, store.manifest(), options.kv_format));
  RETURN_IF_ERROR(Plan(store, options));
  ASSIGN_OR_RETURN(slot_stream_, gpu::OwnedStream::Create());
  ASSIGN_OR_RETURN(slots_copied_, gpu::Event::Create());
  ASSIGN_OR_RETURN(slot_copier_, StreamCopier::Create(slot_stream_.get()));
  ASSIGN_OR_RETURN(stage_, GpuStage::Load(store, config_, layouts, plan_,
                                          {.layers = LayerRange::All(config_),
                                           .max_context = options.max_context,
                                           .page_count = page_count_,
                                           .prompt_tokens = plan_.chunk,
                                           .kv_format = options.kv_format,
                                           .experts = {.io = options.io,
                                                       .threads = options.threads,
                                                       .source = options.source,
                                                       .progress = options.progress}}));
  rows_.reserve(kFewTokens);
  if (options.host_kv != nullptr) {
    CHECK(options.host_kv->block_count() <= page_count_, "fewer pages than blocks");
    CHECK(options.host_kv->format() == options.kv_format, "pages and blocks of two formats");
    ASSIGN_OR_RETURN(handover_, GpuHandover::Create(config_, stage_->network(), *options.host_kv,
                                                    std::max(plan_.chunk, kFewTokens)));
    stage_->pass().set_handover(handover_.get());
    written_.reserve(page_count_);
  }
  if (options.host_experts != nullptr) {
    CHECK(handover_ != nullptr && options.source != nullptr, "answers with the CPU, not its prompts");
    ASSIGN_OR_RETURN(meeting_, HostMeeting::Create(config_, plan_, *handover_, *options.host_kv));
    stage_->pass().set_meeting(meeting_.get());
    ASSIGN_OR_RETURN(hybrid_, HybridStep::Create(*stage_, *meeting_, *handover_,
                                                 *options.host_experts));
  }
  return stage_->Synchronize();
}

// One at a time: prompts, of which each has its own pages to bring and to take.
void CudaModel::StepHandingOver(GpuSegment& segment) {
  GpuSegment* const alone[] = {&segment};
  segment.status = Begin(segment);
  if (segment.status.ok()) {
    if (segment.tokens.size() > kFewTokens) {
      segment.status = RunMany(segment);
    } else {
      StepFew(alone);
    }
  }
  // Also after an error: what was enqueued reads slots and writes blocks.
  const Status computed = stage_->Synchronize(), finished = handover_->Finish();
  stage_->experts().FinishFeeding();
  if (segment.status.ok()) segment.status = computed.ok() ? finished : computed;
}

// Whatever was copied to slots before this step is there for what it enqueues.
Status CudaModel::AwaitSlotCopies() {
  if (plan_.hot_slots == 0) return OkStatus();
  RETURN_IF_ERROR(slots_copied_.Record(slot_stream_.get()));
  return slots_copied_.Before(stage_->stream());
}

Status CudaModel::Begin(const GpuSegment& segment) {
  RETURN_IF_ERROR(AwaitSlotCopies());
  const auto count = static_cast<uint32_t>(segment.tokens.size());
  written_.clear();
  GpuHandover::AppendPages(segment.pages, segment.first, count, &written_);
  return handover_->Begin(segment.stale, written_, stage_->stream());
}

void CudaModel::Step(std::span<GpuSegment> batch) {
  few_.clear();
  uint32_t tokens = 0;
  for (GpuSegment& segment : batch) {
    const auto count = static_cast<uint32_t>(segment.tokens.size());
    CHECK(count > 0 && segment.logits <= count, "a segment without tokens");
    if (segment.cancelled != nullptr && segment.cancelled->load(std::memory_order_relaxed)) {
      segment.status = Cancelled("request cancelled");
    } else if (handover_ != nullptr && (hybrid_ == nullptr || count > kFewTokens)) {
      StepHandingOver(segment);
    } else if (count > kFewTokens) {
      segment.status = RunMany(segment);
    } else {
      if (tokens + count > kFewTokens) {
        StepFew(few_);
        few_.clear();
        tokens = 0;
      }
      few_.push_back(&segment);
      tokens += count;
    }
  }
  if (!few_.empty()) StepFew(few_);
}

void CudaModel::StepFew(std::span<GpuSegment* const> segments) {
  rows_.clear();
  bool logits = false;
  for (const GpuSegment* segment : segments) {
    for (uint32_t t = 0; t < segment->tokens.size(); ++t) {
      rows_.push_back({segment->tokens[t], segment->first + t, segment->pages});
    }
    logits |= segment->logits > 0;
  }
  stage_->pass().PrepareFew(rows_);
  Status status = RunFew(segments, static_cast<uint32_t>(rows_.size()), logits);
  // Also after an error: what was enqueued reads the inputs.
  const Status done = stage_->Synchronize();
  if (status.ok()) status = done;
  uint32_t row = 0;
  for (GpuSegment* segment : segments) {
    segment->status = status;
    const auto count = static_cast<uint32_t>(segment->tokens.size());
    for (uint32_t t = 0; t < count; ++t, ++row) {
      if (status.ok() && t + segment->logits >= count) {
        (*segment->sink)(segment->first + t, stage_->pass().logits(row));
      }
    }
  }
}

Status CudaModel::RunFew(std::span<GpuSegment* const> segments, uint32_t count, bool logits) {
  if (hybrid_ != nullptr) {
    RETURN_IF_ERROR(AwaitSlotCopies());
    return hybrid_->Run(segments, count, logits);
  }
  // Pages that are handed over differ from step to step, and are no part of a graph.
  return handover_ != nullptr ? stage_->EnqueueFew(count, logits) : stage_->RunFew(count, logits);
}

Status CudaModel::RunMany(const GpuSegment& segment) {
  const auto count = static_cast<uint32_t>(segment.tokens.size());
  CHECK(count <= plan_.chunk, "more tokens than max_chunk");
  RETURN_IF_ERROR(stage_->Use());
  GpuPass& pass = stage_->pass();
  pass.PrepareMany(segment.tokens, segment.first, segment.pages);
  const Status enqueued = pass.EnqueueMany(0, count, segment.cancelled);
  if (!enqueued.ok() || segment.logits == 0) {
    const Status done = stage_->Synchronize();
    return enqueued.ok() ? done : enqueued;
  }
  for (uint32_t row = count - segment.logits; row < count; row += pass.logit_rows()) {
    const uint32_t rows = std::min(pass.logit_rows(), count - row);
    const Status logits = pass.EnqueueLogits(row, rows);
    RETURN_IF_ERROR(stage_->Synchronize());
    RETURN_IF_ERROR(logits);
    for (uint32_t i = 0; i < rows; ++i) {
      (*segment.sink)(segment.first + row + i, pass.logits(i));
    }
  }
  return OkStatus();
}

Result<double> CudaModel::MeasureLink() {
  constexpr uint64_t kBytes = 128 * kMiB;
  constexpr int kRounds = 9;
  ASSIGN_OR_RETURN(const gpu::PinnedMemory from, gpu::PinnedMemory::Allocate(kBytes));
  ASSIGN_OR_RETURN(const gpu::DeviceMemory to, gpu::DeviceMemory::Allocate(kBytes, "measuring"));
  ASSIGN_OR_RETURN(const gpu::Event before, gpu::Event::Create());
  ASSIGN_OR_RETURN(const gpu::Event after, gpu::Event::Create());
  std::vector<float> ms;
  for (int i = 0; i < kRounds; ++i) {
    RETURN_IF_ERROR(before.Record(stage_->stream()));
    RETURN_IF_ERROR(gpu::Copy(to.data(), from.data(), kBytes, stage_->stream()));
    RETURN_IF_ERROR(after.Record(stage_->stream()));
    RETURN_IF_ERROR(after.Synchronize());
    ASSIGN_OR_RETURN(const float elapsed, gpu::Event::Elapsed(before, after));
    ms.push_back(elapsed);
  }
  std::ranges::nth_element(ms, ms.begin() + kRounds / 2);
  return static_cast<double>(kBytes) * 1e-6 / ms[kRounds / 2];
}

}  // namespace

Result<std::unique_ptr<GpuModel>> GpuModel::Open(const Store& store, const ModelConfig& config,
                                                 std::span<const ExpertLayout> layouts,
                                                 const GpuModelOptions& options) {
  auto model = std::make_unique<CudaModel>();
  RETURN_IF_ERROR(model->Load(store, config, layouts, options));
  return std::unique_ptr<GpuModel>(std::move(model));
}

Status FindGpu() { return gpu::QueryGpu().status(); }

Result<std::shared_ptr<void>> LockForGpu(std::span<std::byte> memory) {
  ASSIGN_OR_RETURN(gpu::PageLock lock, gpu::PageLock::Lock(memory));
  return std::shared_ptr<void>(std::make_shared<gpu::PageLock>(std::move(lock)));
}

}  // namespace moraine
