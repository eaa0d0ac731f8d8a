#include "engine/gpu/gpu_pipeline.h"

#include <algorithm>
#include <string>
#include <utility>

namespace moraine {

Result<std::unique_ptr<GpuPipeline>> GpuPipeline::Create(
    std::vector<std::unique_ptr<GpuStage>> stages, uint32_t max_tokens, uint32_t columns) {
  std::unique_ptr<GpuPipeline> pipeline(new GpuPipeline());
  pipeline->stages_ = std::move(stages);
  for (size_t i = 0; i + 1 < pipeline->stages_.size(); ++i) {
    GpuStage &from = *pipeline->stages_[i], &to = *pipeline->stages_[i + 1];
    auto link = GpuLink::Create(from, to, std::max(max_tokens, kFewTokens), columns);
    if (!link.ok()) {
      return link.status().WithContext("from GPU " + std::to_string(from.device()) + " to GPU " +
                                       std::to_string(to.device()));
    }
    pipeline->links_.push_back(std::move(*link));
  }
  return pipeline;
}

void GpuPipeline::PrepareFew(std::span<const GpuPass::Row> rows,
                             std::span<const gpu::DeltaSegment> segments) {
  for (const auto& stage : stages_) stage->pass().PrepareFew(rows, segments);
}

void GpuPipeline::PrepareMany(std::span<const int32_t> tokens, uint32_t first,
                              const uint32_t* blocks, RecurrentSlots::Use state) {
  for (const auto& stage : stages_) stage->pass().PrepareMany(tokens, first, blocks, state);
}

Status GpuPipeline::RunFew(uint32_t count, bool logits) {
  for (size_t i = 0; i < stages_.size(); ++i) {
    if (i > 0) RETURN_IF_ERROR(links_[i - 1]->BringToIdle(count));
    RETURN_IF_ERROR(stages_[i]->RunFew(count, logits));
  }
  return OkStatus();
}

Status GpuPipeline::EnqueueMany(uint32_t begin, uint32_t count,
                                const std::atomic<bool>* cancelled) {
  for (size_t i = 0; i < stages_.size(); ++i) {
    if (i > 0) RETURN_IF_ERROR(links_[i - 1]->Bring(count));
    RETURN_IF_ERROR(stages_[i]->Use());
    RETURN_IF_ERROR(stages_[i]->pass().EnqueueMany(begin, count, cancelled));
  }
  return OkStatus();
}

Status GpuPipeline::Synchronize() const {
  Status first;
  for (const auto& stage : stages_) {
    const Status done = stage->Synchronize();
    if (first.ok()) first = done;
  }
  return first;
}

bool GpuPipeline::reaches_peers() const {
  return std::ranges::all_of(links_, [](const auto& link) { return link->reaches_peer(); });
}

}  // namespace moraine
