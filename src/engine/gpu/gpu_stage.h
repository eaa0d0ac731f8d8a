// GpuStage: what one GPU has of a model: a range of its layers, with weights, cache, experts and scratch, and the
// stream that its passes run on. A model on one GPU is one stage.
//
// Few tokens are one recorded graph: of the same number of tokens it differs in nothing but what lies in places
// that stay (gpu_pass.h).
//
// Threads: owned by one thread. Calls make the stage's GPU the thread's current one; whoever enqueues on
// stream() by other ways calls Use first. Nothing is allocated after Load, but for graphs when they are first
// needed.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "compute/encoding.h"
#include "compute/kv_format.h"
#include "engine/gpu/gpu_experts.h"
#include "engine/gpu/gpu_network.h"
#include "engine/gpu/gpu_pass.h"
#include "engine/gpu/vram_needs.h"
#include "engine/gpu/vram_plan.h"
#include "memory/cuda/gpu_runtime.h"
#include "model/config.h"
#include "store/store.h"

namespace moraine {

class GpuStage {
 public:
  struct Options {
    uint32_t device = 0;
    LayerRange layers;
    uint32_t max_context = 0, page_count = 0;
    uint32_t sequences = 1;      // that recurrent state is kept of
    uint32_t prompt_tokens = 0;  // that are prepared together (gpu_pass.h)
    KvFormat kv_format = KvFormat::kBf16;
    GpuExperts::Options experts;  // but for the layers
  };
  // Store and config must outlive it. Errors: those of its parts.
  static Result<std::unique_ptr<GpuStage>> Load(const Store& store, const ModelConfig& config,
                                                std::span<const ExpertLayout> layouts,
                                                const VramPlan& plan, const Options& options);
  ~GpuStage();  // waits for what was enqueued

  Status Use() const;
  // The prepared few tokens through the stage's layers, with logits if it has the output: kernel by kernel, or
  // from the second time on as a graph.
  Status EnqueueFew(uint32_t count, bool logits);
  Status RunFew(uint32_t count, bool logits);
  Status Synchronize() const { return stream_.Synchronize(); }

  uint32_t device() const { return device_; }
  gpu::Stream stream() const { return stream_.get(); }
  GpuNetwork& network() { return *network_; }
  GpuExperts& experts() { return *experts_; }
  GpuPass& pass() { return *pass_; }

 private:
  // Recorded on its second use: the first loads the kernels' code, which may not happen in a recording.
  struct FewGraph {
    bool warm = false;
    gpu::Graph graph;
  };

  GpuStage() = default;
  Status Enqueue(uint32_t count, bool logits);  // on the current GPU

  uint32_t device_ = 0;
  gpu::OwnedStream stream_;
  std::unique_ptr<GpuNetwork> network_;
  std::unique_ptr<GpuExperts> experts_;
  std::unique_ptr<GpuPass> pass_;
  std::array<FewGraph, (kFewTokens + 1) * 2> graphs_;  // by number of tokens, with logits or without
};

}  // namespace moraine
