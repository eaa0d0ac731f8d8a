// Where a piece of a prompt goes, out of times given by hand.
#include "engine/prefill_choice.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

constexpr int64_t kMs = 1'000'000;

TEST(PrefillChoice, AFixedLengthIsTaken) {
  const PrefillChoice choice(100);
  EXPECT_FALSE(choice.OnGpu(99));
  EXPECT_TRUE(choice.OnGpu(100));
  EXPECT_EQ(choice.ProbeTokens(5000), 0u);
  EXPECT_EQ(choice.break_even_tokens(), 100u);
}

TEST(PrefillChoice, TheCpuIsTimedFirst) {
  PrefillChoice choice(0);
  choice.set_gpu_expected_ns(100.0 * kMs);
  EXPECT_FALSE(choice.OnGpu(8192)) << "nothing is known of the CPU";
  EXPECT_EQ(choice.ProbeTokens(63), 0u) << "short pieces go there anyway";
  EXPECT_EQ(choice.ProbeTokens(64), PrefillChoice::kProbeTokens);
  EXPECT_EQ(choice.break_even_tokens(), 0u);
  choice.Record(false, 32, 64 * kMs);  // 2 ms a token
  EXPECT_EQ(choice.ProbeTokens(8192), 0u);
  EXPECT_FALSE(choice.OnGpu(50)) << "as long as the link takes";
  EXPECT_TRUE(choice.OnGpu(51));
  EXPECT_EQ(choice.break_even_tokens(), 64u);
}

TEST(PrefillChoice, MeasuredTimesReplaceTheLinks) {
  PrefillChoice choice(0);
  choice.set_gpu_expected_ns(100.0 * kMs);
  choice.Record(false, 32, 64 * kMs);
  choice.Record(true, 4096, 5000 * kMs);  // kernels were loaded
  EXPECT_TRUE(choice.OnGpu(51));
  choice.Record(true, 4096, 400 * kMs);
  EXPECT_FALSE(choice.OnGpu(199)) << "no longer than the 400 ms of a longer one, but perhaps as long";
  EXPECT_TRUE(choice.OnGpu(201));
  choice.Record(true, 256, 300 * kMs);
  EXPECT_FALSE(choice.OnGpu(149));
  EXPECT_TRUE(choice.OnGpu(151));
  EXPECT_TRUE(choice.OnGpu(65536)) << "longer ones in proportion: 6.4 s against 131 s";
  choice.Record(false, 512, 51 * kMs);  // a warm cache: 0.1 ms a token
  EXPECT_FALSE(choice.OnGpu(600));
  EXPECT_FALSE(choice.OnGpu(151)) << "of two classes as near, the longer one's time a token";
}

TEST(PrefillChoice, TheLastTimeCountsForHalf) {
  PrefillChoice choice(0);
  choice.set_gpu_expected_ns(100.0 * kMs);
  choice.Record(false, 64, 64 * kMs);
  choice.Record(false, 64, 192 * kMs);  // 2 ms a token on average
  EXPECT_FALSE(choice.OnGpu(50));
  EXPECT_TRUE(choice.OnGpu(51));
}

}  // namespace
}  // namespace moraine
