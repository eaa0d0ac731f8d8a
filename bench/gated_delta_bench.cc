// Gated DeltaNet on a GPU (compute/cuda/gated_delta.h), a layer of Qwen3-Next's shape: what each kernel takes for a
// prompt's chunk and for a token, and the tokens a second that 36 such layers alone would allow.
//
//   gated_delta_bench [TOKENS...]          default: 1 8 2048 8192
//
// Random data, medians of 20 by events. The bound is arithmetic: four passes over a state of key_dim x values()
// a token, in float32 outside of tensor cores (67 TFLOP/s of an H200, by its data sheet). One JSON line
// a measurement.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/random.h"
#include "compute/cuda/device_array.h"
#include "compute/cuda/gated_delta.h"
#include "compute/cuda/grouped_gemm.h"

namespace moraine::gpu {
namespace {

constexpr DeltaShape kShape = {16, 32, 128, 128, 4};
constexpr uint32_t kLayers = 36;

template <typename T>
T Require(Result<T> result) {
  CHECK(result.ok(), result.status().ToString());
  return std::move(*result);
}
void Require(const Status& status) { CHECK(status.ok(), status.ToString()); }
void Require(cudaError_t error) { CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

DeviceArray<float> Floats(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = random.Normal();
  return Require(DeviceArray<float>::Copy(values));
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

void Measure(uint32_t tokens) {
  const uint32_t wide = kShape.channels() + kShape.values();
  const auto bf16 = Require(DeviceArray<uint16_t>::Allocate(size_t{tokens} * wide));
  Require(cudaMemset(const_cast<uint16_t*>(bf16.data()), 0x3C, size_t{tokens} * wide * 2));
  const auto conv = Floats(size_t{kShape.channels()} * kShape.taps, 1);
  const auto log = Floats(kShape.value_heads, 2), bias = Floats(kShape.value_heads, 3);
  const auto norm = Floats(kShape.value_dim, 4);
  auto a = Floats(size_t{tokens} * kShape.value_heads, 5);
  auto b = Floats(size_t{tokens} * kShape.value_heads, 6);
  auto mixed = Floats(size_t{tokens} * kShape.channels(), 7);
  auto out = Floats(size_t{tokens} * kShape.values(), 8);
  auto slots = Floats(2 * kShape.StateFloats(), 9);
  auto operand =
      Require(DeviceArray<uint16_t>::Allocate(size_t{tokens} * OperandStride(kShape.values())));
  const DeltaStates states = {.slots = slots.data(), .only = {0, tokens, 0, 1}};
  const auto mix = [&] {
    Require(RunDeltaMix({.shape = kShape, .states = states, .bf16 = bf16.data(), .stride = wide,
                         .row_count = tokens, .conv = conv.data(), .mixed = mixed.data(),
                         .a = a.data(), .b = b.data(), .decay_log = log.data(),
                         .decay_bias = bias.data()},
                        nullptr));
  };
  const auto memory = [&] {
    Require(RunDeltaMemory({.shape = kShape, .states = states, .mixed = mixed.data(),
                            .decay = a.data(), .beta = b.data(), .out = out.data()},
                           nullptr));
  };
  const auto output = [&] {
    Require(RunDeltaOutput({.shape = kShape, .values = out.data(), .row_count = tokens,
                            .z_bf16 = bf16.data() + kShape.channels(), .z_stride = wide,
                            .norm = norm.data(), .epsilon = 1e-6f, .operand = operand.data()},
                           nullptr));
  };
  const double mix_us = MedianUs(mix), memory_us = MedianUs(memory), output_us = MedianUs(output);
  const double flops = 7.0 * tokens * kShape.key_dim * kShape.values();
  const double total = mix_us + memory_us + output_us;
  const nlohmann::json line = {{"bench", "gated_delta"},
                               {"tokens", tokens},
                               {"mix_us", mix_us},
                               {"memory_us", memory_us},
                               {"output_us", output_us},
                               {"memory_tflops", flops / memory_us / 1e6},
                               {"tok_per_s_of_layers", tokens * 1e6 / (total * kLayers)}};
  std::printf("%s\n", line.dump().c_str());
}

}  // namespace
}  // namespace moraine::gpu

int main(int argc, char** argv) {
  std::vector<uint32_t> counts;
  for (int i = 1; i < argc; ++i) counts.push_back(static_cast<uint32_t>(std::atoi(argv[i])));
  if (counts.empty()) counts = {1, 8, 2048, 8192};
  for (const uint32_t tokens : counts) moraine::gpu::Measure(tokens);
  return 0;
}
