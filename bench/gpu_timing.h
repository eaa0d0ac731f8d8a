// What benchmarks of GPU kernels share: random arrays, medians by events and of recorded graphs, lines of JSON
// that compare with a device copy of the same run.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "base/status.h"
#include "compute/cuda/device_array.h"
#include "compute/cuda/gpu_attention.h"
#include "compute/encode.h"

namespace moraine::gpu {

inline constexpr int kWarmUps = 3, kTimedRuns = 20;

inline void Require(const Status& status) { CHECK(status.ok(), status.ToString()); }
template <typename T>
T Require(Result<T> result) {
  CHECK(result.ok(), result.status().ToString());
  return std::move(*result);
}
inline void Require(cudaError_t error) { CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

inline DeviceArray<float> Floats(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(std::min<size_t>(count, 1 << 16));
  for (float& value : values) value = random.Normal();
  auto array = Require(DeviceArray<float>::Allocate(count));
  for (size_t at = 0; at < count; at += values.size()) {
    Require(array.Write(at, std::span(values).first(std::min(values.size(), count - at))));
  }
  return array;
}
inline DeviceArray<uint16_t> Bf16(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint16_t> values(std::min<size_t>(count, 1 << 16));
  for (uint16_t& value : values) value = FloatToBf16(random.Normal());
  auto array = Require(DeviceArray<uint16_t>::Allocate(count));
  for (size_t at = 0; at < count; at += values.size()) {
    Require(array.Write(at, std::span(values).first(std::min(values.size(), count - at))));
  }
  return array;
}
inline double Median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// Median milliseconds of what `work` enqueues.
inline double Time(Stream stream, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin));
  Require(cudaEventCreate(&end));
  std::vector<double> times;
  for (int run = 0; run < kWarmUps + kTimedRuns; ++run) {
    Require(cudaEventRecord(begin, stream));
    work();
    Require(cudaEventRecord(end, stream));
    Require(cudaStreamSynchronize(stream));
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begin, end));
    if (run >= kWarmUps) times.push_back(ms);
  }
  return Median(times);
}
inline double TimeGraph(Stream stream, const std::function<void()>& work) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  Require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  Require(cudaStreamEndCapture(stream, &graph));
  Require(cudaGraphInstantiate(&executable, graph, 0));
  const double ms = Time(stream, [&] { Require(cudaGraphLaunch(executable, stream)); });
  Require(cudaGraphExecDestroy(executable));
  Require(cudaGraphDestroy(graph));
  return ms;
}

inline double copy_gbps = 0;
inline void Report(const char* what, double us, double bytes, double flops, const char* note = "") {
  nlohmann::json line = {{"kernel", what}, {"us", us}, {"note", note}};
  if (bytes > 0) {
    line["gb_per_s"] = bytes / us / 1e3;
    line["of_copy"] = bytes / us / 1e3 / copy_gbps;
  }
  if (flops > 0) line["tflops"] = flops / us / 1e6;
  std::printf("%s\n", line.dump().c_str());
}

inline void MeasureCopy(Stream stream) {
  constexpr size_t kBytes = size_t{2} << 30;
  auto from = Require(DeviceArray<std::byte>::Allocate(kBytes));
  auto to = Require(DeviceArray<std::byte>::Allocate(kBytes));
  Require(from.Fill(0x5A));
  const double ms = Time(stream, [&] {
    Require(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream));
  });
  copy_gbps = 2.0 * kBytes / ms / 1e6;
  Report("device copy, read and written", ms * 1e3, 2.0 * kBytes, 0);
}

}  // namespace moraine::gpu
