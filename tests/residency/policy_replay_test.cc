#include "policy_replay.h"

#include <gtest/gtest.h>

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
  const double heat = Replay(Trace(), "heat", kAll / 10).hit_rate();
  const double lru = Replay(Trace(), "lru", kAll / 10).hit_rate();
  EXPECT_GE(heat, lru) << "seed " << kSeed;
  EXPECT_GE(lru, 0.25) << "seed " << kSeed;  // chance: 10 %
}

TEST(PolicyReplayTest, SievePerLayerCompletesItsTurns) {
  // As one global queue its hand never comes round and it falls to chance.
  EXPECT_GE(Replay(Trace(), "sieve", kAll / 10).hit_rate(), 0.3) << "seed " << kSeed;
}

TEST(PolicyReplayTest, BelowOneTokensSlotsLruCollapsesAndHeatDoesNot) {
  const uint32_t capacity = kLayers * kTopK * 8 / 10;
  EXPECT_LE(Replay(Trace(), "lru", capacity).hit_rate(), 0.03) << "seed " << kSeed;
  EXPECT_GE(Replay(Trace(), "heat", capacity).hit_rate(), 0.2) << "seed " << kSeed;
}

TEST(PolicyReplayTest, MoreSlotsNeverMakeHeatWorse) {
  double last = 0;
  for (uint32_t percent : {5u, 10u, 20u, 30u}) {
    const double rate = Replay(Trace(), "heat", kAll * percent / 100).hit_rate();
    EXPECT_GT(rate, last) << percent << " %, seed " << kSeed;
    last = rate;
  }
}

TEST(PolicyReplayTest, ReplaysAreDeterministic) {
  for (const char* policy : {"heat", "sieve", "lru"}) {
    EXPECT_EQ(Replay(Trace(), policy, kAll / 10).hits, Replay(Trace(), policy, kAll / 10).hits);
  }
}

}  // namespace
}  // namespace moraine
