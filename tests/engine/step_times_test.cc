// StepTimer: parts sum to turns, turns follow each other, and a wait is named after its largest part.
#include "engine/step_times.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <string>

namespace moraine {
namespace {

constexpr int64_t kMs = 1'000'000;

size_t At(StepPart part) { return static_cast<size_t>(part); }

TEST(StepTimerTest, PartsSumToTurnsAndIdleTimeIsNobodys) {
  ManualClock clock;
  StepTimer timer(clock);
  clock.AdvanceNs(5000 * kMs);  // idle
  timer.Begin();
  clock.AdvanceNs(1 * kMs);
  timer.Charge(StepPart::kAdmit);
  clock.AdvanceNs(20 * kMs);
  timer.Charge(StepPart::kDecode);
  timer.Move(StepPart::kDecode, StepPart::kDrive, 12 * kMs);
  clock.AdvanceNs(2 * kMs);
  timer.Charge(StepPart::kDeliver);
  timer.End();
  clock.AdvanceNs(700 * kMs);
  timer.Charge(StepPart::kMixed);
  clock.AdvanceNs(3 * kMs);
  timer.Charge(StepPart::kProfile);
  timer.End();

  const StepStats& stats = timer.stats();
  EXPECT_EQ(stats.turns.total(), 2u);
  EXPECT_EQ(stats.turns.sum_ns, (23 + 703) * kMs);
  EXPECT_EQ(std::accumulate(stats.part_ns.begin(), stats.part_ns.end(), int64_t{0}),
            stats.turns.sum_ns);
  EXPECT_EQ(stats.part_ns[At(StepPart::kDecode)], 8 * kMs);
  EXPECT_EQ(stats.part_ns[At(StepPart::kDrive)], 12 * kMs);
  EXPECT_EQ(stats.part_ns[At(StepPart::kProfile)], 3 * kMs);
  EXPECT_EQ(stats.caused[At(StepPart::kDrive)], 1u);
  EXPECT_EQ(stats.caused[At(StepPart::kMixed)], 1u);
  EXPECT_EQ(stats.longest_ns[At(StepPart::kDrive)], 23 * kMs) << "the whole turn";
  EXPECT_EQ(stats.longest_ns[At(StepPart::kMixed)], 703 * kMs);
  EXPECT_EQ(stats.longest_cause(), StepPart::kMixed);
  EXPECT_EQ(stats.turns.longest_ns, 703 * kMs);
}

TEST(StepTimerTest, NoMoreIsMovedThanIsThere) {
  ManualClock clock;
  StepTimer timer(clock);
  timer.Begin();
  clock.AdvanceNs(4 * kMs);
  timer.Charge(StepPart::kPrompt);
  timer.Move(StepPart::kPrompt, StepPart::kDrive, 9 * kMs);
  timer.Move(StepPart::kPrompt, StepPart::kResize, -1);
  timer.End();
  EXPECT_EQ(timer.stats().part_ns[At(StepPart::kPrompt)], 0);
  EXPECT_EQ(timer.stats().part_ns[At(StepPart::kDrive)], 4 * kMs);
  EXPECT_EQ(timer.stats().part_ns[At(StepPart::kResize)], 0);
}

TEST(StepTimerTest, WaitsAreBetweenTokensAndPreemptedOnesAreTold) {
  ManualClock clock;
  StepTimer timer(clock);
  clock.AdvanceNs(1);
  int64_t token_ns = timer.Token(0, false);
  EXPECT_EQ(timer.stats().waits.total(), 0u);
  clock.AdvanceNs(30 * kMs);
  token_ns = timer.Token(token_ns, false);
  EXPECT_EQ(timer.stats().longest_preempted_ns, 0);
  clock.AdvanceNs(2400 * kMs);
  timer.Token(token_ns, true);
  EXPECT_EQ(timer.stats().waits.total(), 2u);
  EXPECT_EQ(timer.stats().waits.longest_ns, 2400 * kMs);
  EXPECT_EQ(timer.stats().longest_preempted_ns, 2400 * kMs);
}

TEST(DurationCountsTest, QuantilesAreBoundsAndNeverBeyondTheLongest) {
  DurationCounts counts;
  EXPECT_EQ(counts.QuantileNs(0.99), 0);
  for (int i = 0; i < 99; ++i) counts.Add(3 * kMs);
  counts.Add(200'000 * kMs);
  EXPECT_EQ(counts.QuantileNs(0.5), 4 * kMs);
  EXPECT_EQ(counts.QuantileNs(0.99), 4 * kMs);
  EXPECT_EQ(counts.QuantileNs(1), 200'000 * kMs) << "the last bucket has no bound";
  EXPECT_EQ(counts.counts.back(), 1u);
  DurationCounts short_ones;
  short_ones.Add(kMs / 4);
  EXPECT_EQ(short_ones.QuantileNs(0.5), kMs / 4);
}

TEST(StepPartTest, NamesAreAllDifferent) {
  std::set<std::string> names;
  for (size_t part = 0; part < kStepParts; ++part) {
    EXPECT_TRUE(names.insert(StepPartName(static_cast<StepPart>(part))).second) << part;
  }
  EXPECT_EQ(names.count("?"), 0u);
}

}  // namespace
}  // namespace moraine
