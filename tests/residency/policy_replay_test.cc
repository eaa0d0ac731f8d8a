#include "policy_replay.h"

#include <gtest/gtest.h>

#include "residency/eviction_policy.h"

namespace moraine {
namespace {

constexpr uint64_t kSeed = 20260;
constexpr uint32_t kLayers = 48, kExperts = 128, kTopK = 6;
constexpr uint32_t kAll = kLayers * kExperts;

const RoutingTrace& Trace() {
  static const RoutingTrace trace = MakeSkewedTrace(kSeed, kLayers, kExperts, kTopK, 120);
  return trace;
}

TEST(PolicyReplayTest, AtTenPercentHeatBeatsLruAndBothBeatChance) {
  const double heat = HitRate(Trace(), "heat", kAll / 10);
  const double lru = HitRate(Trace(), "lru", kAll / 10);
  EXPECT_GE(heat, lru) << "seed " << kSeed;
  EXPECT_GE(lru, 0.25) << "seed " << kSeed;  // chance: 10 %
}

TEST(PolicyReplayTest, SievePerLayerCompletesItsTurns) {
  // As one global queue its hand never comes round and it falls to chance.
  EXPECT_GE(HitRate(Trace(), "sieve", kAll / 10), 0.3) << "seed " << kSeed;
}

TEST(PolicyReplayTest, BelowOneTokensSlotsLruCollapsesAndHeatDoesNot) {
  const uint32_t capacity = kLayers * kTopK * 8 / 10;
  EXPECT_LE(HitRate(Trace(), "lru", capacity), 0.03) << "seed " << kSeed;
  EXPECT_GE(HitRate(Trace(), "heat", capacity), 0.2) << "seed " << kSeed;
}

TEST(PolicyReplayTest, MoreSlotsNeverMakeHeatWorse) {
  double last = 0;
  for (uint32_t percent : {5u, 10u, 20u, 30u}) {
    const double rate = HitRate(Trace(), "heat", kAll * percent / 100);
    EXPECT_GT(rate, last) << percent << " %, seed " << kSeed;
    last = rate;
  }
}

TEST(PolicyReplayTest, ReplaysAreDeterministic) {
  for (const char* policy : EvictionPolicyNames()) {
    EXPECT_EQ(HitRate(Trace(), policy, kAll / 10), HitRate(Trace(), policy, kAll / 10));
  }
}

}  // namespace
}  // namespace moraine
