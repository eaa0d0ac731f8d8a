// The kernels of a forward pass on a GPU beside the grouped GEMM, on the shapes of Qwen3-30B-A3B:
// what a decode step and a prefill chunk take, and what share of the GPU's bandwidth or of a bound
// that is.
//
//   gpu_kernels_bench [--past N] [--tokens N] [--encoding q4|q8|bf16]
//
// Weights and activations are random; each of 8 layers has weights of its own, more than the L2
// cache. Decode kernels are captured into one CUDA graph over all layers, as decode runs them, and
// replayed; prefill kernels are timed one by one by events. Medians of 20 after 3. GB/s count
// weights and cache read once; the copy that they are compared with counts what it reads and
// writes. One JSON line a measurement.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "base/random.h"
#include "compute/cuda/device_array.h"
#include "compute/cuda/gemv.h"
#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/cuda/routing.h"
#include "compute/cuda/row_ops.h"
#include "compute/encode.h"
#include "compute/random_tiles.h"
#include "gpu_timing.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kHidden = 2048, kIntermediate = 768, kExperts = 128, kTopK = 8;
constexpr uint32_t kQueryHeads = 32, kKvHeads = 4, kHeadDim = 128, kVocabulary = 151936;
constexpr uint32_t kQueryWidth = kQueryHeads * kHeadDim, kKvWidth = kKvHeads * kHeadDim;
constexpr uint32_t kProjected = kQueryWidth + 2 * kKvWidth;
constexpr uint32_t kLayers = 8, kModelLayers = 48;
constexpr float kEpsilon = 1e-6f;

struct Settings {
  uint32_t past = 1024, tokens = 8192;
  Encoding encoding = Encoding::kQ4;
};

DeviceArray<std::byte> Weights(Encoding encoding, uint64_t bytes, uint64_t seed) {
  const uint64_t tile = TileBytes(encoding), part = std::min<uint64_t>(bytes, 4096 * tile);
  std::vector<std::byte> tiles(AlignUp(part, tile));
  FillRandomTiles(encoding, 0.02f, seed, tiles);
  auto array = Require(DeviceArray<std::byte>::Allocate(bytes));
  for (uint64_t at = 0; at < bytes; at += part) {
    Require(array.Write(at, std::span<const std::byte>(tiles).first(std::min(part, bytes - at))));
  }
  return array;
}

struct Layer {
  Layer(Encoding encoding, uint64_t seed)
      : qkv_bytes(Weights(encoding, MatrixBytes(encoding, kProjected, kHidden), seed)),
        o_bytes(Weights(encoding, MatrixBytes(encoding, kHidden, kQueryWidth), seed + 1)),
        router_bytes(
            Weights(Encoding::kF32, MatrixBytes(Encoding::kF32, kExperts, kHidden), seed + 2)),
        norm(Floats(kHidden, seed + 3)) {
    layout = {encoding, encoding, kHidden, kIntermediate};
    slots = Weights(encoding, kExperts * layout.record_bytes(), seed + 4);
    std::vector<const std::byte*> addresses;
    for (uint32_t e = 0; e < kExperts; ++e) {
      addresses.push_back(slots.data() + e * layout.record_bytes());
    }
    records = Require(DeviceArray<const std::byte*>::Copy(addresses));
    qkv = {qkv_bytes.data(), encoding, kProjected, kHidden};
    o = {o_bytes.data(), encoding, kHidden, kQueryWidth};
    router = {router_bytes.data(), Encoding::kF32, kExperts, kHidden};
  }

  ExpertLayout layout;
  DeviceArray<std::byte> qkv_bytes, o_bytes, router_bytes;
  DeviceArray<float> norm;
  DeviceArray<std::byte> slots = Require(DeviceArray<std::byte>::Allocate(1));
  DeviceArray<const std::byte*> records = Require(DeviceArray<const std::byte*>::Allocate(1));
  DeviceMatrix qkv, o, router;
};

// Everything that both kinds of pass need.
struct Bench {
  explicit Bench(const Settings& s) : settings(s) {
    Require(cudaStreamCreate(&stream));
    for (uint32_t i = 0; i < kLayers; ++i) layers.emplace_back(s.encoding, 100 * i);
    const uint32_t positions = std::max(s.past + 64, s.tokens), pages = (positions + 63) / 64 + 1;
    for (uint32_t i = 0; i < kLayers; ++i) {
      keys.push_back(Bf16(pages * KvPageElements(kKvHeads, kHeadDim), 7 + i));
      values.push_back(Bf16(pages * KvPageElements(kKvHeads, kHeadDim), 70 + i));
    }
    std::vector<uint32_t> numbers(pages);
    std::iota(numbers.begin(), numbers.end(), 0u);
    table = Require(DeviceArray<uint32_t>::Copy(numbers));
    cos = Floats(size_t{positions} * kHeadDim / 2, 3);
    head_norm = Floats(kHeadDim, 4);
  }
  PagedKv kv(uint32_t layer) {
    return {keys[layer].data(), values[layer].data(), kKvHeads, kHeadDim, table.data(), 0};
  }

  Settings settings;
  Stream stream = nullptr;
  std::vector<Layer> layers;
  std::vector<DeviceArray<uint16_t>> keys, values;
  DeviceArray<uint32_t> table = Require(DeviceArray<uint32_t>::Allocate(1));
  DeviceArray<float> cos = Floats(1, 1), head_norm = Floats(1, 1);
};

// ---- Decode ----

class Decode {
 public:
  Decode(Bench& bench, uint32_t tokens) : bench_(bench), tokens_(tokens) {
    x_ = Floats(size_t{tokens} * kHidden, 11);
    projected_ = Floats(size_t{tokens} * kProjected, 12);
    queries_ = Floats(size_t{tokens} * kQueryWidth, 13);
    attended_ = Floats(size_t{tokens} * kQueryWidth, 14);
    logits_ = Floats(size_t{tokens} * kVocabulary, 15);
    activated_ = Floats(size_t{tokens} * kTopK * ActivatedStride(kIntermediate), 16);
    weights_ = Floats(size_t{tokens} * kTopK, 17);
    std::vector<uint32_t> chosen;
    Random random(18);
    for (uint32_t i = 0; i < tokens * kTopK; ++i) {
      chosen.push_back((i % kTopK * 16 + static_cast<uint32_t>(random.Below(16))));
    }
    experts_ = Require(DeviceArray<uint32_t>::Copy(chosen));
    routed_ = Require(DeviceArray<uint32_t>::Copy(chosen));
    positions_ = Require(
        DeviceArray<uint32_t>::Copy(std::vector<uint32_t>(tokens, bench.settings.past - 1)));
    scratch_ = Require(DeviceArray<std::byte>::Allocate(
        DecodeAttentionScratchBytes(tokens, kQueryHeads, kHeadDim)));
    Require(scratch_.Fill(0));
    counter_ = Require(DeviceArray<uint32_t>::Copy(std::vector<uint32_t>{0}));
    const Encoding encoding = bench.settings.encoding;
    output_bytes_ = Weights(encoding, MatrixBytes(encoding, kVocabulary, kHidden), 19);
    output_ = {output_bytes_.data(), encoding, kVocabulary, kHidden};
  }

  GemvInput Normed(uint32_t layer) {
    return {x_.data(), kHidden, bench_.layers[layer].norm.data(), kEpsilon};
  }
  void Project(uint32_t layer) {
    Require(RunGemv({.matrix = bench_.layers[layer].qkv,
                     .input = Normed(layer),
                     .token_count = tokens_,
                     .y = projected_.data(),
                     .y_stride = kProjected},
                    bench_.stream));
  }
  void PrepareHeads(uint32_t layer) {
    const float* norm = bench_.head_norm.data();
    Require(RunHeads({.f32 = projected_.data(),
                      .stride = kProjected,
                      .token_count = tokens_,
                      .query_heads = kQueryHeads,
                      .q_norm = norm,
                      .k_norm = norm,
                      .epsilon = kEpsilon,
                      .cos = bench_.cos.data(),
                      .sin = bench_.cos.data(),
                      .rotary_dim = kHeadDim,
                      .positions = positions_.data(),
                      .kv = bench_.kv(layer),
                      .queries_f32 = queries_.data()},
                     bench_.stream));
  }
  void Attend(uint32_t layer) {
    Require(RunDecodeAttention({.queries = queries_.data(),
                                .token_count = tokens_,
                                .query_heads = kQueryHeads,
                                .positions = positions_.data(),
                                .kv = bench_.kv(layer),
                                .scale = 0.088f,
                                .scratch = scratch_.data(),
                                .out = attended_.data()},
                               bench_.stream));
  }
  void Output(uint32_t layer) {
    Require(RunGemv({.matrix = bench_.layers[layer].o,
                     .input = {attended_.data(), kQueryWidth, nullptr, 0},
                     .token_count = tokens_,
                     .y = x_.data(),
                     .y_stride = kHidden,
                     .add = true},
                    bench_.stream));
  }
  void Route(uint32_t layer) {
    Require(RunRouter({.matrix = bench_.layers[layer].router,
                       .input = Normed(layer),
                       .token_count = tokens_,
                       .top_k = kTopK,
                       .selection = {.normalize = true},
                       .logits = logits_.data(),
                       .experts = routed_.data(),
                       .weights = weights_.data(),
                       .counter = counter_.data()},
                      bench_.stream));
  }
  ExpertGemv Experts(uint32_t layer) {
    return {.layout = bench_.layers[layer].layout,
            .records = bench_.layers[layer].records.data(),
            .experts = experts_.data(),
            .token_count = tokens_,
            .top_k = kTopK,
            .input = Normed(layer),
            .activated = activated_.data(),
            .weights = weights_.data(),
            .out = x_.data(),
            .out_stride = kHidden,
            .add = true};
  }
  void GateUp(uint32_t layer) { Require(RunGateUpGemv(Experts(layer), bench_.stream)); }
  void Down(uint32_t layer) { Require(RunDownGemv(Experts(layer), bench_.stream)); }
  void Vocabulary() {
    Require(RunGemv({.matrix = output_,
                     .input = Normed(0),
                     .token_count = tokens_,
                     .y = logits_.data(),
                     .y_stride = kVocabulary},
                    bench_.stream));
  }

  void Measure() {
    const ExpertLayout& layout = bench_.layers[0].layout;
    const double pairs = std::min(tokens_ * kTopK, kExperts);
    const double kv_bytes = 2.0 * 2 * bench_.settings.past * kKvWidth * tokens_;
    const struct {
      const char* name;
      void (Decode::*run)(uint32_t);
      double bytes;
    } parts[] = {
        {"norm, q, k, v", &Decode::Project, static_cast<double>(bench_.layers[0].qkv.bytes())},
        {"heads", &Decode::PrepareHeads, 0},
        {"attention", &Decode::Attend, kv_bytes},
        {"output projection", &Decode::Output, static_cast<double>(bench_.layers[0].o.bytes())},
        {"norm, router, choice", &Decode::Route,
         static_cast<double>(bench_.layers[0].router.bytes())},
        {"gate and up", &Decode::GateUp, pairs * static_cast<double>(layout.down_offset())},
        {"down", &Decode::Down,
         pairs * static_cast<double>(layout.payload_bytes() - layout.down_offset())},
    };
    const std::string note = "decode, " + std::to_string(tokens_) + " tokens, past " +
                             std::to_string(bench_.settings.past);
    double total_bytes = 0;
    for (const auto& part : parts) {
      const double ms = TimeGraph(bench_.stream, [&] {
        for (int repeat = 0; repeat < 4; ++repeat) {
          for (uint32_t layer = 0; layer < kLayers; ++layer) (this->*part.run)(layer);
        }
      });
      Report(part.name, ms * 1e3 / (4 * kLayers), part.bytes, 0, note.c_str());
      total_bytes += part.bytes;
    }
    const double output_ms = TimeGraph(bench_.stream, [&] { Vocabulary(); });
    Report("vocabulary", output_ms * 1e3, static_cast<double>(output_.bytes()), 0, note.c_str());
    const double ms = TimeGraph(bench_.stream, [&] {
      for (uint32_t i = 0; i < kModelLayers; ++i) {
        for (const auto& part : parts) (this->*part.run)(i % kLayers);
      }
      Vocabulary();
    });
    total_bytes = total_bytes * kModelLayers + static_cast<double>(output_.bytes());
    Report("48 layers and vocabulary", ms * 1e3, total_bytes, 0, note.c_str());
    std::printf("{\"steps_per_s\": %.1f, \"note\": \"%s\"}\n", 1e3 / ms, note.c_str());
  }

 private:
  Bench& bench_;
  uint32_t tokens_;
  DeviceArray<float> x_ = Floats(1, 1), projected_ = Floats(1, 1), queries_ = Floats(1, 1);
  DeviceArray<float> attended_ = Floats(1, 1), logits_ = Floats(1, 1), activated_ = Floats(1, 1);
  DeviceArray<float> weights_ = Floats(1, 1);
  DeviceArray<uint32_t> experts_ = Require(DeviceArray<uint32_t>::Allocate(1));
  DeviceArray<uint32_t> routed_ = Require(DeviceArray<uint32_t>::Allocate(1));
  DeviceArray<uint32_t> positions_ = Require(DeviceArray<uint32_t>::Allocate(1));
  DeviceArray<uint32_t> counter_ = Require(DeviceArray<uint32_t>::Allocate(1));
  DeviceArray<std::byte> scratch_ = Require(DeviceArray<std::byte>::Allocate(1));
  DeviceArray<std::byte> output_bytes_ = Require(DeviceArray<std::byte>::Allocate(1));
  DeviceMatrix output_;
};

// ---- Prefill ----

void MeasurePrefill(Bench& bench) {
  const uint32_t tokens = bench.settings.tokens;
  const double rows = tokens;
  const std::string note = "prefill, " + std::to_string(tokens) + " tokens";
  const auto report = [&](const char* what, double bytes, double flops,
                          const std::function<void()>& work) {
    Report(what, Time(bench.stream, work) * 1e3, bytes, flops, note.c_str());
  };
  const GroupedGemm gemm = Require(GroupedGemm::Create());
  const Layer& layer = bench.layers[0];
  auto x = Floats(size_t{tokens} * kHidden, 21);
  auto operand = Bf16(size_t{tokens} * kQueryWidth, 22);
  auto natural = Bf16(size_t{tokens} * kHidden, 23),
       projected = Bf16(size_t{tokens} * kProjected, 24);
  auto queries = Bf16(size_t{tokens} * kQueryWidth, 25);
  auto logits = Floats(size_t{tokens} * kExperts, 26), weights = Floats(size_t{tokens} * kTopK, 27);
  const size_t pairs = size_t{tokens} * kTopK;
  auto experts = Require(DeviceArray<uint32_t>::Allocate(pairs));
  auto token_rows = Require(DeviceArray<uint32_t>::Allocate(pairs));
  auto positions = Require(DeviceArray<uint32_t>::Allocate(pairs));
  auto offsets = Require(DeviceArray<uint32_t>::Allocate(kExperts + 1));
  auto counter = Require(DeviceArray<uint32_t>::Copy(std::vector<uint32_t>{0}));

  report("norm to both orders", rows * kHidden * 8, 0, [&] {
    Require(RunRowNorm({.x = x.data(),
                        .x_stride = kHidden,
                        .weight = layer.norm.data(),
                        .epsilon = kEpsilon,
                        .token_count = tokens,
                        .cols = kHidden,
                        .operand = operand.data(),
                        .natural = natural.data()},
                       bench.stream));
  });
  report("q, k, v", 0, 2.0 * rows * kProjected * kHidden, [&] {
    Require(gemm.Dense({.matrix = layer.qkv,
                        .operand = operand.data(),
                        .token_count = tokens,
                        .y = projected.data(),
                        .stride = kProjected},
                       bench.stream));
  });
  report("heads", rows * kProjected * 4, 0, [&] {
    Require(RunHeads({.bf16 = projected.data(),
                      .stride = kProjected,
                      .token_count = tokens,
                      .query_heads = kQueryHeads,
                      .q_norm = bench.head_norm.data(),
                      .k_norm = bench.head_norm.data(),
                      .epsilon = kEpsilon,
                      .cos = bench.cos.data(),
                      .sin = bench.cos.data(),
                      .rotary_dim = kHeadDim,
                      .kv = bench.kv(0),
                      .queries_bf16 = queries.data()},
                     bench.stream));
  });
  for (const GemmPath path : {GemmPath::kMmaSync, GemmPath::kBest}) {
    report(path == GemmPath::kBest ? "attention" : "attention, mma.sync", 0,
           2.0 * rows * rows * kQueryWidth, [&] {
             Require(RunPrefillAttention({.queries = queries.data(),
                                          .token_count = tokens,
                                          .query_heads = kQueryHeads,
                                          .kv = bench.kv(1),
                                          .scale = 0.088f,
                                          .operand = operand.data(),
                                          .path = path},
                                         bench.stream));
           });
  }
  report("output projection, added", 0, 2.0 * rows * kQueryWidth * kHidden, [&] {
    Require(gemm.Dense({.matrix = layer.o,
                        .operand = operand.data(),
                        .token_count = tokens,
                        .output = DenseProduct::Output::kAddF32,
                        .y = x.data(),
                        .stride = kHidden},
                       bench.stream));
  });
  report("router and choice", 0, 2.0 * rows * kExperts * kHidden, [&] {
    Require(RunRouter({.matrix = layer.router,
                       .input = {x.data(), kHidden, layer.norm.data(), kEpsilon},
                       .token_count = tokens,
                       .top_k = kTopK,
                       .selection = {.normalize = true},
                       .logits = logits.data(),
                       .experts = experts.data(),
                       .weights = weights.data(),
                       .counter = counter.data()},
                      bench.stream));
  });
  report("order by expert", 0, 0, [&] {
    Require(SortByExpert({experts.data(), tokens, kTopK, kExperts, offsets.data(),
                          token_rows.data(), positions.data()},
                         bench.stream));
  });
}

int Main(int count, char** arguments) {
  Settings settings;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = arguments[i], value = arguments[i + 1];
    if (name == "--past") settings.past = static_cast<uint32_t>(std::stoul(value));
    if (name == "--tokens") settings.tokens = static_cast<uint32_t>(std::stoul(value));
    if (name == "--encoding") settings.encoding = ParseEncoding(value).value();
  }
  if (const auto gemm = GroupedGemm::Create(); !gemm.ok()) {
    std::fprintf(stderr, "%s\n", gemm.status().ToString().c_str());
    return 1;
  }
  Bench bench(settings);
  MeasureCopy(bench.stream);
  for (const uint32_t tokens : {1u, 4u, 8u}) Decode(bench, tokens).Measure();
  MeasurePrefill(bench);
  return 0;
}

}  // namespace
}  // namespace moraine::gpu

int main(int count, char** arguments) { return moraine::gpu::Main(count, arguments); }
