// The routed experts of one layer on a GPU: the grouped GEMM over records, beside cuBLAS in the
// same run.
//
//   grouped_gemm_bench [--quick]
//
// Shapes are those of published models, routing is uniform (each token takes top_k different
// experts), weights and activations are random. Each part is timed by events, 3 runs to warm up,
// then the median of 20; every expert has its own record, so that weights come from memory as in a
// layer that follows others. TFLOP/s counts 2 x rows x 3 x hidden x intermediate over gate-up and
// down; gathering and combining are listed beside. One JSON line a measurement, then a table.
// bench/peers/grouped_mm.py is the peer.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "compute/cuda/device_array.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/random_tiles.h"

namespace moraine::gpu {
namespace {

struct Model {
  const char* name;
  uint32_t hidden, intermediate, experts, top_k;
};
constexpr Model kModels[] = {{"DeepSeek-V2-Lite", 2048, 1408, 64, 6},
                             {"Qwen3-30B-A3B", 2048, 768, 128, 8},
                             {"Qwen3-Coder-Next", 2048, 512, 512, 10},
                             {"Qwen3-235B-A22B", 4096, 1536, 128, 8}};
constexpr int kWarmUps = 3, kRuns = 20;

void Require(const Status& status) { CHECK(status.ok(), status.ToString()); }
template <typename T>
T Require(Result<T> result) {
  CHECK(result.ok(), result.status().ToString());
  return std::move(*result);
}
void Require(cudaError_t error) { CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

// Median milliseconds of each part; the parts of one run follow each other.
std::vector<double> Time(const std::vector<std::function<void()>>& parts) {
  std::vector<cudaEvent_t> events(parts.size() + 1);
  for (cudaEvent_t& event : events) Require(cudaEventCreate(&event));
  std::vector<std::vector<double>> times(parts.size());
  for (int run = 0; run < kWarmUps + kRuns; ++run) {
    Require(cudaEventRecord(events[0], nullptr));
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i]();
      Require(cudaEventRecord(events[i + 1], nullptr));
    }
    Require(cudaDeviceSynchronize());
    for (size_t i = 0; run >= kWarmUps && i < parts.size(); ++i) {
      float ms = 0;
      Require(cudaEventElapsedTime(&ms, events[i], events[i + 1]));
      times[i].push_back(ms);
    }
  }
  for (const cudaEvent_t event : events) Require(cudaEventDestroy(event));
  std::vector<double> medians;
  for (auto& list : times) {
    std::nth_element(list.begin(), list.begin() + kRuns / 2, list.end());
    medians.push_back(list[kRuns / 2]);
  }
  return medians;
}

DeviceArray<uint16_t> RandomBf16(size_t count, uint64_t seed) {
  std::vector<std::byte> bytes(AlignUp(count * 2, TileBytes(Encoding::kBf16)));
  FillRandomTiles(Encoding::kBf16, 1.0f, seed, bytes);
  std::vector<uint16_t> values(count);
  std::memcpy(values.data(), bytes.data(), count * 2);
  return Require(DeviceArray<uint16_t>::Copy(values));
}

// bf16 8192^3, float32 sums: TFLOP/s.
double CublasTflops() {
  constexpr int n = 8192;
  const auto a = RandomBf16(size_t{n} * n, 1), b = RandomBf16(size_t{n} * n, 2);
  const auto c = Require(DeviceArray<uint16_t>::Allocate(size_t{n} * n));
  cublasHandle_t handle;
  CHECK(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS, "cuBLAS does not start");
  const float one = 1, zero = 0;
  const auto product = [&] {
    const cublasStatus_t status = cublasGemmEx(
        handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a.data(), CUDA_R_16BF, n, b.data(),
        CUDA_R_16BF, n, &zero, c.data(), CUDA_R_16BF, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    CHECK(status == CUBLAS_STATUS_SUCCESS, "cublasGemmEx failed");
  };
  const double ms = Time({product})[0];
  cublasDestroy(handle);
  return 2.0 * n * n * n / ms * 1e-9;
}

// Records of a layer: 4 different ones in turn, each expert its own memory.
struct Records {
  Records(const ExpertLayout& layout, uint32_t count)
      : bytes(Require(DeviceArray<std::byte>::Allocate(layout.record_bytes() * count))) {
    constexpr uint32_t kDifferent = 4;
    std::vector<const std::byte*> pointers;
    for (uint32_t e = 0; e < count; ++e) {
      const uint64_t at = e * layout.record_bytes();
      if (e < kDifferent) {
        std::vector<std::byte> record(layout.record_bytes());
        const std::span<std::byte> all(record);
        const uint64_t down = layout.down_offset();
        FillRandomTiles(layout.gate_up, 0.02f, 2 * e, all.first(down));
        FillRandomTiles(layout.down, 0.02f, 2 * e + 1,
                        all.subspan(down, layout.payload_bytes() - down));
        Require(bytes.Write(at, record));
      } else {
        Require(cudaMemcpy(bytes.data() + at, bytes.data() + e % kDifferent * layout.record_bytes(),
                           layout.record_bytes(), cudaMemcpyDeviceToDevice));
      }
      pointers.push_back(bytes.data() + at);
    }
    addresses = Require(DeviceArray<const std::byte*>::Copy(pointers));
  }
  DeviceArray<std::byte> bytes;
  DeviceArray<const std::byte*> addresses = Require(DeviceArray<const std::byte*>::Allocate(1));
};

struct Routing {
  std::vector<uint32_t> offsets, token_rows, positions;
};
Routing UniformRouting(const Model& model, uint32_t tokens) {
  Random random(42);
  std::vector<std::vector<uint32_t>> by_expert(model.experts);  // token x top_k + rank
  std::vector<uint32_t> order(model.experts);
  for (uint32_t e = 0; e < model.experts; ++e) order[e] = e;
  for (uint32_t token = 0; token < tokens; ++token) {
    for (uint32_t rank = 0; rank < model.top_k; ++rank) {
      std::swap(order[rank], order[rank + random.Below(model.experts - rank)]);
      by_expert[order[rank]].push_back(token * model.top_k + rank);
    }
  }
  Routing routing;
  routing.offsets = {0};
  routing.positions.resize(size_t{tokens} * model.top_k);
  for (const auto& list : by_expert) {
    for (const uint32_t at : list) {
      routing.positions[at] = static_cast<uint32_t>(routing.token_rows.size());
      routing.token_rows.push_back(at / model.top_k);
    }
    routing.offsets.push_back(static_cast<uint32_t>(routing.token_rows.size()));
  }
  return routing;
}

struct Setting {
  Model model;
  uint32_t tokens;
  Encoding encoding;
  GemmPath path;
};

nlohmann::json Measure(const Setting& setting, double cublas_tflops) {
  const Model& model = setting.model;
  const GroupedGemm gemm = Require(GroupedGemm::Create(setting.path));
  const ExpertLayout layout = {setting.encoding, setting.encoding, model.hidden,
                               model.intermediate};
  const Records records(layout, model.experts);
  const Routing routing = UniformRouting(model, setting.tokens);
  const auto row_count = static_cast<uint32_t>(routing.token_rows.size());
  const auto offsets = Require(DeviceArray<uint32_t>::Copy(routing.offsets));
  const auto token_rows = Require(DeviceArray<uint32_t>::Copy(routing.token_rows));
  const auto positions = Require(DeviceArray<uint32_t>::Copy(routing.positions));
  const std::vector<float> shares(row_count, 1.0f / static_cast<float>(model.top_k));
  const auto weights = Require(DeviceArray<float>::Copy(shares));
  const auto x = RandomBf16(size_t{setting.tokens} * model.hidden, 3);
  const auto operand = Require(DeviceArray<uint16_t>::Allocate(size_t{row_count} * model.hidden));
  const auto activated = Require(
      DeviceArray<uint16_t>::Allocate(size_t{row_count} * OperandStride(model.intermediate)));
  const auto rows = Require(DeviceArray<uint16_t>::Allocate(size_t{row_count} * model.hidden));
  const auto sums = Require(DeviceArray<float>::Allocate(size_t{setting.tokens} * model.hidden));
  const RoutedExperts experts = {layout, records.addresses.data(), model.experts, offsets.data(),
                                 row_count};
  const std::vector<double> ms =
      Time({[&] {
              Require(gemm.GatherOperand({x.data(), model.hidden, token_rows.data(), row_count,
                                          model.hidden, operand.data()},
                                         nullptr));
            },
            [&] { Require(gemm.GateUp(experts, operand.data(), activated.data(), nullptr)); },
            [&] { Require(gemm.Down(experts, activated.data(), rows.data(), nullptr)); },
            [&] {
              Require(gemm.Combine({rows.data(), model.hidden, positions.data(), weights.data(),
                                    setting.tokens, model.top_k, model.hidden, sums.data()},
                                   nullptr));
            }});
  const double flops = 2.0 * row_count * model.hidden * model.intermediate;  // of one matrix
  const double tflops = 3 * flops / (ms[1] + ms[2]) * 1e-9;
  return {{"model", model.name},
          {"tokens", setting.tokens},
          {"encoding", EncodingName(setting.encoding)},
          {"kernel", setting.path == GemmPath::kWgmma ? "wgmma" : "mma.sync"},
          {"gather_ms", ms[0]},
          {"gate_up_ms", ms[1]},
          {"down_ms", ms[2]},
          {"combine_ms", ms[3]},
          {"gate_up_tflops", 2 * flops / ms[1] * 1e-9},
          {"down_tflops", flops / ms[2] * 1e-9},
          {"tflops", tflops},
          {"percent_of_cublas", 100 * tflops / cublas_tflops}};
}

int Main(bool quick) {
  const GroupedGemm best = Require(GroupedGemm::Create());
  const double cublas = CublasTflops();
  std::printf("{\"cublas_bf16_8192_tflops\": %.1f}\n", cublas);
  std::vector<Setting> settings;
  const auto add = [&](Encoding encoding, GemmPath path,
                       std::initializer_list<uint32_t> token_counts) {
    for (const Model& model : kModels) {
      for (const uint32_t tokens : token_counts)
        settings.push_back({model, tokens, encoding, path});
    }
  };
  add(Encoding::kQ4, best.path(), {2048, 8192});
  if (!quick) {
    add(Encoding::kQ8, best.path(), {8192});
    add(Encoding::kBf16, best.path(), {8192});
    if (best.path() != GemmPath::kMmaSync) add(Encoding::kQ4, GemmPath::kMmaSync, {2048, 8192});
  }
  std::string table =
      "model              tokens weights kernel    gather gate+up   down combine ms"
      "   TFLOP/s gate+up down  both  % of cuBLAS\n";
  for (const Setting& setting : settings) {
    const nlohmann::json result = Measure(setting, cublas);
    std::printf("%s\n", result.dump().c_str());
    char line[256];
    std::snprintf(line, sizeof(line),
                  "%-18s %6u %-7s %-8s %7.3f %7.3f %6.3f %7.3f %18.0f %5.0f %5.0f %8.1f\n",
                  setting.model.name, setting.tokens, EncodingName(setting.encoding),
                  result["kernel"].get<std::string>().c_str(), result["gather_ms"].get<double>(),
                  result["gate_up_ms"].get<double>(), result["down_ms"].get<double>(),
                  result["combine_ms"].get<double>(), result["gate_up_tflops"].get<double>(),
                  result["down_tflops"].get<double>(), result["tflops"].get<double>(),
                  result["percent_of_cublas"].get<double>());
    table += line;
  }
  std::printf("%scuBLAS bf16 8192^3: %.0f TFLOP/s, again at the end: %.0f\n", table.c_str(), cublas,
              CublasTflops());
  return 0;
}

}  // namespace
}  // namespace moraine::gpu

int main(int argc, char** argv) {
  if (argc > 2 || (argc == 2 && std::strcmp(argv[1], "--quick") != 0)) {
    std::fprintf(stderr, "usage: grouped_gemm_bench [--quick]\n");
    return 2;
  }
  return moraine::gpu::Main(argc == 2);
}
