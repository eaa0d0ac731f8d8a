// The share of lookups that miss, by the share of experts in memory.
#include "engine/miss_curve.h"

#include <gtest/gtest.h>

#include <vector>

namespace moraine {
namespace {

TEST(MissCurve, TheHottestAreResident) {
  const MissCurve curve({0.1f, 0.4f, 0.2f, 0.3f});
  EXPECT_TRUE(curve.learnt());
  EXPECT_DOUBLE_EQ(curve.MissShare(0), 1);
  EXPECT_NEAR(curve.MissShare(0.25), 0.6, 1e-6);
  EXPECT_NEAR(curve.MissShare(0.375), 0.45, 1e-6);
  EXPECT_NEAR(curve.MissShare(0.75), 0.1, 1e-6);
  EXPECT_DOUBLE_EQ(curve.MissShare(1), 0);
  EXPECT_DOUBLE_EQ(curve.MissShare(25), 0);
}

TEST(MissCurve, WithoutHeatNothingIsLearnt) {
  for (const std::vector<float>& heat : {std::vector<float>{}, std::vector<float>{0, 0}}) {
    const MissCurve curve(heat);
    EXPECT_FALSE(curve.learnt());
    EXPECT_DOUBLE_EQ(curve.MissShare(0.5), 0);
  }
}

TEST(MissCurve, OfRecordedRoutingIsStraightBetweenWhatWasMeasured) {
  const MissCurve curve = MissCurve::OfRecordedRouting();
  EXPECT_DOUBLE_EQ(curve.MissShare(0), 1);
  EXPECT_DOUBLE_EQ(curve.MissShare(0.10), 0.393);
  EXPECT_DOUBLE_EQ(curve.MissShare(0.15), (0.393 + 0.211) / 2);
  EXPECT_DOUBLE_EQ(curve.MissShare(1), 0);
}

}  // namespace
}  // namespace moraine
