#include "engine/gpu/hybrid_step.h"

#include <fmt/format.h>

#include <utility>

namespace moraine {
namespace {

// Between questions whether the device has failed: 2048 pauses are some 100 us, so that a question,
// which takes about one, does not matter.
constexpr uint32_t kLooksBetweenQuestions = 2048;

// The other thread of this core may be computing experts.
void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

Status TimedOut() {
  return Internal(fmt::format("the GPU has waited {} s for the host in the middle of a step",
                              gpu::kHostWaitMs / 1000));
}

}  // namespace

Result<std::unique_ptr<HybridStep>> HybridStep::Create(GpuStage& stage, HostMeeting& meeting,
                                                       GpuHandover& handover,
                                                       HostExperts& experts) {
  std::unique_ptr<HybridStep> step(new HybridStep(stage, meeting, handover, experts));
  ASSIGN_OR_RETURN(step->end_, gpu::Event::Create());
  return step;
}

Status HybridStep::Run(std::span<GpuSegment* const> segments, uint32_t count, bool logits) {
  RETURN_IF_ERROR(stage_.Use());
  if (!std::exchange(pool_known_, true)) meeting_.FindPool();
  stale_.clear();
  written_.clear();
  for (const GpuSegment* segment : segments) {
    stale_.insert(stale_.end(), segment->stale.begin(), segment->stale.end());
    GpuHandover::AppendPages(segment->pages, segment->first,
                             static_cast<uint32_t>(segment->tokens.size()), &written_);
  }
  RETURN_IF_ERROR(handover_.Begin(stale_, written_, stage_.stream()));
  gpu::Graph& graph = graphs_[count * 2 + (logits ? 1 : 0)];
  if (graph.empty()) RETURN_IF_ERROR(Record(&graph, count, logits));
  RETURN_IF_ERROR(RunGraph(graph, count));
  return meeting_.rows_to_pool() ? OkStatus() : handover_.TakeWritten();
}

Status HybridStep::Record(gpu::Graph* graph, uint32_t count, bool logits) {
  meeting_.Abandon();
  const Status enqueued = stage_.EnqueueFew(count, logits), done = stage_.Synchronize();
  RETURN_IF_ERROR(enqueued);
  RETURN_IF_ERROR(done);
  ASSIGN_OR_RETURN(*graph, gpu::Graph::Capture(stage_.stream(), [&] {
                     return stage_.EnqueueFew(count, logits);
                   }));
  return OkStatus();
}

Status HybridStep::RunGraph(const gpu::Graph& graph, uint32_t count) {
  meeting_.Begin();
  RETURN_IF_ERROR(graph.Launch(stage_.stream()));
  Status status = end_.Record(stage_.stream());
  if (status.ok()) status = Serve(count);
  if (!status.ok()) meeting_.Abandon();
  const Status done = stage_.Synchronize();
  ReleaseLayer();
  if (!status.ok()) return status;
  RETURN_IF_ERROR(done);
  return meeting_.timed_out() ? TimedOut() : OkStatus();
}

Status HybridStep::Serve(uint32_t count) {
  for (uint32_t turn = 1; turn <= meeting_.layers().size(); ++turn) {
    RETURN_IF_ERROR(AwaitRouted(turn));
    RETURN_IF_ERROR(Meet(turn, count));
  }
  return OkStatus();
}

Status HybridStep::AwaitRouted(uint32_t turn) {
  for (uint32_t looks = 1; !meeting_.Routed(turn); ++looks) {
    Pause();
    if (looks % kLooksBetweenQuestions != 0) continue;
    ASSIGN_OR_RETURN(const bool over, end_.Reached());
    if (over && !meeting_.Routed(turn)) {
      return Internal(fmt::format("the GPU has finished a step before layer {}",
                                  meeting_.layers()[turn - 1]));
    }
  }
  return meeting_.timed_out() ? TimedOut() : OkStatus();
}

Status HybridStep::Meet(uint32_t turn, uint32_t count) {
  ReleaseLayer();  // its kernels ran before this turn's
  const RoutedLayer layer = meeting_.routed(turn, count);
  placed_layer_ = layer.layer;
  RETURN_IF_ERROR(experts_.Place(layer, meeting_.host_records()).status());
  const bool sum_follows = meeting_.SumFollows(layer);
  meeting_.TellPlaced(turn, sum_follows);
  ASSIGN_OR_RETURN(const bool summed, experts_.Compute(layer, meeting_.sum()));
  if (summed != sum_follows) {
    return Internal(fmt::format("layer {}: experts without an address {}, a sum of them {}",
                                layer.layer, sum_follows, summed));
  }
  if (summed) meeting_.TellComputed(turn);
  return OkStatus();
}

void HybridStep::ReleaseLayer() {
  if (placed_layer_) experts_.Release(*placed_layer_);
  placed_layer_.reset();
}

}  // namespace moraine
