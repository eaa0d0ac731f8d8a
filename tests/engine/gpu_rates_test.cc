// The GPU's rates, measured: that they are of this machine's order, and the same twice. Skipped, saying so,
// where there is no GPU.
#include "engine/gpu/gpu_rates.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <tuple>

namespace moraine {
namespace {

TEST(GpuRatesTest, AreTheSameTwice) {
  const Result<MeasuredGpu> first = MeasureGpu();
  if (first.status().code() == StatusCode::kUnsupported) GTEST_SKIP() << first.status().message();
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  const Result<MeasuredGpu> second = MeasureGpu();
  ASSERT_TRUE(second.ok()) << second.status().ToString();
  for (const auto& [name, rate, unit] :
       {std::tuple{"to the device, GB/s", &MeasuredGpu::to_device_bytes_per_s, 1e9},
        std::tuple{"to the host, GB/s", &MeasuredGpu::to_host_bytes_per_s, 1e9},
        std::tuple{"VRAM, GB/s", &MeasuredGpu::memory_bytes_per_s, 1e9},
        std::tuple{"tensor cores, TFLOP/s", &MeasuredGpu::operations_per_s, 1e12}}) {
    const double a = (*first).*rate, b = (*second).*rate;
    std::printf("%s: %.1f, again %.1f\n", name, a / unit, b / unit);
    EXPECT_GT(a, 0) << name;
    EXPECT_NEAR(a, b, 0.15 * a) << name;
  }
  EXPECT_GT(first->memory_bytes_per_s, first->to_device_bytes_per_s);
  EXPECT_GT(first->operations_per_s, 1e12);
  EXPECT_GT(first->gpu.total_bytes, 0u);
  EXPECT_FALSE(first->gpu.name.empty());
}

}  // namespace
}  // namespace moraine
