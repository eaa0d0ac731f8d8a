// GpuPipeline: the stages of a model, one for each GPU, and the links between them. One stage is a pipeline, too,
// and costs nothing more.
//
// Few tokens go through the stages in turn: a graph a stage, 8 KB of hidden states a token between them. A prompt
// goes in pieces: while a stage computes one, the stage before computes the next (gpu_link.h). What a piece
// computes is what a chunk of its length computes on one GPU, to the bit.
//
// Threads: owned by one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/gpu/gpu_link.h"
#include "engine/gpu/gpu_stage.h"

namespace moraine {

class GpuPipeline {
 public:
  // Stages in the order of layers, at least one. max_tokens: of a pass; columns: of the residual stream.
  static Result<std::unique_ptr<GpuPipeline>> Create(std::vector<std::unique_ptr<GpuStage>> stages,
                                                     uint32_t max_tokens, uint32_t columns);

  // As GpuPass has them. Nothing may be left to compute when tokens are prepared, nor when few are run.
  void PrepareFew(std::span<const GpuPass::Row> rows,
                  std::span<const gpu::DeltaSegment> segments = {});
  void PrepareMany(std::span<const int32_t> tokens, uint32_t first, const uint32_t* blocks,
                   RecurrentSlots::Use state = {});
  Status RunFew(uint32_t count, bool logits);
  // A piece: of the prepared tokens those from `begin` on. Pieces are enqueued one behind the other.
  Status EnqueueMany(uint32_t begin, uint32_t count, const std::atomic<bool>* cancelled);
  // Waits for all stages. The first error.
  Status Synchronize() const;

  GpuStage& stage(size_t index) { return *stages_[index]; }
  GpuStage& front() { return *stages_.front(); }
  GpuStage& back() { return *stages_.back(); }  // has the logits
  bool alone() const { return stages_.size() == 1; }
  bool reaches_peers() const;

 private:
  GpuPipeline() = default;

  std::vector<std::unique_ptr<GpuStage>> stages_;
  std::vector<std::unique_ptr<GpuLink>> links_;  // [i] from stage i to i + 1
};

}  // namespace moraine
