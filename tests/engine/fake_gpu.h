// A GpuModel without a GPU: computes with a model and CPU kernels of its own, but as a GPU does: on
// pages of its own, which hold nothing of use until they are brought over, and on records that are
// copied late and read late, each checked where it is read, so that what is stale, or let go too
// early, shows.
//
//   prompts   all records of a layer by StreamedExperts: to the bit what the CPU gives
//   answers   with host_experts: records at the addresses that Place gives, read after the host's
//             Compute. The sum of both parts is not in router order, and so not to the bit the
//             CPU's
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compute/cpu_backend.h"
#include "engine/dense_weights.h"
#include "engine/gpu/gpu_model.h"
#include "late_copier.h"
#include "model/decoder_model.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"

namespace moraine {

struct FakeGpuOptions {
  std::string store_directory;
  uint32_t chunk = 96;  // tokens of a prompt's piece
  uint32_t slots = 0;   // in VRAM, for single experts
  uint64_t seed = 1;
  // Count down to a failure of the device, which lasts; 0: never. Not owned; null: never.
  int* steps_until_failure = nullptr;
  int* layers_until_failure = nullptr;  // of answers
};

class FakeGpu final : public GpuModel, private MoeExecutor {
 public:
  // CHECKs what a test's store has.
  FakeGpu(const FakeGpuOptions& options, const GpuModelOptions& model);

  void Step(std::span<GpuSegment> batch) override;
  uint32_t max_chunk() const override { return plan_.chunk; }
  uint32_t page_count() const override { return host_.block_count(); }
  const uint32_t* routed(uint32_t layer) const override { return routed_[layer].data(); }
  VramSlots vram_slots() const override { return slots_; }
  DeviceCopier& slot_copier() override { return slot_copier_; }
  const VramPlan& plan() const override { return plan_; }
  const std::string& gpu_name() const override { return name_; }
  Result<double> MeasureLink() override { return 50.0; }

 private:
  Status RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                    float* out) override;
  Status RunTogether(LayerId layer, const RoutingDecision& routing, const float* x, float* out);
  // out: the sum over the experts with a record.
  void Compute(LayerId layer, const RoutingDecision& routing, const float* x,
               const std::byte* const* records, float* out);
  void ComputeBatch(std::span<GpuSegment* const> segments);
  Status CopyExperts();
  void Bring(const GpuSegment& segment, SequenceState& state);
  void Return(const GpuSegment& segment, SequenceState& state);
  void Spoil(const GpuSegment& segment);
  std::byte* Page(uint32_t layer, uint32_t page) {
    return pages_[layer].data() + page * host_.block_bytes(layer);
  }
  std::byte* HostBlock(uint32_t layer, uint32_t page) const {
    return host_.layer(layer) + page * host_.block_bytes(layer);
  }
  static bool CountsDown(int* until);

  const KvPool& host_;
  StreamedExperts& source_;
  HostExperts* const together_;
  int *const steps_until_failure_, *const layers_until_failure_;
  const std::string name_ = "a CPU that plays a GPU";
  VramPlan plan_;
  LateCopier copier_, slot_copier_;
  std::unique_ptr<Store> store_;
  ModelConfig config_;
  std::vector<ExpertLayout> layouts_;
  std::unique_ptr<DenseWeights> dense_;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<CpuBackend> backend_;
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<KvPool> kv_pool_;
  std::vector<SequenceState> states_;
  std::vector<std::vector<std::byte>> pages_;  // by layer
  // Aligned as the kernels want it, and so much at a time.
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::byte* Record(uint32_t layer, uint32_t expert) {
    return records_[layer].data()->bytes + expert * store_->manifest().layers[layer].record_bytes;
  }
  std::vector<std::vector<Line>> records_;  // by layer
  std::vector<Line> slot_memory_;
  VramSlots slots_;
  std::vector<std::vector<const std::byte*>> addresses_;  // by layer, of the prompt's records
  std::vector<std::vector<uint32_t>> routed_;
  bool answers_ = false, failed_ = false;
};

}  // namespace moraine
