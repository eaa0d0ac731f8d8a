// Multi-head latent attention on a GPU (compute/cuda/latent_attention.h) at DeepSeek's sizes: 16
// heads (V2-Lite) and 128 (V3). What each kernel takes for one token and for 8 behind a past, and
// for a prompt.
//
//   latent_attention_bench [--past 8192] [--tokens 8192]
//
// Random data, medians of 20 by events. Bounds: of single tokens the bytes that must be read once
// over what a device copy moves in the same run, of prompts the rate of arithmetic (half of the
// square counted), to be compared with cuBLAS (grouped_gemm_bench). One JSON line a measurement.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/random.h"
#include "compute/cuda/device_array.h"
#include "compute/cuda/latent_attention.h"
#include "compute/cuda/stacked_gemv.h"

namespace moraine::gpu {
namespace {

constexpr LatentSizes kSizes = kLatentSizes[0];
constexpr uint32_t kWidth = kSizes.rank + kSizes.rope, kHeadDim = kSizes.nope + kSizes.rope;

template <typename T>
T Require(Result<T> result) {
  CHECK(result.ok(), result.status().ToString());
  return std::move(*result);
}
void Require(const Status& status) { CHECK(status.ok(), status.ToString()); }
void Require(cudaError_t error) { CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

template <typename T>
DeviceArray<T> Values(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<T> block(std::min<size_t>(count, 1 << 18));
  for (T& value : block) {
    const float normal = random.Normal();
    if constexpr (std::is_same_v<T, float>) {
      value = normal;
    } else {
      uint32_t bits;
      std::memcpy(&bits, &normal, 4);
      value = static_cast<T>(bits >> 16);
    }
  }
  auto array = Require(DeviceArray<T>::Allocate(count));
  for (size_t at = 0; at < count; at += block.size()) {
    Require(array.Write(at, std::span<const T>(block).first(std::min(block.size(), count - at))));
  }
  return array;
}

double MedianUs(const std::function<void()>& work) {
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin));
  Require(cudaEventCreate(&end));
  std::vector<float> times;
  for (int run = 0; run < 23; ++run) {
    Require(cudaEventRecord(begin));
    work();
    Require(cudaEventRecord(end));
    Require(cudaEventSynchronize(end));
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begin, end));
    if (run >= 3) times.push_back(ms);
  }
  std::ranges::nth_element(times, times.begin() + 10);
  return times[10] * 1e3;
}

void Print(const char* kernel, uint32_t heads, uint32_t tokens, uint32_t past, double us,
           const char* unit, double rate) {
  const nlohmann::json line = {{"kernel", kernel}, {"heads", heads}, {"tokens", tokens},
                               {"past", past},     {"us", us},       {unit, rate}};
  std::printf("%s\n", line.dump().c_str());
}

struct Pages {
  explicit Pages(uint32_t positions)
      : pool(Values<uint16_t>(
            (positions / 64 + 1) * LatentPageElements(kSizes.rank, kSizes.rope), 1)) {
    std::vector<uint32_t> table;
    for (uint32_t p = 0; p <= positions / 64; ++p) table.push_back(positions / 64 - p);
    tables = Require(DeviceArray<uint32_t>::Copy(table));
  }
  LatentCache view() const {
    return {pool.data(), nullptr, kSizes.rank, kSizes.rope, tables.data(), 0};
  }

  DeviceArray<uint16_t> pool;
  DeviceArray<uint32_t> tables = Require(DeviceArray<uint32_t>::Allocate(1));
};

void MeasureFew(uint32_t heads, uint32_t tokens, uint32_t past) {
  const Pages pages(past + 64);
  const auto queries = Values<float>(size_t{tokens} * heads * kWidth, 2);
  const auto positions =
      Require(DeviceArray<uint32_t>::Copy(std::vector<uint32_t>(tokens, past)));
  auto scratch = Require(
      DeviceArray<unsigned char>::Allocate(LatentDecodeScratchBytes(tokens, heads, kSizes.rank)));
  auto out = Require(DeviceArray<float>::Allocate(size_t{tokens} * heads * kSizes.rank));
  const double us = MedianUs([&] {
    Require(RunLatentDecodeAttention({.queries = queries.data(),
                                      .token_count = tokens,
                                      .heads = heads,
                                      .positions = positions.data(),
                                      .cache = pages.view(),
                                      .scale = 0.07f,
                                      .scratch = scratch.data(),
                                      .out = out.data()},
                                     nullptr));
  });
  Print("attention of single tokens", heads, tokens, past, us, "cache_gb_per_s",
        1e-3 * (past + 1) * kWidth * 2 / us);
  const uint32_t rows = heads * kSizes.rank;
  const auto weights = Values<uint16_t>(MatrixBytes(Encoding::kBf16, rows, kSizes.nope) / 2, 3);
  const StackedGemv k_up = {
      .matrix = {reinterpret_cast<const std::byte*>(weights.data()), Encoding::kBf16, rows,
                 kSizes.nope},
      .count = heads, .rows = kSizes.rank, .x = queries.data(), .x_stride = heads * kHeadDim,
      .x_head_stride = kHeadDim, .token_count = tokens, .y = out.data(), .y_stride = rows,
      .y_head_stride = kSizes.rank};
  const double up_us = MedianUs([&] { Require(RunStackedGemv(k_up, nullptr)); });
  Print("k_up of single tokens, bf16", heads, tokens, past, up_us, "weights_gb_per_s",
        1e-3 * weights.size() * 2 / up_us);
}

void MeasureMany(uint32_t heads, uint32_t tokens, GemmPath path) {
  const Pages pages(tokens);
  const auto queries = Values<uint16_t>(size_t{tokens} * heads * kHeadDim, 4);
  const auto keys = Values<uint16_t>(size_t{tokens} * heads * kSizes.nope, 5);
  const auto values = Values<uint16_t>(size_t{tokens} * heads * kSizes.value, 6);
  auto operand =
      Require(DeviceArray<uint16_t>::Allocate(size_t{tokens} * heads * kSizes.value));
  const double us = MedianUs([&] {
    Require(RunLatentPrefillAttention({.queries = queries.data(),
                                       .query_stride = heads * kHeadDim,
                                       .token_count = tokens,
                                       .heads = heads,
                                       .keys = keys.data(),
                                       .values = values.data(),
                                       .sizes = kSizes,
                                       .cache = pages.view(),
                                       .scale = 0.07f,
                                       .operand = operand.data(),
                                       .operand_stride = heads * kSizes.value,
                                       .path = path},
                                      nullptr));
  });
  const double flops = double{1} * tokens * tokens * heads * (kHeadDim + kSizes.value);
  const bool wgmma = path == GemmPath::kWgmma;
  Print(wgmma ? "attention of a prompt, wgmma" : "attention of a prompt, mma.sync", heads,
        tokens, 0, us, "tflop_per_s", flops / us * 1e-6);
}

double CopyRate() {
  constexpr size_t kBytes = size_t{1} << 30;
  auto from = Require(DeviceArray<unsigned char>::Allocate(kBytes));
  auto to = Require(DeviceArray<unsigned char>::Allocate(kBytes));
  const double us = MedianUs(
      [&] { Require(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice)); });
  return 2e-3 * kBytes / us;
}

}  // namespace
}  // namespace moraine::gpu

int main(int argc, char** argv) {
  using namespace moraine::gpu;
  uint32_t past = 8192, tokens = 8192;
  for (int i = 1; i + 1 < argc; i += 2) {
    uint32_t& count = std::strcmp(argv[i], "--past") == 0 ? past : tokens;
    count = static_cast<uint32_t>(std::atoi(argv[i + 1]));
  }
  Print("device copy, read and written", 0, 0, 0, 0, "gb_per_s", CopyRate());
  for (const uint32_t heads : {16u, 128u}) {
    for (const uint32_t few : {1u, 8u}) {
      MeasureFew(heads, few, 1024);
      MeasureFew(heads, few, past);
    }
    MeasureMany(heads, tokens, GemmPath::kWgmma);
    if (heads == 16) MeasureMany(heads, tokens, GemmPath::kMmaSync);
  }
  return 0;
}
