// Experts whose owner is told where each is computed: in a VRAM slot, read over the link, or on the
// CPU, by the scalar reference. And the model around them, without an engine: pages, tokens,
// logits.
#pragma once

#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "compute/cpu_backend.h"
#include "engine/dense_weights.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/vram_needs.h"
#include "engine/manifest_check.h"
#include "memory/host_arena.h"
#include "memory/topology.h"
#include "model/config.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"
#include "store/store.h"
#include "test_store.h"

namespace moraine {

enum class Where { kVram, kLink, kCpu };
// kVram of an expert that has no slot is kLink.
using Split = std::function<Where(uint32_t layer, uint32_t expert)>;

template <typename T>
T Need(Result<T> result) {
  CHECK(result.ok(), result.status().message());
  return std::move(*result);
}

class SplitExperts final : public HostExperts, public StreamedExperts {
 public:
  SplitExperts(const Store& store, const ModelConfig& config, std::vector<ExpertLayout> layouts)
      : config_(config),
        layouts_(std::move(layouts)),
        dense_(Need(DenseWeights::Load(store))),
        threads_(Topology::Detect(), {.thread_count = 1, .pin = false}),
        cpu_(Isa::kScalar, threads_, 8, WidestOf(config, layouts_)),
        placed_(config.layers.size()),
        released_(config.layers.size()) {
    uint64_t bytes = 0;
    for (const LayerManifest& layer : store.manifest().layers) {
      first_.push_back(bytes);
      record_bytes_.push_back(layer.record_bytes);
      bytes += layer.expert_count * layer.record_bytes;
    }
    memory_ = Need(HostArena::Allocate(bytes, {}));
    ReadRecords(store);
    lock_ = Need(LockForGpu(memory_.span()));
  }

  // Fills the slots, of all layers in turn.
  void FillSlots(GpuModel& model) {
    const VramSlots slots = model.vram_slots();
    slots_.assign(config_.layers.size(), std::vector<std::byte*>(config_.expert_count));
    uint32_t next = 0;
    for (uint32_t expert = 0; expert < config_.expert_count; ++expert) {
      for (uint32_t layer = 0; layer < record_bytes_.size() && next < slots.count; ++layer) {
        if (record_bytes_[layer] == 0) continue;
        slots_[layer][expert] = slots.slot(next++);
        CHECK(model.slot_copier()
                  .Copy(slots_[layer][expert], Record(layer, expert), record_bytes_[layer])
                  .ok(),
              "copy to a slot");
      }
    }
    slots_used_ = next;
  }

  void set_split(Split split) { split_ = std::move(split); }
  // At this layer Place or Compute fails once.
  void FailPlace(uint32_t layer) { place_fails_ = layer; }
  void FailCompute(uint32_t layer) { compute_fails_ = layer; }
  // Whether prompts copy what is in a slot, too.
  void set_skip_slots(bool skip) { skip_slots_ = skip; }
  uint64_t copied() const { return copied_; }
  uint32_t slots_used() const { return slots_used_; }
  uint64_t on(Where where) const { return counts_[static_cast<int>(where)]; }

  // Place and Release of each layer as often as each other.
  bool Balanced() const { return placed_ == released_ && held_ == kNoLayer; }
  uint64_t places() const {
    uint64_t sum = 0;
    for (const uint64_t count : placed_) sum += count;
    return sum;
  }

  Result<uint32_t> Place(const RoutedLayer& layer, const std::byte** records) override {
    CHECK(held_ == kNoLayer, "a layer is placed before the one before it was released");
    held_ = layer.layer;
    ++placed_[layer.layer];
    if (std::exchange(place_fails_, place_fails_ == layer.layer ? kNoLayer : place_fails_) ==
        layer.layer) {
      return Internal("Place fails");
    }
    uint32_t count = 0;
    for (uint32_t i = 0; i < layer.token_count * layer.top_k; ++i) {
      const uint32_t expert = layer.experts[i];
      CHECK(expert < config_.expert_count, "no such expert");
      records[expert] = AddressOf(layer.layer, expert);
      if (records[expert] != nullptr) ++count;
    }
    return count;
  }

  Result<bool> Compute(const RoutedLayer& layer, float* out) override {
    CHECK(held_ == layer.layer, "a layer that is not placed");
    if (std::exchange(compute_fails_,
                      compute_fails_ == layer.layer ? kNoLayer : compute_fails_) == layer.layer) {
      return Internal("Compute fails");
    }
    const uint32_t hidden = config_.hidden;
    const auto norm = dense_->Vector("layers." + std::to_string(layer.layer) + ".mlp.norm");
    std::vector<float> normed(layer.token_count * hidden), row(hidden);
    cpu_.RmsNorm(layer.hidden, hidden, norm.data(), config_.rms_norm_epsilon, layer.token_count,
                 hidden, normed.data(), hidden);
    const ExpertLayout& layout = layouts_[layer.layer];
    cpu_.SetExpertInput(normed.data(), hidden, layer.token_count, hidden, layout.gate_up);
    std::vector<float> sums(layer.token_count * hidden);
    bool any = false;
    for (uint32_t t = 0; t < layer.token_count; ++t) {
      for (uint32_t k = 0; k < layer.top_k; ++k) {
        const uint32_t expert = layer.experts[t * layer.top_k + k];
        if (AddressOf(layer.layer, expert) != nullptr) continue;
        any = true;
        const ExpertTask task = {.weights = ViewExpert(layout, Record(layer.layer, expert)),
                                 .token_rows = &t,
                                 .token_count = 1,
                                 .output = row.data()};
        cpu_.RunExperts({&task, 1});
        const float weight = layer.weights[t * layer.top_k + k];
        for (uint32_t c = 0; c < hidden; ++c) sums[t * hidden + c] += weight * row[c];
      }
    }
    if (any) std::ranges::copy(sums, out);
    return any;
  }

  void Release(uint32_t layer) override {
    CHECK(held_ == layer, "a layer that is not placed is released");
    held_ = kNoLayer;
    ++released_[layer];
  }

  Status CopyLayer(const LayerCopy& layer, DeviceCopier& copier) override {
    for (uint32_t expert = 0; expert < config_.expert_count; ++expert) {
      std::byte* const slot = slots_.empty() ? nullptr : slots_[layer.layer][expert];
      if (layer.addresses != nullptr) {
        layer.addresses[expert] = skip_slots_ ? slot : nullptr;
        if (layer.addresses[expert] != nullptr) continue;
      }
      RETURN_IF_ERROR(copier.Copy(layer.to + expert * layer.record_bytes,
                                  Record(layer.layer, expert), layer.record_bytes));
      ++copied_;
    }
    return OkStatus();
  }
  void Finish(DeviceCopier& copier) override {
    const Result<uint64_t> mark = copier.Mark();
    if (mark.ok()) copier.Wait(*mark);
  }

 private:
  static uint32_t WidestOf(const ModelConfig& config, std::span<const ExpertLayout> layouts) {
    uint32_t widest = config.hidden;
    for (const ExpertLayout& layout : layouts) widest = std::max(widest, layout.intermediate);
    return widest;
  }
  std::byte* Record(uint32_t layer, uint32_t expert) const {
    return memory_.data() + first_[layer] + expert * record_bytes_[layer];
  }
  const std::byte* AddressOf(uint32_t layer, uint32_t expert) {
    const Where where = split_(layer, expert);
    ++counts_[static_cast<int>(where)];
    if (where == Where::kCpu) return nullptr;
    const std::byte* const slot = slots_.empty() ? nullptr : slots_[layer][expert];
    return where == Where::kVram && slot != nullptr ? slot : Record(layer, expert);
  }
  void ReadRecords(const Store& store) {
    const std::vector<std::string> paths = store.expert_pack_paths();
    for (uint32_t layer = 0; layer < record_bytes_.size(); ++layer) {
      for (uint32_t e = 0; e < store.manifest().layers[layer].expert_count; ++e) {
        const RecordLocation& place = store.Locate({LayerId(layer), ExpertId(e)});
        std::ifstream pack(paths[place.pack], std::ios::binary);
        pack.seekg(static_cast<std::streamoff>(place.offset));
        pack.read(reinterpret_cast<char*>(Record(layer, e)),
                  static_cast<std::streamsize>(place.bytes));
        CHECK(pack.good(), "record");
      }
    }
  }

  const ModelConfig& config_;
  const std::vector<ExpertLayout> layouts_;
  const std::unique_ptr<DenseWeights> dense_;
  ThreadPool threads_;
  CpuBackend cpu_;
  std::vector<uint64_t> first_, record_bytes_;
  HostArena memory_;
  std::shared_ptr<void> lock_;
  std::vector<std::vector<std::byte*>> slots_;
  uint32_t slots_used_ = 0;
  Split split_ = [](uint32_t, uint32_t) { return Where::kCpu; };
  bool skip_slots_ = true;
  uint64_t copied_ = 0;
  uint64_t counts_[3] = {};
  std::vector<uint64_t> placed_, released_;
  uint32_t held_ = kNoLayer, place_fails_ = kNoLayer, compute_fails_ = kNoLayer;
};

// A GpuModel whose answers are computed with SplitExperts, and its sequences.
class SplitModel {
 public:
  struct Options {
    KvFormat kv = KvFormat::kF32;
    uint32_t chunk = 0;
    double hot_share = 0.5;  // of the bytes of experts, for slots
    bool lock_pool = true;
    bool everything_fits = false;
  };
  struct Sequence {
    std::vector<uint32_t> pages;
    uint32_t length = 0;
    std::vector<uint32_t> stale = {};
  };

  SplitModel(const TestStore& test_store, const Options& options)
      : store_(Need(Store::Open(test_store.directory(), StoreMode::kReadOnly))),
        config_(Need(ParseModelConfig(store_->manifest().model_config, "config.json"))),
        layouts_(Need(ReadLayouts(store_->manifest(), config_))),
        pool_(Need(KvPool::Create(StateShapesOf(config_, options.kv), options.kv, kPages))),
        experts_(*store_, config_, layouts_) {
    if (options.lock_pool) pool_lock_ = Need(LockForGpu(pool_->memory()));
    GpuModelOptions gpu;
    gpu.max_context = kPages * kGpuPagePositions;
    gpu.prefill_chunk = options.chunk;
    gpu.kv_format = options.kv;
    gpu.threads = 1;
    gpu.host_kv = pool_.get();
    gpu.source = &experts_;
    gpu.host_experts = &experts_;
    if (!options.everything_fits) gpu.vram_budget_bytes = Budget(gpu, options.hot_share);
    model_ = Need(GpuModel::Open(*store_, config_, layouts_, gpu));
    experts_.FillSlots(*model_);
  }
  ~SplitModel() { model_.reset(); }

  GpuModel& model() { return *model_; }
  SplitExperts& experts() { return experts_; }
  const ModelConfig& config() const { return config_; }
  KvPool& pool() { return *pool_; }

  // Logits of all tokens of a step.
  struct Part {
    Sequence* sequence;
    std::vector<int32_t> tokens;
    std::vector<float> logits = {};
    Status status = {};
  };
  void Step(std::vector<Part>& parts) {
    std::vector<GpuSegment> segments;
    std::vector<std::function<void(uint32_t, std::span<const float>)>> sinks(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      Part& part = parts[i];
      Sequence& sequence = *part.sequence;
      const auto count = static_cast<uint32_t>(part.tokens.size());
      while (sequence.pages.size() * kGpuPagePositions < sequence.length + count) {
        sequence.pages.push_back(pool_->Take());
      }
      sinks[i] = [&part](uint32_t, std::span<const float> row) {
        part.logits.insert(part.logits.end(), row.begin(), row.end());
      };
      segments.push_back({.tokens = part.tokens,
                          .first = sequence.length,
                          .pages = sequence.pages.data(),
                          .stale = sequence.stale,
                          .logits = count,
                          .sink = &sinks[i]});
    }
    model_->Step(segments);
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i].status = segments[i].status;
      parts[i].sequence->stale.clear();
      if (segments[i].status.ok()) {
        parts[i].sequence->length += static_cast<uint32_t>(parts[i].tokens.size());
      }
    }
  }
  // Of one sequence, `step` tokens at a time; logits of all.
  std::vector<float> Run(Sequence& sequence, std::span<const int32_t> tokens, size_t step) {
    std::vector<float> logits;
    for (size_t at = 0; at < tokens.size(); at += step) {
      const auto part = tokens.subspan(at, std::min(step, tokens.size() - at));
      std::vector<Part> parts = {{&sequence, {part.begin(), part.end()}}};
      Step(parts);
      CHECK(parts[0].status.ok(), parts[0].status.message());
      logits.insert(logits.end(), parts[0].logits.begin(), parts[0].logits.end());
    }
    return logits;
  }
  void Free(Sequence& sequence) {
    for (const uint32_t page : sequence.pages) pool_->Release(page);
    sequence = {};
  }

 private:
  static constexpr uint32_t kPages = 24;

  // So that hot slots take a share of the experts' bytes.
  uint64_t Budget(const GpuModelOptions& gpu, double hot_share) const {
    VramNeeds needs = CountVramNeeds(store_->manifest(), config_,
                                     {.max_context = gpu.max_context,
                                      .prefill_chunk = gpu.prefill_chunk,
                                      .kv_format = gpu.kv_format,
                                      .hot_experts = true});
    const VramPlan all = Need(PlanVram(needs, uint64_t{1} << 40));
    const uint64_t layer_bytes = *std::ranges::max_element(needs.layer_bytes);
    const auto hot = static_cast<uint64_t>(static_cast<double>(all.anchored_bytes) * hot_share);
    return std::min(all.total_bytes() - 1,
                    all.total_bytes() - all.anchored_bytes + kRingSlots * layer_bytes + hot);
  }

  const std::unique_ptr<Store> store_;
  const ModelConfig config_;
  const std::vector<ExpertLayout> layouts_;
  const std::unique_ptr<KvPool> pool_;
  std::shared_ptr<void> pool_lock_;
  SplitExperts experts_;
  std::unique_ptr<GpuModel> model_;
};

}  // namespace moraine
