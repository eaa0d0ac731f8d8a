#include "engine/residency_observer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "residency_world.h"

namespace moraine {
namespace {

// Four layers of eight experts, eight slots of which two are the ring.
class ResidencyObserverTest : public testing::Test {
 protected:
  std::unique_ptr<ResidencySnapshot> Observe() { return observer_.Observe(EngineStats()); }
  Residence ResidenceOf(const ResidencySnapshot& snapshot, uint32_t layer, uint32_t expert) const {
    return snapshot.residences[layer * 8 + expert];
  }
  void Step() { world_.manager().BeginStep(1); }

  World world_{WorldOptions{}};
  ResidencyObserver observer_{&world_.manager(), WorldOptions().experts_per_layer, 2};
};

TEST_F(ResidencyObserverTest, LookupsAndMissesAreCounted) {
  Step();
  world_.Use(1, {3, 5});
  Step();
  world_.Use(1, {3});
  const auto snapshot = Observe();
  ASSERT_EQ(snapshot->residences.size(), 32u);
  EXPECT_EQ(ResidenceOf(*snapshot, 1, 3), Residence::kMemory);
  EXPECT_EQ(ResidenceOf(*snapshot, 1, 4), Residence::kDrive);
  EXPECT_EQ(snapshot->lookups[8 + 3], 2u);
  EXPECT_EQ(snapshot->misses[8 + 3], 1u);
  EXPECT_EQ(snapshot->lookups[8 + 4], 0u);
}

TEST_F(ResidencyObserverTest, WhatWasEvictedIsOnTheDrive) {
  Step();
  world_.Use(0, {0, 1});
  // Twice as many as there are slots.
  for (uint32_t layer : {1, 2, 3}) {
    Step();
    world_.Use(layer, {0, 1});
    world_.Use(layer, {2, 3});
    world_.Use(layer, {4, 5});
  }
  const auto snapshot = Observe();
  const auto in_memory = std::count_if(snapshot->residences.begin(), snapshot->residences.end(),
                                       IsInMemory);
  EXPECT_EQ(in_memory, world_.manager().stats().resident);
  EXPECT_LE(in_memory, 8);
  EXPECT_GT(world_.manager().stats().evictions, 0u);
}

TEST_F(ResidencyObserverTest, ReadsAndSpeculationAreToldApart) {
  Step();
  {
    const auto leases = world_.Acquire(0, {1});
    world_.Prefetch(1, {2});
    auto snapshot = Observe();
    EXPECT_EQ(ResidenceOf(*snapshot, 0, 1), Residence::kReading);
    EXPECT_EQ(ResidenceOf(*snapshot, 1, 2), Residence::kReadingAhead);
    world_.Drain();
    snapshot = Observe();
    EXPECT_EQ(ResidenceOf(*snapshot, 0, 1), Residence::kMemory);  // leased
    EXPECT_EQ(ResidenceOf(*snapshot, 1, 2), Residence::kMemoryAhead);
  }
  world_.Use(1, {2});
  EXPECT_EQ(ResidenceOf(*Observe(), 1, 2), Residence::kMemory);
}

TEST_F(ResidencyObserverTest, WhatStreamsForAPromptIsInTheRing) {
  Step();
  world_.Use(0, {0, 1});
  world_.Use(1, {0, 1});
  world_.Use(2, {0, 1});  // the cache is full now
  world_.Stream(3, {6});
  world_.Drain();
  EXPECT_EQ(ResidenceOf(*Observe(), 3, 6), Residence::kRing);
}

TEST(ResidencyObserverFaultTest, ADamagedRecordIsLost) {
  WorldOptions options;
  options.faults.corruption_probability = 1;
  World world(options);
  ResidencyObserver observer(&world.manager(), options.experts_per_layer, 2);
  world.manager().BeginStep(1);
  world.Use(2, {7});
  const auto snapshot = observer.Observe(EngineStats());
  EXPECT_EQ(snapshot->residences[2 * 8 + 7], Residence::kLost);
}

// Expert 3 is taken by every token and expert 0 by every second one.
TEST_F(ResidencyObserverTest, HeatIsTheRootOfTheShareOfTokens) {
  for (int token = 0; token < 40; ++token) {
    Step();
    world_.Use(1, {3, token % 2 == 0 ? 0u : 6u});
  }
  const auto snapshot = Observe();
  EXPECT_NEAR(snapshot->heats[8 + 3], 255, 1);
  EXPECT_NEAR(snapshot->heats[8 + 0], 255 * std::sqrt(0.5), 3);
  EXPECT_EQ(snapshot->heats[8 + 1], 0);
  EXPECT_EQ(snapshot->heats[0], 0);  // a layer that was never visited
}

TEST(ResidencyObserverStepsTest, StepsAreDifferencesAndSumToTheWallTime) {
  ResidencyObserver observer(nullptr, {}, 2);
  PhaseStats prefill, decode;
  prefill.tokens = 30;
  prefill.wall_ns = 9'000'000;
  prefill.attention_ns = 2'000'000;
  prefill.stall_ns = 3'000'000;
  observer.NoteStep(prefill, decode);
  for (int step = 1; step <= 2; ++step) {
    decode.tokens += 1;
    decode.wall_ns += 1'000'000 * step;
    decode.expert_ns += 400'000 * step;
    observer.NoteStep(prefill, decode);
  }
  observer.NoteStep(prefill, decode);  // nothing was computed
  auto snapshot = observer.Observe(EngineStats());
  ASSERT_EQ(snapshot->steps.size(), 3u);
  EXPECT_EQ(snapshot->step_count, 3u);
  EXPECT_FALSE(snapshot->steps[0].decode);
  EXPECT_EQ(snapshot->steps[0].tokens, 30u);
  EXPECT_EQ(snapshot->steps[0].other_us, 4000u);
  EXPECT_TRUE(snapshot->steps[2].decode);
  EXPECT_EQ(snapshot->steps[2].expert_us, 800u);
  EXPECT_EQ(snapshot->steps[2].other_us, 1200u);
  EXPECT_TRUE(snapshot->residences.empty());
  // A snapshot that somebody misses takes none with it.
  EXPECT_EQ(observer.Observe(EngineStats())->steps.size(), 3u);

  for (uint64_t i = 0; i < 3 * ResidencyObserver::kStepsKept; ++i) {
    decode.tokens += 1;
    decode.wall_ns += static_cast<int64_t>(i) * 1000;
    observer.NoteStep(prefill, decode);
  }
  snapshot = observer.Observe(EngineStats());
  ASSERT_EQ(snapshot->steps.size(), ResidencyObserver::kStepsKept);
  EXPECT_EQ(snapshot->steps.back().other_us, 3 * ResidencyObserver::kStepsKept - 1);
  EXPECT_EQ(snapshot->steps.front().other_us, 2 * ResidencyObserver::kStepsKept);
  EXPECT_EQ(snapshot->step_count, 3 + 3 * ResidencyObserver::kStepsKept);
}

}  // namespace
}  // namespace moraine
