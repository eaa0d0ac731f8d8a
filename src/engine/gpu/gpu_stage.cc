#include "engine/gpu/gpu_stage.h"

#include <utility>

#include "memory/cuda/gpu_devices.h"

namespace moraine {

Result<std::unique_ptr<GpuStage>> GpuStage::Load(const Store& store, const ModelConfig& config,
                                                 std::span<const ExpertLayout> layouts,
                                                 const VramPlan& plan, const Options& options) {
  std::unique_ptr<GpuStage> stage(new GpuStage());
  stage->device_ = options.device;
  RETURN_IF_ERROR(stage->Use());
  ASSIGN_OR_RETURN(stage->stream_, gpu::OwnedStream::Create());
  ASSIGN_OR_RETURN(stage->network_,
                   GpuNetwork::Load(store, config, layouts, options.layers, options.max_context,
                                    options.page_count, options.sequences, options.kv_format));
  GpuExperts::Options experts = options.experts;
  experts.layers = options.layers;
  ASSIGN_OR_RETURN(stage->experts_, GpuExperts::Load(store, plan, experts));
  ASSIGN_OR_RETURN(stage->pass_,
                   GpuPass::Create(config, *stage->network_, *stage->experts_,
                                   {.max_tokens = plan.chunk,
                                    .prompt_tokens = options.prompt_tokens,
                                    .table_blocks = options.page_count},
                                   stage->stream_.get()));
  RETURN_IF_ERROR(stage->Synchronize());
  return stage;
}

GpuStage::~GpuStage() {
  if (stream_.get() != nullptr) static_cast<void>(stream_.Synchronize());
}

Status GpuStage::Use() const { return gpu::UseGpu(device_); }

Status GpuStage::Enqueue(uint32_t count, bool logits) {
  RETURN_IF_ERROR(pass_->EnqueueFew());
  return logits && network_->has_output() ? pass_->EnqueueLogits(0, count) : OkStatus();
}

Status GpuStage::EnqueueFew(uint32_t count, bool logits) {
  RETURN_IF_ERROR(Use());
  return Enqueue(count, logits);
}

Status GpuStage::RunFew(uint32_t count, bool logits) {
  RETURN_IF_ERROR(Use());
  FewGraph& entry = graphs_[count * 2 + (logits ? 1 : 0)];
  if (!entry.warm) {
    entry.warm = true;
    return Enqueue(count, logits);
  }
  if (entry.graph.empty()) {
    ASSIGN_OR_RETURN(entry.graph,
                     gpu::Graph::Capture(stream_.get(), [&] { return Enqueue(count, logits); }));
  }
  return entry.graph.Launch(stream_.get());
}

}  // namespace moraine
