// GpuPass: enqueues the kernels of one forward pass, in the two ways of gpu_model.h, over scratch that is
// laid out once. The pass of a range of layers goes from residual stream to residual stream: the first
// range begins with tokens, the last ends with logits, and whoever has several brings hidden() over.
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
#include "engine/gpu/host_meeting.h"
#include "engine/gpu/pass_layout.h"
#include "engine/gpu/recurrent_slots.h"
#include "memory/cuda/gpu_runtime.h"
#include "model/config.h"

namespace moraine {

class GpuPass {
 public:
  struct Limits {
    uint32_t max_tokens = 0;     // of one pass
    uint32_t prompt_tokens = 0;  // that are prepared together, for one pass behind the other
    uint32_t table_blocks = 0;   // pages of a sequence
  };
  static Result<std::unique_ptr<GpuPass>> Create(const ModelConfig& config,
                                                 const GpuNetwork& network, GpuExperts& experts,
                                                 const Limits& limits, gpu::Stream stream);
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
  // Few tokens meet the host in the layers that it says, and hand rows over to its pool; null: they do not. Not
  // owned.
  void set_meeting(HostMeeting* meeting) { meeting_ = meeting; }
  // segments: of the rows, where the model has recurrent state; at most one a row.
  void PrepareFew(std::span<const Row> rows, std::span<const gpu::DeltaSegment> segments = {});
  void PrepareMany(std::span<const int32_t> tokens, uint32_t first, const uint32_t* blocks,
                   RecurrentSlots::Use state = {});
  Status EnqueueFew();
  // Of the prepared tokens those from `begin` on, at most max_tokens. kCancelled at the first layer that is
  // not wanted any more.
  Status EnqueueMany(uint32_t begin, uint32_t count, const std::atomic<bool>* cancelled);
  // The residual stream on the device, tokens x hidden. To be written before a pass is enqueued where the
  // range does not begin with the embedding; complete when it has run where the range does not end with
  // the output.
  float* hidden() const { return scratch_->hidden; }
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
  gpu::HeadRows Heads(const GpuGqa& gqa, const gpu::PagedKv& kv) const;
  gpu::PagedKv Kv(const GpuGqa& gqa, uint32_t table_stride) const;
  Result<gpu::PagedKv> InBf16(const gpu::PagedKv& kv);
  void WriteTable(uint32_t row, const uint32_t* blocks, uint32_t last_position);
  uint32_t* host_tables() const;
  int32_t* host_tokens() const;
  gpu::DeltaSegment* host_segments() const;
  Status SharedGates(const GpuLayer& layer);
  // Block tables of the prepared pass to the device, and its tokens from `begin` on, embedded into the residual
  // stream.
  Status BringTokens(uint32_t tables, uint32_t begin);
  Status Normalize(const float* weight, uint16_t* operand, uint16_t* natural);
  Status Route(uint32_t index, const GpuLayer& layer);
  Status HandOverKeysAndValues(uint32_t index);
  Status FewMixer(const GpuLayer& layer);
  Status ManyMixer(const GpuLayer& layer);
  Status FewAttention(const GpuLayer& layer, const GpuGqa& gqa);
  template <typename Value>
  Status ChangeProjections(const GpuGqa& gqa, Value* rows);
  // In gpu_delta_pass.cc.
  Status RunDelta(const GpuDelta& delta, const gpu::DeltaMix& mix, float* values,
                  const gpu::DeltaOutput& output);
  Status DeltaGates(const GpuLayer& layer, const GpuDelta& delta, const DeltaScratch& s);
  gpu::DeltaMix MixOf(const GpuDelta& delta, const DeltaScratch& s) const;
  Status FewDelta(const GpuLayer& layer, const GpuDelta& delta);
  Status ManyDelta(const GpuLayer& layer, const GpuDelta& delta);
  // In gpu_mla_pass.cc.
  gpu::LatentRows Latents(const GpuMla& mla, const gpu::LatentCache& cache) const;
  Status FewLatent(const GpuLayer& layer, const GpuMla& mla);
  Status ManyLatentQueries(const GpuMla& mla);
  Status ManyLatent(const GpuLayer& layer, const GpuMla& mla);
  Status FewShared(const GpuLayer& layer);
  Status ManyShared(const GpuLayer& layer);
  bool Meets(uint32_t index) const { return meeting_ != nullptr && meeting_->meets(index); }
  gpu::KvRowsToHost RowsToHost(const GpuLayer& layer) const;
  Status FewRowsToHost(uint32_t index, const GpuLayer& layer);
  Status FewRoutedToHost(uint32_t index, const GpuLayer& layer);
  Status FewExperts(uint32_t index, const GpuLayer& layer);
  Status FewDense(const GpuLayer& layer);
  Status ManyAttention(const GpuLayer& layer, const GpuGqa& gqa);
  Status ManyExperts(uint32_t index, const GpuLayer& layer);
  Status ManyDense(const GpuLayer& layer);

  const ModelConfig& config_;
  const GpuNetwork& network_;
  GpuExperts& experts_;
  const gpu::GroupedGemm gemm_;
  const gpu::Stream stream_;
  GpuHandover* handover_ = nullptr;
  HostMeeting* meeting_ = nullptr;
  uint32_t table_blocks_ = 0;
  uint32_t token_count_ = 0, first_ = 0;
  uint32_t prompt_first_ = 0;  // position of the first prepared token
  RecurrentSlots::Use prompt_state_;
  bool pending_delta_ = false;  // the experts' sum is not in the residual stream yet
  uint32_t logit_rows_ = 0;
  bool recurrent_ = false;  // a layer has such state
  gpu::DeviceMemory memory_;
  gpu::PinnedMemory inputs_, logits_;
  std::unique_ptr<PassScratch> scratch_;
};

}  // namespace moraine
