// The engine's inner loop without a model: real ExpertExecutor, ResidencyManager and ReadScheduler over a
// simulated drive, kernels that take simulated time, and one manual clock for all of them.
//
// A record begins with its expert's fingerprint, and the kernels' output is computed from what they find
// there, so a wrong, stale or half-read slot shows in the sum that RunExperts returns.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "compute/expert_kernels.h"
#include "engine/expert_executor.h"
#include "io/read_scheduler.h"
#include "io/simulated_reader.h"
#include "residency/residency_manager.h"
#include "residency/slot_segments.h"

namespace moraine {

struct EngineWorldOptions {
  uint32_t layers = 4, experts = 8, top_k = 2;
  uint32_t slot_count = 8, ring_slots = 0;
  uint32_t max_slot_count = 0, slots_per_segment = 0;  // 0: slot_count; derived
  uint32_t max_tokens = 1;
  std::string policy = "heat";
  int64_t read_deadline_ns = 0;
  uint64_t seed = 1;
  uint32_t queue_depth = 64;
  // A record is three chunks of 4 KiB; scale the drive's rate accordingly.
  SimulatedFaults faults = {.min_latency_ns = 1000, .max_latency_ns = 1000, .script = {}};
  ReadSchedulerOptions scheduler = {.chunk_bytes = 4096};
  // Simulated cost of the kernels.
  int64_t expert_ns = 1000;         // an expert's weights, however many tokens
  int64_t expert_token_ns = 100;    // and for each of its tokens
  int64_t attention_ns = 1000;      // what precedes the experts in a layer, a token
  int64_t verify_ns = 0;            // a record's checksum
};

inline constexpr uint32_t kWorldHidden = 64;

class EngineWorld final : public RecordSource, public ExpertKernels {
 public:
  explicit EngineWorld(const EngineWorldOptions& options) : options_(options) {
    config_.hidden = kWorldHidden;
    config_.expert_count = options.experts;
    config_.top_k = options.top_k;
    config_.layers.assign(options.layers, {FeedForwardKind::kMoe, 16, {}});
    layout_ = {Encoding::kBf16, Encoding::kBf16, kWorldHidden, 16};
    const uint64_t count = uint64_t{options.layers} * options.experts;
    std::vector<std::byte> pack((count + 1) * record_bytes());
    for (uint64_t i = 0; i < count; ++i) {
      for (uint64_t word = 0; word < record_bytes() / 8; ++word) {
        const uint64_t value = Fingerprint(i) + word;
        std::memcpy(&pack[(i + 1) * record_bytes() + word * 8], &value, sizeof(value));
      }
    }
    SimulatedReaderOptions reader_options;
    reader_options.seed = options.seed;
    reader_options.capacity = options.queue_depth;
    reader_options.faults = options.faults;
    reader_options.manual_clock = &clock_;
    reader_options.memory_files["experts"] = std::move(pack);
    std::unique_ptr<BlockReader> reader = CreateSimulatedReader(std::move(reader_options));
    file_ = reader->OpenFile("experts").value();
    scheduler_ = std::make_unique<ReadScheduler>(std::move(reader), options.scheduler, clock_);
    SlotSegmentsOptions segments;
    segments.slot_bytes = record_bytes();
    segments.max_slots = std::max(options.slot_count, options.max_slot_count);
    segments.slots_per_segment = options.slots_per_segment;
    segments.huge_pages = false;
    segments.reader = &scheduler_->reader();
    segments_ = std::make_unique<SlotSegments>(std::move(segments));
    ResidencyOptions residency;
    residency.experts_per_layer.assign(options.layers, options.experts);
    residency.top_k = options.top_k;
    residency.slot_count = options.slot_count;
    residency.max_slot_count = options.max_slot_count;
    residency.ring_slots = options.ring_slots;
    residency.policy = options.policy;
    residency.read_deadline_ns = options.read_deadline_ns;
    manager_ = ResidencyManager::Create(residency, *segments_, *this, *scheduler_, clock_).value();
    executor_ = std::make_unique<ExpertExecutor>(
        config_, std::vector<ExpertLayout>(options.layers, layout_), *manager_, *this,
        options.max_tokens, clock_);
    x_.resize(size_t{options.max_tokens} * kWorldHidden);
    out_.resize(x_.size());
  }

  // One layer of one step: routing and lookaheads as in RoutingDecision. The sum is in out().
  Status RunLayer(LayerId layer, const RoutingDecision& routing) {
    clock_.AdvanceNs(options_.attention_ns * routing.token_count);
    for (uint32_t t = 0; t < routing.token_count; ++t) x_[size_t{t} * kWorldHidden] = InputOf(t);
    return executor_->RunExperts(layer, routing, x_.data(), out_.data());
  }
  // Whether out() is what the layer's experts make of their inputs, to the bit.
  bool OutputIsRight(LayerId layer, const RoutingDecision& routing) const {
    for (uint32_t t = 0; t < routing.token_count; ++t) {
      float sum = 0;
      for (uint32_t rank = 0; rank < routing.top_k; ++rank) {
        const size_t i = size_t{t} * routing.top_k + rank;
        sum += routing.weights[i] *
               OutputOf(Fingerprint(IndexOf({layer, ExpertId(routing.experts[i])})), InputOf(t));
      }
      if (out_[size_t{t} * kWorldHidden] != sum) return false;
    }
    return true;
  }
  void BeginStep(uint32_t tokens, AcquireMode mode) {
    manager_->BeginStep(tokens);
    executor_->BeginStep(mode);
  }

  std::span<const float> out() const { return out_; }
  ManualClock& clock() { return clock_; }
  ReadScheduler& scheduler() { return *scheduler_; }
  ResidencyManager& manager() { return *manager_; }
  ExpertExecutor& executor() { return *executor_; }
  uint64_t record_bytes() const { return layout_.record_bytes(); }
  // Experts of each call of the kernels so far.
  std::vector<size_t>& regions() { return regions_; }

  // RecordSource.
  Location Locate(ExpertKey key) const override {
    return {file_, (IndexOf(key) + 1) * record_bytes(), record_bytes()};
  }
  Status Verify(ExpertKey key, uint32_t, std::span<const std::byte> bytes) const override {
    clock_.AdvanceNs(options_.verify_ns);
    for (uint64_t word = 0; word < bytes.size() / 8; ++word) {
      if (WordAt(bytes.data(), word) != Fingerprint(IndexOf(key)) + word) {
        return Corruption("layer " + std::to_string(key.layer.value()) + " expert " +
                          std::to_string(key.expert.value()) + ": not the record that was written");
      }
    }
    return OkStatus();
  }

  // ExpertKernels.
  void SetExpertInput(const float* x, size_t, uint32_t, uint32_t, Encoding) override { input_ = x; }
  void RunExperts(std::span<const ExpertTask> tasks) override {
    regions_.push_back(tasks.size());
    for (const ExpertTask& task : tasks) {
      clock_.AdvanceNs(options_.expert_ns + options_.expert_token_ns * task.token_count);
      const uint64_t fingerprint = WordAt(task.weights.gate.data, 0);
      for (uint32_t i = 0; i < task.token_count; ++i) {
        float* y = task.output + size_t{i} * kWorldHidden;
        std::fill(y, y + kWorldHidden, 0.0f);
        y[0] = OutputOf(fingerprint, input_[size_t{task.token_rows[i]} * kWorldHidden]);
      }
    }
  }
  void CombineExperts(const ExpertCombination& c) override {
    for (uint32_t t = 0; t < c.token_count; ++t) {
      float sum = 0;
      for (uint32_t rank = 0; rank < c.top_k; ++rank) {
        const size_t i = size_t{t} * c.top_k + rank;
        sum += c.weights[i] * c.outputs[size_t{c.rows[i]} * c.hidden];
      }
      c.out[size_t{t} * c.hidden] = sum;
    }
  }

 private:
  static uint64_t Fingerprint(uint64_t index) { return (index + 1) * 0x9E3779B97F4A7C15ull; }
  static float InputOf(uint32_t token) { return 1.0f + static_cast<float>(token % 7); }
  static float OutputOf(uint64_t fingerprint, float x) {
    return x * static_cast<float>(fingerprint >> 40);
  }
  static uint64_t WordAt(const std::byte* data, uint64_t index) {
    uint64_t word;
    std::memcpy(&word, data + index * 8, sizeof(word));
    return word;
  }
  uint64_t IndexOf(ExpertKey key) const {
    return uint64_t{key.layer.value()} * options_.experts + key.expert.value();
  }

  const EngineWorldOptions options_;
  ModelConfig config_;
  ExpertLayout layout_;
  mutable ManualClock clock_;
  FileId file_;
  std::unique_ptr<ReadScheduler> scheduler_;
  std::unique_ptr<SlotSegments> segments_;
  std::unique_ptr<ResidencyManager> manager_;
  std::unique_ptr<ExpertExecutor> executor_;
  std::vector<float> x_, out_;
  std::vector<size_t> regions_;
  const float* input_ = nullptr;
};

}  // namespace moraine
