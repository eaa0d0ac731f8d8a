// A GpuModel for prompts without a GPU: computes with a CPU runner of its own, but as a GPU does: on pages of its
// own, which hold nothing of use until they are brought over, and on records that are copied late, so that
// what is stale, or let go too early, shows in the bits.
#pragma once

#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "engine/gpu/gpu_model.h"
#include "engine/runner.h"
#include "engine/routing_recorder.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"

namespace moraine {

// Copies happen when they are waited for, or at random when they are asked after: as late as copies can.
class LateCopier final : public DeviceCopier {
 public:
  explicit LateCopier(uint64_t seed) : random_(seed) {}
  Status Copy(std::byte* to, const std::byte* from, uint64_t bytes) override {
    copies_.push_back({to, from, bytes});
    return OkStatus();
  }
  Result<uint64_t> Mark() override {
    marks_.push_back(begun_ + copies_.size());
    return marks_.size() - 1;
  }
  bool Reached(uint64_t mark) override {
    if (begun_ < marks_[mark] && random_.Chance(0.2)) Wait(mark);
    return begun_ >= marks_[mark];
  }
  void Wait(uint64_t mark) override {
    while (begun_ < marks_[mark]) {
      const auto& [to, from, bytes] = copies_.front();
      std::memcpy(to, from, bytes);
      copies_.pop_front();
      ++begun_;
    }
  }
  bool idle() const { return copies_.empty(); }

 private:
  struct Pending {
    std::byte* to;
    const std::byte* from;
    uint64_t bytes;
  };
  Random random_;
  std::deque<Pending> copies_;
  std::vector<uint64_t> marks_;  // number of copies that must have been made
  uint64_t begun_ = 0;
};

class FakeGpu final : public GpuModel {
 public:
  // `runner`: of the same store and KV format, all resident, with steps of `chunk` tokens and as many blocks
  // as the host's pool.
  FakeGpu(std::unique_ptr<Runner> runner, const GpuModelOptions& options, uint32_t chunk,
          uint64_t seed, int* steps_until_failure)
      : runner_(std::move(runner)),
        host_(*options.host_kv),
        source_(*options.source),
        recorder_(*RoutingRecorder::Create(runner_->config())),
        copier_(seed),
        steps_until_failure_(steps_until_failure) {
    plan_.chunk = chunk;
    plan_.streamed_bytes = runner_->store().manifest().expert_bytes();
    runner_->SetRoutingRecorder(&recorder_);
    const uint32_t layers = static_cast<uint32_t>(runner_->config().layers.size());
    for (uint32_t layer = 0; layer < layers; ++layer) {
      pages_.emplace_back(host_.block_count() * host_.block_bytes(layer), std::byte{0x47});
      const LayerManifest& manifest = runner_->store().manifest().layers[layer];
      records_.emplace_back(manifest.expert_count * manifest.record_bytes);
    }
    routed_.resize(layers);
  }
  ~FakeGpu() override { runner_->SetRoutingRecorder(nullptr); }

  void Step(std::span<GpuSegment> batch) override {
    CHECK(batch.size() == 1, "prompts come alone");
    GpuSegment& segment = batch[0];
    segment.status = Compute(segment);
    source_.Finish(copier_);
    CHECK(copier_.idle(), "copies are left");
    if (segment.status.ok()) CheckRecords();
  }
  uint32_t max_chunk() const override { return plan_.chunk; }
  uint32_t page_count() const override { return host_.block_count(); }
  const uint32_t* routed(uint32_t layer) const override { return routed_[layer].data(); }
  VramSlots vram_slots() const override { return {}; }
  DeviceCopier& slot_copier() override { return copier_; }
  const VramPlan& plan() const override { return plan_; }
  const std::string& gpu_name() const override { return name_; }
  Result<double> MeasureLink() override { return 50.0; }

 private:
  static uint32_t PagesOf(uint32_t positions) { return KvPool::BlocksFor(positions); }
  std::byte* Page(uint32_t layer, uint32_t page) {
    return pages_[layer].data() + page * host_.block_bytes(layer);
  }
  std::byte* HostBlock(uint32_t layer, uint32_t page) const {
    return host_.layer(layer) + page * host_.block_bytes(layer);
  }

  Status Compute(const GpuSegment& segment) {
    const auto count = static_cast<uint32_t>(segment.tokens.size());
    CHECK(count <= plan_.chunk, "more than a chunk");
    if (segment.cancelled != nullptr && segment.cancelled->load()) return Cancelled("cancelled");
    for (uint32_t layer = 0; layer < pages_.size(); ++layer) {
      for (const uint32_t page : segment.stale) {
        std::memcpy(Page(layer, page), HostBlock(layer, page), host_.block_bytes(layer));
      }
    }
    RETURN_IF_ERROR(CopyExperts());
    const uint32_t first_page = segment.first / kKvBlockPositions;
    if (*steps_until_failure_ > 0 && --*steps_until_failure_ == 0) {
      for (uint32_t p = first_page; p < PagesOf(segment.first + count); ++p) {
        std::memset(Page(0, segment.pages[p]), 0x55, host_.block_bytes(0));
        // From the chunk's positions on, whatever is there: nothing of meaning.
        if (p > first_page) std::memset(HostBlock(0, segment.pages[p]), 0x55, host_.block_bytes(0));
      }
      return Internal("the device is gone");
    }
    SequenceState& state = runner_->sequence(0);
    state.Reset();
    CHECK(state.Reserve(segment.first + count), "no blocks");
    MovePages(segment, 0, state, /*to_state=*/true);
    state.Commit(segment.first);
    const LogitsMode mode = segment.logits == 0       ? LogitsMode::kNone
                            : segment.logits == count ? LogitsMode::kAll
                                                      : LogitsMode::kLast;
    BatchSegment inner = {.tokens = segment.tokens, .state = &state, .logits = mode,
                          .sink = segment.sink};
    if (mode == LogitsMode::kNone) inner.sink = nullptr;
    runner_->Step({&inner, 1});
    RETURN_IF_ERROR(inner.status);
    MovePages(segment, first_page, state, /*to_state=*/false);
    for (uint32_t layer = 0; layer < pages_.size(); ++layer) {
      for (uint32_t p = first_page; p < PagesOf(segment.first + count); ++p) {
        std::memcpy(HostBlock(layer, segment.pages[p]), Page(layer, segment.pages[p]),
                    host_.block_bytes(layer));
      }
    }
    KeepRouting(count);
    return OkStatus();
  }

  // Between the device's pages and the inner runner's blocks.
  void MovePages(const GpuSegment& segment, uint32_t from_page, SequenceState& state, bool to_state) {
    const auto count = static_cast<uint32_t>(segment.tokens.size());
    for (uint32_t layer = 0; layer < pages_.size(); ++layer) {
      const PositionBlocks blocks = state.positions(layer);
      for (uint32_t p = from_page; p < PagesOf(segment.first + count); ++p) {
        std::byte* const block = blocks.first + blocks.blocks[p] * blocks.block_bytes;
        std::byte* const page = Page(layer, segment.pages[p]);
        std::memcpy(to_state ? block : page, to_state ? page : block, blocks.block_bytes);
      }
    }
  }

  Status CopyExperts() {
    const std::vector<LayerManifest>& layers = runner_->store().manifest().layers;
    for (uint32_t layer = 0; layer < layers.size(); ++layer) {
      if (layers[layer].expert_count == 0) continue;
      uint32_t next = layer + 1;
      while (next < layers.size() && layers[next].expert_count == 0) ++next;
      RETURN_IF_ERROR(source_.CopyLayer({.layer = layer,
                                         .next = next < layers.size() ? next : kNoLayer,
                                         .record_bytes = layers[layer].record_bytes,
                                         .to = records_[layer].data()},
                                        copier_));
    }
    return OkStatus();
  }

  void CheckRecords() {
    const std::vector<LayerManifest>& layers = runner_->store().manifest().layers;
    for (uint32_t layer = 0; layer < layers.size(); ++layer) {
      for (uint32_t e = 0; e < layers[layer].expert_count; ++e) {
        std::byte* const record = records_[layer].data() + e * layers[layer].record_bytes;
        const Status status = runner_->store().VerifyRecord({LayerId(layer), ExpertId(e)},
                                                            {record, layers[layer].record_bytes});
        CHECK(status.ok(), status.message());
      }
      std::ranges::fill(records_[layer], std::byte{0});
    }
  }

  void KeepRouting(uint32_t count) {
    const RoutingTrace trace = recorder_.Take(0, "");
    CHECK(trace.tokens() == count, "another number of tokens was routed");
    for (uint32_t layer = 0; layer < routed_.size(); ++layer) {
      routed_[layer].clear();
      for (uint32_t t = 0; t < count; ++t) {
        const auto row = trace.At(t, layer);
        routed_[layer].insert(routed_[layer].end(), row.begin(), row.end());
      }
    }
  }

  const std::unique_ptr<Runner> runner_;
  const KvPool& host_;
  StreamedExperts& source_;
  RoutingRecorder recorder_;
  LateCopier copier_;
  int* const steps_until_failure_;  // 0: never
  const std::string name_ = "a CPU that plays a GPU";
  VramPlan plan_;
  std::vector<std::vector<std::byte>> pages_, records_;  // by layer
  std::vector<std::vector<uint32_t>> routed_;
};

}  // namespace moraine
