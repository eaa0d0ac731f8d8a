// gpu_hybrid_bench STORE-DIRECTORY [LAYERS]: what it costs a decode step that the host is asked in
// every layer where its experts are (src/engine/gpu/hybrid_step.h), beside the same step as one
// graph that asks nobody. Makes a store of Qwen3-30B-A3B's shape with that many layers there (8),
// and removes it.
//
// The host answers at once, with addresses of VRAM slots, of page-locked memory, or with a sum of
// zeros, so that what is measured is the meeting, not the experts. Records of a layer all have the
// bytes of its first. Medians over steps of one token; a JSON line each.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/vram_needs.h"
#include "engine/manifest_check.h"
#include "engine/published_models.h"
#include "engine/synthetic_model.h"
#include "memory/host_arena.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"
#include "store/importer.h"
#include "store/store.h"

namespace moraine {
namespace {

constexpr uint32_t kContext = 1024, kPast = 64, kSteps = 200;

template <typename T>
T Need(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().message().c_str());
    std::exit(1);
  }
  return std::move(*result);
}

enum class Answer { kSlots, kLink, kSums };

// Answers at once. No prompts.
class Answers final : public HostExperts, public StreamedExperts {
 public:
  Answers(const Store& store, const ModelConfig& config) : config_(config) {
    const LayerManifest& layer = store.manifest().layers[0];
    record_bytes_ = layer.record_bytes;
    memory_ = Need(HostArena::Allocate(config.expert_count * record_bytes_, {}));
    const RecordLocation& place = store.Locate({LayerId(0), ExpertId(0)});
    std::ifstream pack(store.expert_pack_paths()[place.pack], std::ios::binary);
    pack.seekg(static_cast<std::streamoff>(place.offset));
    pack.read(reinterpret_cast<char*>(memory_.data()), static_cast<std::streamsize>(place.bytes));
    for (uint32_t e = 1; e < config.expert_count; ++e) {
      std::copy_n(memory_.data(), record_bytes_, memory_.data() + e * record_bytes_);
    }
    lock_ = Need(LockForGpu(memory_.span()));
  }
  void FillSlots(GpuModel& model) {
    slots_ = model.vram_slots();
    for (uint32_t i = 0; i < slots_.count; ++i) {
      CHECK(model.slot_copier().Copy(slots_.slot(i), memory_.data(), record_bytes_).ok(), "slot");
    }
  }
  void set_answer(Answer answer) { answer_ = answer; }

  Result<uint32_t> Place(const RoutedLayer& layer, const std::byte** records) override {
    for (uint32_t i = 0; i < layer.token_count * layer.top_k; ++i) {
      const uint32_t expert = layer.experts[i];
      records[expert] = AddressOf(layer.layer, expert);
    }
    return answer_ == Answer::kSums ? 0 : layer.token_count * layer.top_k;
  }
  Result<bool> Compute(const RoutedLayer& layer, float* out) override {
    if (answer_ != Answer::kSums) return false;
    std::fill_n(out, layer.token_count * config_.hidden, 0.0f);
    return true;
  }
  void Release(uint32_t) override {}
  Status CopyLayer(const LayerCopy&, DeviceCopier&) override { return Unsupported("prompts"); }
  void Finish(DeviceCopier&) override {}

 private:
  const std::byte* AddressOf(uint32_t layer, uint32_t expert) const {
    if (answer_ == Answer::kSums) return nullptr;
    if (answer_ == Answer::kLink) return memory_.data() + expert * record_bytes_;
    return slots_.slot((layer * config_.expert_count + expert) % slots_.count);
  }

  const ModelConfig& config_;
  uint64_t record_bytes_ = 0;
  HostArena memory_;
  std::shared_ptr<void> lock_;
  VramSlots slots_;
  Answer answer_ = Answer::kSlots;
};

struct Model {
  Model(const std::string& directory)
      : store(Need(Store::Open(directory, StoreMode::kReadOnly))),
        config(Need(ParseModelConfig(store->manifest().model_config, "config.json"))),
        layouts(Need(ReadLayouts(store->manifest(), config))),
        pool(Need(KvPool::Create(StateShapesOf(config, KvFormat::kBf16), KvFormat::kBf16,
                                 kContext / kGpuPagePositions))),
        lock(Need(LockForGpu(pool->memory()))),
        answers(*store, config) {}

  // Without host: nobody is asked. With it and everything: nobody either, but rows go to the pool.
  std::unique_ptr<GpuModel> Open(bool host, bool everything) {
    GpuModelOptions options;
    options.max_context = kContext;
    options.prefill_chunk = 512;
    if (host) {
      options.host_kv = pool.get();
      options.source = &answers;
      options.host_experts = &answers;
    }
    if (!everything) {
      const VramNeeds needs = CountVramNeeds(
          store->manifest(), config,
          {.max_context = kContext, .prefill_chunk = 512, .hot_experts = true});
      options.vram_budget_bytes = Need(PlanVram(needs, uint64_t{1} << 50)).total_bytes() - 1;
    }
    std::unique_ptr<GpuModel> model = Need(GpuModel::Open(*store, config, layouts, options));
    std::printf("# %s\n", model->plan().ToText().c_str());
    return model;
  }

  double MsAStep(GpuModel& model, uint32_t tokens_a_step) {
    std::vector<uint32_t> pages(model.page_count());
    for (uint32_t i = 0; i < pages.size(); ++i) pages[i] = i;
    const std::function<void(uint32_t, std::span<const float>)> sink =
        [](uint32_t, std::span<const float>) {};
    std::vector<double> ms;
    for (uint32_t step = 0; step < kPast + kSteps; ++step) {
      std::vector<int32_t> tokens(tokens_a_step, static_cast<int32_t>(step * 37 % 1000));
      std::vector<GpuSegment> segments;
      for (uint32_t t = 0; t < tokens_a_step; ++t) {
        // As many sequences over the same pages: what they attend to does not matter here.
        segments.push_back({.tokens = std::span(tokens).subspan(t, 1),
                            .first = step,
                            .pages = pages.data(),
                            .logits = 1,
                            .sink = &sink});
      }
      const int64_t begin = RealClock().NowNs();
      model.Step(segments);
      if (step >= kPast) ms.push_back(static_cast<double>(RealClock().NowNs() - begin) * 1e-6);
      for (const GpuSegment& segment : segments) {
        CHECK(segment.status.ok(), segment.status.message());
      }
    }
    std::ranges::nth_element(ms, ms.begin() + kSteps / 2);
    return ms[kSteps / 2];
  }

  const std::unique_ptr<Store> store;
  const ModelConfig config;
  const std::vector<ExpertLayout> layouts;
  const std::unique_ptr<KvPool> pool;
  const std::shared_ptr<void> lock;
  Answers answers;
};

void Print(const Model& model, const char* what, uint32_t tokens, double ms, double base_ms) {
  const double layers = static_cast<double>(model.config.layers.size());
  fmt::print("{{\"step\": \"{}\", \"tokens\": {}, \"layers\": {}, \"ms\": {:.4f}, "
             "\"more_us_per_layer\": {:.2f}}}\n",
             what, tokens, layers, ms, (ms - base_ms) * 1e3 / layers);
  std::fflush(stdout);
}

void MakeStore(const std::string& directory, uint32_t layers) {
  SyntheticModelOptions options;
  const PublishedModel& published = *FindPublishedModel("qwen3-30b-a3b");
  options.name = published.name;
  options.config = PublishedConfig(published, layers);
  const SyntheticModel synthetic = Need(MakeSyntheticModel(options));
  ImportOptions import;
  import.store_directory = directory;
  const Status made = Import(*synthetic.checkpoint, *synthetic.plan, import);
  CHECK(made.ok(), made.message());
}

void Measure(const std::string& directory) {
  Model model(directory);
  std::vector<double> base;
  const uint32_t batches[] = {1, 4, 8};
  {
    const std::unique_ptr<GpuModel> whole = model.Open(false, true);
    for (const uint32_t tokens : batches) {
      base.push_back(model.MsAStep(*whole, tokens));
      Print(model, "one graph, nobody asked", tokens, base.back(), base.back());
    }
  }
  {
    const std::unique_ptr<GpuModel> rows = model.Open(true, true);
    for (size_t i = 0; i < 3; ++i) {
      Print(model, "the same, rows of keys and values to the host", batches[i],
            model.MsAStep(*rows, batches[i]), base[i]);
    }
  }
  const std::unique_ptr<GpuModel> meets = model.Open(true, false);
  model.answers.FillSlots(*meets);
  for (const auto& [what, answer] :
       {std::pair("host asked, all experts in slots", Answer::kSlots),
        std::pair("host asked, sums of zeros from it, no experts", Answer::kSums),
        std::pair("host asked, all experts over the link", Answer::kLink)}) {
    model.answers.set_answer(answer);
    for (size_t i = 0; i < 3; ++i) {
      Print(model, what, batches[i], model.MsAStep(*meets, batches[i]), base[i]);
    }
  }
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "gpu_hybrid_bench DIRECTORY-FOR-THE-STORE [LAYERS]\n");
    return 2;
  }
  const std::string directory = std::string(argv[1]) + "/store-" + std::to_string(getpid());
  moraine::MakeStore(directory, argc > 2 ? static_cast<uint32_t>(std::atoi(argv[2])) : 8);
  moraine::Measure(directory);
  std::filesystem::remove_all(directory);
  return 0;
}
