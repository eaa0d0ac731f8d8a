// GpuModel of a build with CUDA: budget, loading, and the order of a pass.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/log.h"
#include "engine/gpu/gpu_handover.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/gpu_pipeline.h"
#include "engine/gpu/gpu_speed.h"
#include "engine/gpu/gpu_support.h"
#include "engine/gpu/host_meeting.h"
#include "engine/gpu/hybrid_step.h"
#include "engine/gpu/recurrent_slots.h"
#include "engine/gpu/stage_devices.h"
#include "engine/gpu/stage_plan.h"
#include "memory/cuda/gpu_devices.h"
#include "memory/cuda/gpu_runtime.h"
#include "memory/cuda/link_pacer.h"

namespace moraine {
namespace {

static_assert(kGpuPagePositions == gpu::kKvPagePositions);

class CudaModel final : public GpuModel {
 public:
  Status Load(const Store& store, const ModelConfig& config, std::span<const ExpertLayout> layouts,
              const GpuModelOptions& options);
  ~CudaModel() override {
    if (pipeline_ != nullptr) static_cast<void>(pipeline_->Synchronize());
    if (slot_stream_.get() != nullptr) static_cast<void>(slot_stream_.Synchronize());
  }
  void Step(std::span<GpuSegment> batch) override;
  uint32_t max_chunk() const override { return prompt_tokens_; }
  uint32_t page_count() const override { return page_count_; }
  const VramPlan& plan() const override { return plan_; }
  std::span<const StagePlan> stages() const override { return stage_plans_; }
  const std::string& gpu_name() const override { return devices_.name; }
  const uint32_t* routed(uint32_t layer) const override { return handover_->routed(layer); }
  VramSlots vram_slots() const override { return stage_->experts().hot_slots(); }
  DeviceCopier& slot_copier() override { return *slot_copier_; }
  Result<double> MeasureLink() override;
  Result<PeerSpeed> MeasurePeers() override;

 private:
  Status Plan(const Store& store, const GpuModelOptions& options);
  Status LoadStages(const Store& store, std::span<const ExpertLayout> layouts,
                    const GpuModelOptions& options);
  void StepHandingOver(GpuSegment& segment);
  Status Begin(const GpuSegment& segment);
  Status AwaitSlotCopies();
  void StepFew(std::span<GpuSegment* const> segments);
  Status RunFew(std::span<GpuSegment* const> segments, uint32_t count, bool logits);
  Status RunMany(const GpuSegment& segment);
  std::shared_ptr<LinkSchedule> NewLink() const {
    if (link_limit_bytes_per_s_ <= 0) return nullptr;
    return std::make_shared<LinkSchedule>(link_limit_bytes_per_s_);
  }
  Status RunPieces(const GpuSegment& segment);
  void CommitState(const GpuSegment& segment, uint32_t count);
  Status GiveLogits(const GpuSegment& segment, uint32_t begin, uint32_t count);

  ModelConfig config_;
  StageDevices devices_;
  std::vector<StagePlan> stage_plans_;
  VramPlan plan_;                // of all stages
  uint32_t prompt_tokens_ = 0;   // of a step, in pieces of plan_.chunk
  uint32_t page_count_ = 0;
  double link_limit_bytes_per_s_ = 0;   // above 0: emulated links, one a GPU
  std::shared_ptr<LinkSchedule> link_;  // of the first; null: none
  std::unique_ptr<gpu::LinkPacer> slot_pacer_;  // of slot_stream_; null: none
  gpu::OwnedStream slot_stream_;
  std::unique_ptr<GpuPipeline> pipeline_;
  GpuStage* stage_ = nullptr;  // its first one, the only one of a model for prompts only
  std::unique_ptr<GpuHandover> handover_;  // of a model for prompts only; copies from the stage's cache
  std::unique_ptr<HostMeeting> meeting_;   // of a model whose answers the CPU computes, too
  std::unique_ptr<HybridStep> hybrid_;
  std::optional<StreamCopier> slot_copier_;
  gpu::Event slots_copied_;
  std::vector<GpuPass::Row> rows_;
  std::optional<RecurrentSlots> recurrent_;  // of a model with such state
  std::vector<gpu::DeltaSegment> states_;    // of few
  std::vector<GpuSegment*> few_;
  std::vector<uint32_t> written_;  // pages
};

Status CudaModel::Plan(const Store& store, const GpuModelOptions& options) {
  page_count_ = (options.max_context + kGpuPagePositions - 1) / kGpuPagePositions;
  const std::vector<uint32_t> first = {0};
  ASSIGN_OR_RETURN(devices_, FindStageDevices(options.gpus.empty() ? first : options.gpus,
                                              options.vram_budget_bytes));
  const StageNeeds needs = CountStageNeeds(store.manifest(), config_,
                                           {.max_context = options.max_context,
                                            .prefill_chunk = options.prefill_chunk,
                                            .kv_format = options.kv_format,
                                            .sequences = options.max_sequences,
                                            .hot_experts = options.host_experts != nullptr});
  ASSIGN_OR_RETURN(stage_plans_, PlanStages(needs, devices_.devices));
  plan_ = SumOf(stage_plans_);
  prompt_tokens_ = PromptTokens(static_cast<uint32_t>(stage_plans_.size()), plan_.chunk,
                                options.max_context);
  return OkStatus();
}

Status CudaModel::Load(const Store& store, const ModelConfig& config,
                       std::span<const ExpertLayout> layouts, const GpuModelOptions& options) {
  config_ = config;
  RETURN_IF_ERROR(gpu::CountGpus().status());
  if (options.gpus.size() > 1 && options.host_kv != nullptr) {
    return InvalidArgument(fmt::format("prompts on a GPU for answers on the CPU: expected one GPU, found {}",
                                       options.gpus.size()));
  }
  RETURN_IF_ERROR(CheckGpuSupport(config, layouts, store.manifest(), options.kv_format));
  if (options.gpus.size() > 1 && HasRecurrentState(config_)) {
    return Unsupported(fmt::format("{}: linear attention on {} GPUs: expected one", config_.model_type,
                                   options.gpus.size()));
  }
  RETURN_IF_ERROR(Plan(store, options));
  ASSIGN_OR_RETURN(slot_stream_, gpu::OwnedStream::Create());
  ASSIGN_OR_RETURN(slots_copied_, gpu::Event::Create());
  link_limit_bytes_per_s_ = options.link_limit_bytes_per_s;
  link_ = NewLink();
  if (link_) slot_pacer_ = std::make_unique<gpu::LinkPacer>(link_, slot_stream_.get());
  ASSIGN_OR_RETURN(slot_copier_, StreamCopier::Create(slot_stream_.get(), slot_pacer_.get()));
  RETURN_IF_ERROR(LoadStages(store, layouts, options));
  rows_.reserve(kFewTokens);
  states_.reserve(kFewTokens);
  if (HasRecurrentState(config_)) recurrent_.emplace(options.max_sequences);
  if (options.host_kv != nullptr) {
    if (recurrent_) return Unsupported("prompts alone of a model with recurrent state");
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
  return pipeline_->Synchronize();
}

Status CudaModel::LoadStages(const Store& store, std::span<const ExpertLayout> layouts,
                             const GpuModelOptions& options) {
  std::vector<std::unique_ptr<GpuStage>> stages;
  const uint64_t total = plan_.anchored_bytes + (options.source == nullptr ? plan_.streamed_bytes : 0);
  uint64_t before = 0;  // bytes of the stages that are loaded
  for (size_t i = 0; i < stage_plans_.size(); ++i) {
    const StagePlan& plan = stage_plans_[i];
    const auto progress = [&](uint64_t done, uint64_t) {
      if (options.progress) options.progress(before + done, total);
    };
    auto stage = GpuStage::Load(store, config_, layouts, plan.vram,
                                {.device = options.gpus.empty() ? 0 : options.gpus[i],
                                 .layers = plan.layers,
                                 .max_context = options.max_context,
                                 .page_count = page_count_,
                                 .sequences = options.max_sequences,
                                 .prompt_tokens = prompt_tokens_,
                                 .kv_format = options.kv_format,
                                 .experts = {.io = options.io,
                                             .threads = options.threads,
                                             .source = options.source,
                                             .link = i == 0 ? link_ : NewLink(),
                                             .progress = progress}});
    if (!stage.ok()) return stage.status().WithContext(devices_.devices[i].name);
    stages.push_back(std::move(*stage));
    before += plan.vram.anchored_bytes + plan.vram.streamed_bytes;
    if (stage_plans_.size() > 1) {
      LOG_INFO("{}, layers {} to {}: {}", devices_.devices[i].name, plan.layers.begin,
               plan.layers.end - 1, plan.vram.ToText());
    }
  }
  ASSIGN_OR_RETURN(pipeline_, GpuPipeline::Create(std::move(stages), plan_.chunk, config_.hidden));
  stage_ = &pipeline_->front();
  if (!pipeline_->reaches_peers()) LOG_WARN("the GPUs do not reach each other: copies go through the host");
  return OkStatus();
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
  if (link_ && plan_.streamed_layers > 0 && !stage_->experts().fed()) {
    for (GpuSegment* segment : segments) {
      segment->status = Unsupported(
          "a limited link: pieces of up to 8 tokens read experts in place, which cannot be slowed");
    }
    return;
  }
  rows_.clear();
  states_.clear();
  bool logits = false;
  for (const GpuSegment* segment : segments) {
    if (recurrent_) {
      const RecurrentSlots::Use use = recurrent_->Begin(segment->sequence, segment->first);
      states_.push_back({.first_row = static_cast<uint32_t>(rows_.size()),
                         .row_count = static_cast<uint32_t>(segment->tokens.size()),
                         .from = use.from,
                         .to = use.to});
    }
    for (uint32_t t = 0; t < segment->tokens.size(); ++t) {
      rows_.push_back({segment->tokens[t], segment->first + t, segment->pages});
    }
    logits |= segment->logits > 0;
  }
  pipeline_->PrepareFew(rows_, states_);
  Status status = RunFew(segments, static_cast<uint32_t>(rows_.size()), logits);
  // Also after an error: what was enqueued reads the inputs.
  const Status done = pipeline_->Synchronize();
  if (status.ok()) status = done;
  uint32_t row = 0;
  for (GpuSegment* segment : segments) {
    segment->status = status;
    const auto count = static_cast<uint32_t>(segment->tokens.size());
    if (status.ok()) CommitState(*segment, count);
    for (uint32_t t = 0; t < count; ++t, ++row) {
      if (status.ok() && t + segment->logits >= count) {
        (*segment->sink)(segment->first + t, pipeline_->back().pass().logits(row));
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
  return handover_ != nullptr ? stage_->EnqueueFew(count, logits)
                              : pipeline_->RunFew(count, logits);
}

Status CudaModel::RunMany(const GpuSegment& segment) {
  CHECK(segment.tokens.size() <= prompt_tokens_, "more tokens than max_chunk");
  RecurrentSlots::Use use;
  if (recurrent_) use = recurrent_->Begin(segment.sequence, segment.first);
  pipeline_->PrepareMany(segment.tokens, segment.first, segment.pages, use);
  const Status status = RunPieces(segment);
  const Status done = pipeline_->Synchronize();
  if (status.ok() && done.ok()) CommitState(segment, static_cast<uint32_t>(segment.tokens.size()));
  return status.ok() ? done : status;
}

void CudaModel::CommitState(const GpuSegment& segment, uint32_t count) {
  if (recurrent_) recurrent_->Commit(segment.sequence, segment.first + count);
}

Status CudaModel::RunPieces(const GpuSegment& segment) {
  const auto tokens = static_cast<uint32_t>(segment.tokens.size());
  for (uint32_t begin = 0, count = 0; begin < tokens; begin += count) {
    count = std::min(plan_.chunk, tokens - begin);
    if (begin > 0 && count <= kFewTokens) {
      // As the last chunk of a prompt goes on one GPU.
      GpuSegment rest = {.tokens = segment.tokens.subspan(begin),
                         .first = segment.first + begin,
                         .pages = segment.pages,
                         .logits = std::min(segment.logits, count),
                         .sink = segment.sink};
      GpuSegment* const alone[] = {&rest};
      RETURN_IF_ERROR(pipeline_->Synchronize());
      StepFew(alone);
      return rest.status;
    }
    RETURN_IF_ERROR(pipeline_->EnqueueMany(begin, count, segment.cancelled));
    RETURN_IF_ERROR(GiveLogits(segment, begin, count));
  }
  return OkStatus();
}

// Those that are wanted of a piece that has been enqueued. Waits for them, if there are any.
Status CudaModel::GiveLogits(const GpuSegment& segment, uint32_t begin, uint32_t count) {
  const uint32_t first = static_cast<uint32_t>(segment.tokens.size()) - segment.logits;
  GpuStage& stage = pipeline_->back();
  GpuPass& pass = stage.pass();
  for (uint32_t row = first > begin ? first - begin : 0; row < count; row += pass.logit_rows()) {
    const uint32_t rows = std::min(pass.logit_rows(), count - row);
    RETURN_IF_ERROR(stage.Use());
    const Status logits = pass.EnqueueLogits(row, rows);
    RETURN_IF_ERROR(stage.Synchronize());
    RETURN_IF_ERROR(logits);
    for (uint32_t i = 0; i < rows; ++i) {
      (*segment.sink)(segment.first + begin + row + i, pass.logits(i));
    }
  }
  return OkStatus();
}

Result<double> CudaModel::MeasureLink() {
  RETURN_IF_ERROR(stage_->Use());
  ASSIGN_OR_RETURN(const double bytes_per_s, MeasureLinkRate());
  const bool emulated = link_limit_bytes_per_s_ > 0;
  return (emulated ? std::min(bytes_per_s, link_limit_bytes_per_s_) : bytes_per_s) * 1e-9;
}

Result<PeerSpeed> CudaModel::MeasurePeers() {
  if (pipeline_->alone()) return PeerSpeed{};
  return MeasurePeerCopies(pipeline_->stage(0).device(), pipeline_->stage(1).device());
}

}  // namespace

Result<std::unique_ptr<GpuModel>> GpuModel::Open(const Store& store, const ModelConfig& config,
                                                 std::span<const ExpertLayout> layouts,
                                                 const GpuModelOptions& options) {
  auto model = std::make_unique<CudaModel>();
  RETURN_IF_ERROR(model->Load(store, config, layouts, options));
  return std::unique_ptr<GpuModel>(std::move(model));
}

Status FindGpu() { return gpu::CountGpus().status(); }
Result<uint32_t> CountGpus() { return gpu::CountGpus(); }

Result<std::shared_ptr<void>> LockForGpu(std::span<std::byte> memory) {
  ASSIGN_OR_RETURN(gpu::PageLock lock, gpu::PageLock::Lock(memory));
  return std::shared_ptr<void>(std::make_shared<gpu::PageLock>(std::move(lock)));
}

}  // namespace moraine
