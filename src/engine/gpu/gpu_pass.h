// GpuPass: enqueues the kernels of one forward pass, in the two ways of gpu_model.h, over scratch that is
// laid out once.
//
// The residual stream is float32 in both. Few tokens: seven launches a layer, each product computing the
// norm before it for itself (compute/cuda/gemv.h). Many: an expert's tokens are gathered, multiplied and
// combined by the grouped GEMM; what the experts add to the stream is added by the next norm.
//
// Threads: owned by one thread. Nothing is allocated after Create, nothing waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "compute/cuda/gemv.h"
#include "compute/cuda/grouped_gemm.h"
#include "engine/gpu/gpu_experts.h"
#include "engine/gpu/gpu_handover.h"
#include "engine/gpu/gpu_network.h"
#include "engine/gpu/pass_layout.h"
#include "memory/cuda/gpu_runtime.h"
#include "model/config.h"

namespace moraine {

class GpuPass {
 public:
  // max_tokens: of one pass; table_blocks: the most pages of a sequence.
  static Result<std::unique_ptr<GpuPass>> Create(const ModelConfig& config,
                                                 const GpuNetwork& network, GpuExperts& experts,
                                                 uint32_t max_tokens, uint32_t table_blocks,
                                                 gpu::Stream stream);
  ~GpuPass();

  // Tokens of one sequence behind each other, or each of its own. What a pass reads is kept in one place:
  // prepare the next one when the stream has been synchronised.
  struct Row {
    int32_t token = 0;
    uint32_t position = 0;
    const uint32_t* blocks = nullptr;  // pages of the token's sequence, up to its position
  };
  // Hands keys, values and routing over from now on; null: nothing. Not owned.
  void set_handover(GpuHandover* handover) { handover_ = handover; }
  void PrepareFew(std::span<const Row> rows);
  void PrepareMany(std::span<const int32_t> tokens, uint32_t first, const uint32_t* blocks);
  Status EnqueueFew();
  // kCancelled at the first layer that is not wanted any more.
  Status EnqueueMany(const std::atomic<bool>* cancelled);
  // Of rows begin .. begin + count - 1 of the pass, at most logit_rows(), to the host.
  Status EnqueueLogits(uint32_t begin, uint32_t count);
  // What EnqueueLogits copied, once the stream has been synchronised.
  std::span<const float> logits(uint32_t row) const;
  uint32_t logit_rows() const { return logit_rows_; }

 private:
  GpuPass(const ModelConfig& config, const GpuNetwork& network, GpuExperts& experts,
          gpu::GroupedGemm gemm, gpu::Stream stream);
  gpu::GemvInput Input(const float* x, uint32_t stride, const float* norm) const;
  Status RunProjection(const GpuProjection& projection, const gpu::GemvInput& input, float* y);
  Status RunProjection(const GpuProjection& projection, const uint16_t* operand, uint16_t* y);
  gpu::HeadRows Heads(const GpuLayer& layer, const gpu::PagedKv& kv) const;
  gpu::PagedKv Kv(const GpuLayer& layer, uint32_t table_stride) const;
  void WriteTable(uint32_t row, const uint32_t* blocks, uint32_t last_position);
  uint32_t* host_tables() const { return inputs_.as<uint32_t>() + kFewTokens; }
  int32_t* host_tokens() const;
  // Block tables and tokens of the prepared pass to the device, embedded into the residual stream.
  Status BringTokens(uint32_t tables);
  Status Normalize(const float* weight, uint16_t* operand, uint16_t* natural);
  Status Route(uint32_t index, const GpuLayer& layer);
  Status HandOverKeysAndValues(uint32_t index);
  Status FewAttention(const GpuLayer& layer);
  Status FewExperts(uint32_t index, const GpuLayer& layer);
  Status FewDense(const GpuLayer& layer);
  Status ManyAttention(const GpuLayer& layer);
  Status ManyExperts(uint32_t index, const GpuLayer& layer);
  Status ManyDense(const GpuLayer& layer);

  const ModelConfig& config_;
  const GpuNetwork& network_;
  GpuExperts& experts_;
  const gpu::GroupedGemm gemm_;
  const gpu::Stream stream_;
  GpuHandover* handover_ = nullptr;
  uint32_t table_blocks_ = 0;
  uint32_t token_count_ = 0, first_ = 0;
  bool pending_delta_ = false;  // the experts' sum is not in the residual stream yet
  uint32_t logit_rows_ = 0;
  gpu::DeviceMemory memory_;
  gpu::PinnedMemory inputs_, logits_;
  std::unique_ptr<PassScratch> scratch_;
};

}  // namespace moraine
