// RopeTable: frequencies against their definition, YaRN's borders, and both orders of pairs.
#include "model/blocks/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "base/random.h"

namespace moraine {
namespace {

RopeConfig Yarn(uint32_t dim, float theta, YarnConfig yarn) {
  RopeConfig config{.theta = theta, .rotary_dim = dim};
  config.yarn = yarn;
  return config;
}

TEST(RopeTable, PlainFrequencies) {
  const std::vector<float> f = InverseFrequencies({.theta = 100, .rotary_dim = 4});
  ASSERT_EQ(f.size(), 2u);
  EXPECT_FLOAT_EQ(f[0], 1);
  EXPECT_FLOAT_EQ(f[1], 0.1f);
}

// A quarter of 20 dimensions is 5: three frequencies, of fifths.
TEST(RopeTable, AnOddNumberOfDimensions) {
  const std::vector<float> f =
      InverseFrequencies({.theta = 100, .rotary_dim = 6, .frequency_dim = 5});
  ASSERT_EQ(f.size(), 3u);
  EXPECT_FLOAT_EQ(f[1], std::pow(100.0f, -0.4f));
  EXPECT_FLOAT_EQ(f[2], std::pow(100.0f, -0.8f));
}

// Dimensions that turn more than beta_fast times over the original positions stay, those that turn less
// than beta_slow times are divided by the factor, and those between lie between.
TEST(RopeTable, YarnLeavesFastDimensionsAndInterpolatesSlowOnes) {
  const YarnConfig yarn{.factor = 8, .beta_fast = 32, .beta_slow = 1, .original_positions = 4096};
  const RopeConfig config = Yarn(64, 150000, yarn);
  const std::vector<float> scaled = InverseFrequencies(config);
  const std::vector<float> plain = InverseFrequencies({.theta = 150000, .rotary_dim = 64});
  int kept = 0, divided = 0, between = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double turns = plain[i] * 4096 / (2 * std::numbers::pi);
    const double ratio = scaled[i] / plain[i];
    // A dimension more to either side, because the borders are whole dimensions.
    const double step = std::pow(150000, 1.0 / 32);
    if (turns > 32 * step) {
      EXPECT_NEAR(ratio, 1, 1e-6) << i;
      ++kept;
    } else if (turns < 1 / step) {
      EXPECT_NEAR(ratio, 0.125, 1e-6) << i;
      ++divided;
    } else {
      EXPECT_GE(ratio, 0.1249) << i;
      EXPECT_LE(ratio, 1.0001) << i;
      between += ratio > 0.126 && ratio < 0.999;
    }
  }
  EXPECT_GT(kept, 5);
  EXPECT_GT(divided, 5);
  EXPECT_GT(between, 3);
}

TEST(RopeTable, BordersThatAreNotWholeDimensions) {
  YarnConfig yarn{.factor = 4, .beta_fast = 32, .beta_slow = 1, .original_positions = 4096};
  const std::vector<float> whole = InverseFrequencies(Yarn(64, 150000, yarn));
  yarn.truncate = false;
  EXPECT_NE(InverseFrequencies(Yarn(64, 150000, yarn)), whole);
}

TEST(RopeTable, MscaleIsOneForSmallFactors) {
  EXPECT_EQ(YarnMscale(1, 0.7f), 1);
  EXPECT_EQ(YarnMscale(0.5f, 1), 1);
  EXPECT_FLOAT_EQ(YarnMscale(40, 0.707f), 0.1f * 0.707f * std::log(40.0f) + 1);
}

// Both orders rotate the same pairs by the same angles: one is the other's permutation.
TEST(RopeTable, InterleavedIsHalvesPermuted) {
  constexpr uint32_t kHeads = 3, kHeadDim = 14, kRotary = 8, kTokens = 5, kFirst = 7;
  constexpr size_t kStride = kHeads * kHeadDim + 2;
  ThreadPool pool(Topology::Detect(), {.thread_count = 2, .pin = false});
  CpuBackend backend(*ChooseIsa(), pool, 8, 64);
  RopeConfig config{.theta = 500, .rotary_dim = kRotary};
  config.yarn = YarnConfig{.factor = 2, .original_positions = 16, .attention_factor = 1.25f};
  RopeTable halves(config, kTokens);
  config.interleaved = true;
  RopeTable interleaved(config, kTokens);
  halves.Prepare(kFirst, kTokens);
  interleaved.Prepare(kFirst, kTokens);
  Random random(5);
  std::vector<float> a(kTokens * kStride), b(a.size());
  for (float& value : a) value = random.Normal();
  const auto place = [](uint32_t i) {  // of the interleaved order among the halves
    return i >= kRotary ? i : i % 2 * (kRotary / 2) + i / 2;
  };
  const auto permute = [&](const std::vector<float>& from, std::vector<float>* to) {
    *to = from;
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t h = 0; h < kHeads; ++h) {
        const size_t base = t * kStride + h * kHeadDim;
        for (uint32_t i = 0; i < kHeadDim; ++i) (*to)[base + i] = from[base + place(i)];
      }
    }
  };
  const std::vector<float> original = a;
  permute(a, &b);
  halves.Apply(backend, a.data(), kStride, {0, kTokens}, kHeads, kHeadDim);
  interleaved.Apply(backend, b.data(), kStride, {0, kTokens}, kHeads, kHeadDim);
  std::vector<float> expected;
  permute(a, &expected);
  for (size_t i = 0; i < b.size(); ++i) EXPECT_NEAR(b[i], expected[i], 1e-6) << i;
  // Pair 0 of the first head: angle kFirst x 1, scaled.
  const float c = 1.25f * std::cos(7.0f), s = 1.25f * std::sin(7.0f);
  EXPECT_NEAR(a[0], original[0] * c - original[kRotary / 2] * s, 1e-5);
  EXPECT_EQ(a[kRotary], original[kRotary]) << "what does not rotate stays";
}

}  // namespace
}  // namespace moraine
