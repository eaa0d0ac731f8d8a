#include <gtest/gtest.h>

#include <random>

#include "engine/evaluation.h"
#include "engine_world.h"
#include "engine/speculation_watchdog.h"
#include "test_store.h"

namespace moraine {
namespace {

TEST(SpeculationWatchdog, PausesForAPeriodWhenLessThanHalfIsUsedAndTriesAgain) {
  SpeculationWatchdog watchdog;
  uint64_t issued = 0, used = 0;
  const auto period = [&](uint64_t reads, uint64_t useful) {
    for (uint32_t step = 0; step < SpeculationWatchdog::kPeriodSteps; ++step) {
      watchdog.OnStep(issued, used, 0);
      if (step == 0) {
        issued += reads;
        used += useful;
      }
    }
  };
  period(100, 80);
  EXPECT_FALSE(watchdog.paused());
  period(100, 30);
  EXPECT_FALSE(watchdog.paused()) << "judged by the period that has ended: 80 of 100";
  period(0, 0);
  EXPECT_TRUE(watchdog.paused()) << "30 of 100";
  period(0, 0);
  EXPECT_FALSE(watchdog.paused()) << "tried again";
}

TEST(SpeculationWatchdog, AFewReadsSayNothing) {
  SpeculationWatchdog watchdog;
  watchdog.OnStep(0, 0, 0);
  for (int step = 0; step < 190; ++step) watchdog.OnStep(20, 0, 0);
  EXPECT_FALSE(watchdog.paused());
}

// Steps of a world in which reading ahead changes their mean length; each scatters by a quarter.
class TimedSteps {
 public:
  explicit TimedSteps(uint64_t seed) : random_(seed) {}
  // Runs `steps`; returns in how many of them reading ahead was paused.
  uint32_t Run(uint32_t steps, double with_ns, double without_ns) {
    uint32_t paused = 0;
    for (uint32_t i = 0; i < steps; ++i) {
      watchdog_.OnStep(0, 0, last_ns_);
      const bool now_paused = watchdog_.paused();
      paused += now_paused;
      std::uniform_real_distribution<double> scatter(0.57, 1.43);
      last_ns_ = static_cast<int64_t>((now_paused ? without_ns : with_ns) * scatter(random_));
    }
    return paused;
  }
  const SpeculationWatchdog& watchdog() const { return watchdog_; }

 private:
  std::mt19937_64 random_;
  SpeculationWatchdog watchdog_;
  int64_t last_ns_ = 0;
};

TEST(SpeculationWatchdog, StopsWhatMakesStepsLongerAndStartsAgainWhenThatChanges) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TimedSteps steps(seed);
    steps.Run(2000, 120e3, 100e3);
    EXPECT_TRUE(steps.watchdog().slower());
    steps.Run(20000, 80e3, 100e3);
    EXPECT_FALSE(steps.watchdog().slower());
  }
}

TEST(SpeculationWatchdog, TrialsCostLittleWhereReadingAheadPays) {
  uint32_t paused = 0;
  constexpr uint32_t kSteps = 20000, kSeeds = 50;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) paused += TimedSteps(seed).Run(kSteps, 80e3, 100e3);
  const double share = static_cast<double>(paused) / kSteps / kSeeds;
  EXPECT_LT(share, 0.02);
  EXPECT_GT(share, 0.001) << "no trials at all";
}

TEST(SpeculationWatchdog, ALossOfFourPercentEndsBelowTwo) {
  double with = 0;
  constexpr uint32_t kSteps = 20000, kSeeds = 50;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    TimedSteps steps(seed);
    with += kSteps - steps.Run(kSteps, 104e3, 100e3);
  }
  EXPECT_LT(with / kSteps / kSeeds * 4, 2.0) << "percent of the time";
}

// Experts read ahead in the last 1000 of 4000 steps, when of every two guesses one is right: too good to
// be called a waste. A read takes 100 us, an expert's kernels as said.
uint64_t ReadAheadInTheEnd(int64_t expert_ns) {
  EngineWorldOptions options;
  options.layers = 6;
  options.experts = 16;
  options.top_k = 2;
  options.slot_count = 24;
  options.expert_ns = expert_ns;
  options.expert_token_ns = options.attention_ns = 10;
  options.faults.bytes_per_second = 120'000'000;
  EngineWorld world(options);
  std::mt19937 random(7);
  uint64_t before = 0;
  uint32_t next[2] = {0, 1};
  for (uint32_t step = 0; step < 4000; ++step) {
    if (step == 3000) before = world.manager().stats().prefetch_issued;
    world.BeginStep(1, AcquireMode::kCached);
    for (uint32_t layer = 0; layer < options.layers; ++layer) {
      const uint32_t experts[2] = {next[0], next[1]};
      next[0] = random() % 16;
      next[1] = (next[0] + 1 + random() % 15) % 16;
      const uint32_t wrong = (next[0] + next[1]) % 16;
      const uint32_t guesses[2] = {next[0], wrong == next[0] ? (wrong + 1) % 16 : wrong};
      const float weights[2] = {0.5f, 0.5f};
      RoutingDecision routing;
      routing.token_count = 1;
      routing.top_k = 2;
      routing.experts = experts;
      routing.weights = weights;
      const RouterLookahead ahead{LayerId(layer + 1), guesses};
      if (world.executor().LookaheadDepth() > 0 && layer + 1 < options.layers) {
        routing.lookaheads = {&ahead, 1};
      }
      const Status status = world.RunLayer(LayerId(layer), routing);
      CHECK(status.ok(), status.message());
    }
  }
  return world.manager().stats().prefetch_issued - before;
}

TEST(Lookahead, IsKeptWhereThereIsTimeToHideAndGivenUpWhereThereIsNone) {
  const uint64_t hidden = ReadAheadInTheEnd(100'000), in_the_way = ReadAheadInTheEnd(10);
  EXPECT_GT(hidden, 1000u);
  EXPECT_LT(in_the_way, hidden / 4);
}

// Eight experts of 0.4 ms each are in memory, and a layer wants them all: the drive is looked at after two.
TEST(ExpertExecutor, TheDriveIsLookedAtEveryMillisecondOfALayer) {
  EngineWorldOptions options;
  options.layers = 1;
  options.experts = options.top_k = 8;
  options.slot_count = 12;
  options.expert_ns = 400'000;
  EngineWorld world(options);
  const uint32_t experts[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const float weights[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  RoutingDecision routing;
  routing.token_count = 1;
  routing.top_k = 8;
  routing.experts = experts;
  routing.weights = weights;
  for (int step = 0; step < 3; ++step) {
    world.BeginStep(1, AcquireMode::kCached);
    world.regions().clear();
    ASSERT_TRUE(world.RunLayer(LayerId(0), routing).ok());
    EXPECT_TRUE(world.OutputIsRight(LayerId(0), routing));
  }
  EXPECT_EQ(world.regions(), std::vector<size_t>(4, 2));
}

struct Outcome {
  std::string digest;
  EngineStats stats;
};

Outcome Decode(const TestStore& store, const std::string& budget, bool lookahead) {
  RunnerOptions options = TestRunnerOptions(store, budget);
  options.lookahead = lookahead;
  const auto runner = Runner::Open(options);
  CHECK(runner.ok(), runner.status().message());
  const auto evaluation = Evaluation::Create(**runner);
  const Status status = (*evaluation)->AddReference(GoldenPath("demo/reference.json"));
  CHECK(status.ok(), status.message());
  (*runner)->CheckInvariants();
  return {(*evaluation)->Finish().digest, (*runner)->Stats()};
}

TEST(Lookahead, BringsExpertsBeforeTheyAreAskedForAndChangesNoBit) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const Outcome with = Decode(store, "25%", true), without = Decode(store, "25%", false);
  EXPECT_EQ(with.digest, without.digest);
  EXPECT_EQ(without.stats.residency.prefetch_issued, 0u);
  const ResidencyStats& stats = with.stats.residency;
  EXPECT_GT(stats.prefetch_issued, 100u);
  EXPECT_GT(stats.prefetch_used, stats.prefetch_issued / 2) << "the demo model's recall is 78 %";
}

TEST(Lookahead, AsksForNothingWhenAllIsResident) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const auto runner = Runner::Open(TestRunnerOptions(store, "100%"));
  ASSERT_TRUE(runner.ok());
  const std::vector<int32_t> prompt = {685, 531, 258, 519};
  const Runner::ForwardOptions options{.logits = Runner::LogitsMode::kNone};
  for (int round = 0; round < 40; ++round) {
    (*runner)->ResetSequence();
    ASSERT_TRUE((*runner)->Forward(prompt, options).ok());
    for (int32_t token = 0; token < 20; ++token) {
      const int32_t next = round * 20 + token;
      ASSERT_TRUE((*runner)->Forward(std::span(&next, 1), options).ok());
    }
  }
  // Nothing is evicted, so every expert is read ahead to some use at most once.
  EXPECT_LE((*runner)->Stats().residency.prefetch_used, 256u);
}

}  // namespace
}  // namespace moraine
