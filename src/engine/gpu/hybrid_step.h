// HybridStep: a step of few tokens, up to 8 of one or several sequences, whose layers GPU and CPU
// compute together (host_experts.h), and whose keys and values go back to the host's pool as they
// are made.
//
// The whole step is one recorded graph, in which kernels wait for the host's word (host_meeting.h);
// while it runs, the host asks its HostExperts layer by layer:
//
//   wait for routed -> Release of the layer before -> Place -> tell -> Compute -> tell
//
// What a layer costs beyond its products: one kernel that writes choice, weights and residual to
// the host and reads the addresses, and one that adds the host's sum, three crossings of the link
// and the host's own decision. docs/gpu.md has what that comes to.
//
// The first step of each number of tokens runs twice: once abandoned from the start, because a
// kernel's code is loaded when it is first launched, which must not happen while another waits for
// the host; then as recorded.
//
// A step that fails (the host's experts, the device) is abandoned: the GPU runs to its end without
// experts, nothing stays enqueued, and the model can be used on.
//
// Threads: owned by one thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/gpu/gpu_handover.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/gpu_stage.h"
#include "engine/gpu/host_experts.h"
#include "engine/gpu/host_meeting.h"
#include "memory/cuda/gpu_runtime.h"

namespace moraine {

class HybridStep {
 public:
  // All must outlive it; the stage is the whole model, its pass has the meeting.
  static Result<std::unique_ptr<HybridStep>> Create(GpuStage& stage, HostMeeting& meeting,
                                                    GpuHandover& handover, HostExperts& experts);

  // Computes what the stage's pass has been prepared for, `count` tokens of these segments, and
  // waits for the end.
  Status Run(std::span<GpuSegment* const> segments, uint32_t count, bool logits);

 private:
  HybridStep(GpuStage& stage, HostMeeting& meeting, GpuHandover& handover, HostExperts& experts)
      : stage_(stage), meeting_(meeting), handover_(handover), experts_(experts) {}

  Status Record(gpu::Graph* graph, uint32_t count, bool logits);
  Status RunGraph(const gpu::Graph& graph, uint32_t count);
  Status Serve(uint32_t count);
  Status AwaitRouted(uint32_t turn);
  Status Meet(uint32_t turn, uint32_t count);
  void ReleaseLayer();

  GpuStage& stage_;
  HostMeeting& meeting_;
  GpuHandover& handover_;
  HostExperts& experts_;
  gpu::Event end_;
  bool pool_known_ = false;
  std::array<gpu::Graph, (kFewTokens + 1) * 2> graphs_;  // by number of tokens, with logits or not
  std::optional<uint32_t> placed_layer_;                 // not released yet
  std::vector<uint32_t> stale_, written_;                // pages
};

}  // namespace moraine
