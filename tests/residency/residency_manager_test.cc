#include "residency/residency_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "residency_world.h"

namespace moraine {
namespace {

using enum ExpertState;
using ::testing::HasSubstr;
using State = Lease::State;

TEST(ResidencyManagerTest, TooFewSlotsNamesTheMinimum) {
  World world({});
  ResidencyOptions options = world.ManagerOptions();
  options.slot_count = MinimumSlots(options.top_k) - 1;
  const auto segments = world.MakeSegments();
  const auto result = world.Create(options, *segments);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(result.status().message(), HasSubstr("the minimum for top-2 routing is 4"));
}

TEST(ResidencyManagerTest, RefusesOptionsThatCannotWork) {
  World world({});
  const auto code = [&](auto change) {
    ResidencyOptions options = world.ManagerOptions();
    change(&options);
    const auto segments = world.MakeSegments(options.slot_count == 7 ? 4096 : kRecordBytes);
    return world.Create(options, *segments).status().message();
  };
  EXPECT_THAT(code([](auto* o) { o->slot_count = 7; }), HasSubstr("layer 0 expert 0"));
  EXPECT_THAT(code([](auto* o) { o->ring_slots = 1; }), HasSubstr("expected 2 to 6"));
  EXPECT_THAT(code([](auto* o) { o->ring_slots = 7; }), HasSubstr("expected 2 to 6"));
  EXPECT_THAT(code([](auto* o) { o->slot_count = 9999; }), HasSubstr("expected 9999"));
  EXPECT_THAT(code([](auto* o) { o->max_slot_count = 9999; }), HasSubstr("expected 9999"));
  EXPECT_THAT(code([](auto* o) { o->policy = "opt"; }), HasSubstr("expected heat, lru"));
  EXPECT_THAT(code([](auto* o) { o->top_k = 0; }), HasSubstr("top_k"));
}

TEST(ResidencyManagerTest, RingIsDerivedAndLeavesOneLayerToTheCache) {
  World small({.slot_count = 4});
  EXPECT_EQ(small.manager().stats().ring_slots, 2u);
  World middle({.experts_per_layer = {200, 200, 200, 200}, .slot_count = 64});
  EXPECT_EQ(middle.manager().stats().ring_slots, 8u);
  World large({.experts_per_layer = {200, 200, 200, 200}, .slot_count = 512});
  EXPECT_EQ(large.manager().stats().ring_slots, 32u);
  World everything({.slot_count = 34});  // every expert has a slot: a prompt displaces nothing
  EXPECT_EQ(everything.manager().stats().ring_slots, 2u);
}

TEST(ResidencyManagerTest, AMissBecomesReadyWithTheRecordsBytes) {
  World world({});
  std::vector<Lease> leases = world.Acquire(1, {3, 5});
  ASSERT_EQ(leases.size(), 2u);
  EXPECT_EQ(leases[0].state(), State::kPending);
  EXPECT_EQ(world.StateOf(1, 3), kReading);
  world.Drain();
  for (const Lease& lease : leases) {
    ASSERT_EQ(lease.state(), State::kReady);
    EXPECT_TRUE(world.IsRecord(lease.key(), lease.data()));
  }
  EXPECT_EQ(leases[1].key(), (ExpertKey{LayerId(1), ExpertId(5)}));
  EXPECT_EQ(world.StateOf(1, 3), kLeased);
  leases.clear();
  EXPECT_EQ(world.StateOf(1, 3), kReady);
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, AllMissesOfACallAreOneSubmit) {
  World world({});
  const std::vector<Lease> leases = world.Acquire(0, {1, 2});
  EXPECT_EQ(world.scheduler().stats().submit_calls, 1u);
  world.Drain();
}

TEST(ResidencyManagerTest, AnEmptyOrMovedLeaseHoldsNothing) {
  World world({});
  Lease empty;
  EXPECT_EQ(empty.state(), State::kEmpty);
  std::vector<Lease> leases = world.Acquire(0, {1});
  world.Drain();
  Lease moved = std::move(leases[0]);
  EXPECT_EQ(leases[0].state(), State::kEmpty);
  EXPECT_EQ(moved.state(), State::kReady);
  moved.Release();
  EXPECT_EQ(moved.state(), State::kEmpty);
  EXPECT_EQ(world.StateOf(0, 1), kReady);
}

TEST(ResidencyManagerTest, FourKindsOfLookupAreCountedBeforeAnythingWaits) {
  World world({.slot_count = 16});
  world.manager().BeginStep(1);
  {
    const auto cold = world.Acquire(0, {0});      // cold miss
    const auto in_flight = world.Acquire(0, {0});  // in-flight miss
    ASSERT_EQ(world.Prefetch(1, {4}), 1u);
    world.Drain();
    const auto hit = world.Acquire(0, {0});
    const auto prefetched = world.Acquire(1, {4});  // prefetch hit
    const auto again = world.Acquire(1, {4});       // by now an ordinary hit
  }
  const LookupCounters& decode = world.manager().stats().decode;
  EXPECT_EQ(decode.cold_miss, 1u);
  EXPECT_EQ(decode.in_flight_miss, 1u);
  EXPECT_EQ(decode.hit, 2u);
  EXPECT_EQ(decode.prefetch_hit, 1u);
  const LookupCounters& expert = world.manager().counters({LayerId(1), ExpertId(4)});
  EXPECT_EQ(expert.prefetch_hit + expert.hit, 2u);
  EXPECT_EQ(world.manager().stats().prefill.cold_miss, 0u);
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, TransientLookupsAreCountedApart) {
  World world({});
  const auto leases = world.Acquire(0, {0, 1}, AcquireMode::kTransient);
  EXPECT_EQ(world.manager().stats().prefill.cold_miss, 2u);
  EXPECT_EQ(world.manager().stats().decode.cold_miss, 0u);
  world.Drain();
}

TEST(ResidencyManagerTest, GenerationsChangeWithEveryReuseOfASlot) {
  World world({.slot_count = 4});
  const std::byte* first = nullptr;
  {
    auto leases = world.Acquire(0, {0, 1});
    world.Drain();
    first = leases[0].data();
  }
  // The only cache slots are those two; the same memory now holds another expert.
  auto leases = world.Acquire(1, {0, 1});
  world.Drain();
  std::set<const std::byte*> slots = {leases[0].data(), leases[1].data()};
  EXPECT_TRUE(slots.contains(first));
  EXPECT_EQ(world.StateOf(0, 0), kAbsent);
  EXPECT_EQ(world.manager().stats().evictions, 2u);
}

TEST(ResidencyManagerTest, LeasedExpertsAreNeverEvicted) {
  World world({.slot_count = 6, .ring_slots = 2});
  auto held = world.Acquire(0, {0, 1});
  world.Drain();
  for (uint32_t round = 0; round < 8; ++round) {
    world.manager().BeginStep(1);
    world.Use(1 + round % 3, {round % 8, (round + 1) % 8});
    ASSERT_EQ(held[0].state(), State::kReady);
    ASSERT_TRUE(world.IsRecord(held[0].key(), held[0].data()));
    ASSERT_TRUE(world.IsRecord(held[1].key(), held[1].data()));
    world.manager().CheckInvariants();
  }
}

TEST(ResidencyManagerTest, AllSlotsLeasedGivesFewerAndNothingHangs) {
  World world({.slot_count = 4});
  auto first = world.Acquire(0, {0, 1});
  auto second = world.Acquire(1, {0, 1});  // borrows the ring
  EXPECT_EQ(second.size(), 2u);
  auto third = world.Acquire(2, {0, 1});
  EXPECT_TRUE(third.empty());
  world.Drain();
  world.manager().CheckInvariants();
  first.clear();
  third = world.Acquire(2, {0, 1});
  EXPECT_EQ(third.size(), 2u);
  world.Drain();
  EXPECT_EQ(third[1].state(), State::kReady);
  second.clear();
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, FewerLeasesAreTheFirstOnes) {
  World world({.slot_count = 4});
  auto held = world.Acquire(0, {0, 1, 2});
  ASSERT_EQ(held.size(), 3u);
  auto leases = world.Acquire(1, {7, 6, 5});
  ASSERT_EQ(leases.size(), 1u);
  EXPECT_EQ(leases[0].key().expert, ExpertId(7));
  // What was not given was not looked up either.
  EXPECT_EQ(world.manager().stats().decode.cold_miss, 4u);
  world.Drain();
}

TEST(ResidencyManagerTest, ExpertsOfOneCallDoNotEvictEachOther) {
  World world({.slot_count = 4});
  world.Use(0, {6, 7});
  // 0 needs a slot, and 7, ready but not yet leased when 0 is served, must not be the one to go.
  for (int i = 0; i < 4; ++i) world.Use(0, {6});
  auto leases = world.Acquire(0, {0, 7});
  EXPECT_EQ(leases[1].state(), State::kReady);
  EXPECT_EQ(world.StateOf(0, 6), kAbsent);  // of this layer, not called: nothing else was left
  world.Drain();
}

// What the visited layer holds and this token does not take is a whole turn from its next use.
TEST(ResidencyManagerTest, TheVisitedLayerGivesWhatTheTokenDoesNotTake) {
  World world({.slot_count = 8, .ring_slots = 2});
  for (uint32_t layer : {0u, 1u, 2u}) world.Use(layer, {0, 1});
  world.Use(0, {1, 5});
  EXPECT_EQ(world.StateOf(0, 0), kAbsent);
  EXPECT_EQ(world.StateOf(0, 1), kReady) << "named in the same call";
  for (uint32_t layer : {1u, 2u}) EXPECT_EQ(world.StateOf(layer, 0), kReady);
}

TEST(ResidencyManagerTest, ReleasingAPendingLeaseLeavesTheReadToFinish) {
  World world({});
  world.Acquire(0, {3}).clear();
  EXPECT_EQ(world.StateOf(0, 3), kReading);
  world.manager().CheckInvariants();
  world.Drain();
  EXPECT_EQ(world.StateOf(0, 3), kReady);
}

// Evict while reading: a slot under DMA is nobody's victim, leased or not.
TEST(ResidencyManagerTest, ReadsInFlightAreNotEvicted) {
  World world({.slot_count = 4});
  world.Acquire(0, {0, 1}).clear();  // under DMA, not leased
  auto leases = world.Acquire(1, {0, 1});
  EXPECT_EQ(leases.size(), 2u);  // the ring's
  EXPECT_EQ(world.StateOf(0, 0), kReading);
  EXPECT_TRUE(world.Acquire(2, {0}).empty());
  world.Drain();
  EXPECT_EQ(world.StateOf(0, 0), kReady);
  EXPECT_EQ(leases[0].state(), State::kReady);
  EXPECT_TRUE(world.IsRecord(leases[0].key(), leases[0].data()));
}

// Lease while evicting: eviction of a host slot is one call, so the lease finds it absent and reads.
TEST(ResidencyManagerTest, AnEvictedExpertIsReadAnewWhenLeased) {
  World world({.slot_count = 4});
  world.Use(0, {0, 1});
  auto evictors = world.Acquire(1, {0, 1});
  EXPECT_EQ(world.StateOf(0, 0), kAbsent);
  auto lease = world.Acquire(0, {0});  // while its old slot is under DMA for another
  ASSERT_EQ(lease.size(), 1u);
  world.Drain();
  EXPECT_TRUE(world.IsRecord(lease[0].key(), lease[0].data()));
  EXPECT_TRUE(world.IsRecord(evictors[0].key(), evictors[0].data()));
  EXPECT_TRUE(world.IsRecord(evictors[1].key(), evictors[1].data()));
}

// --- Prefill ------------------------------------------------------------------------------------

TEST(ResidencyManagerTest, PrefillFillsFreeCacheSlotsAndKeepsThem) {
  World world({.slot_count = 16});
  world.manager().BeginStep(64);
  for (uint32_t expert = 0; expert < 8; ++expert) {
    auto lease = world.Acquire(0, {expert}, AcquireMode::kTransient, 16);
    world.Drain();
  }
  EXPECT_EQ(world.manager().stats().resident, 8u);
}

void StreamPrompt(World& world, uint32_t tokens, float weight) {
  world.manager().BeginStep(tokens);
  for (uint32_t layer = 0; layer < 4; ++layer) {
    for (uint32_t expert = 0; expert < 8; expert += 2) {
      auto leases = world.Acquire(layer, {expert, expert + 1}, AcquireMode::kTransient, weight);
      ASSERT_EQ(leases.size(), 2u);
      world.Drain();
      ASSERT_EQ(leases[0].state(), State::kReady);
      leases.clear();
      world.manager().CheckInvariants();
    }
  }
}

class PrefillTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(ScanResistant, PrefillTest, ::testing::Values("heat", "sieve"),
                         [](const auto& param) { return std::string(param.param); });

TEST_P(PrefillTest, DoesNotFlushTheHotSetOfDecode) {
  World world({.slot_count = 10, .ring_slots = 2, .policy = GetParam()});
  for (int token = 0; token < 30; ++token) {
    world.manager().BeginStep(1);
    for (uint32_t layer = 0; layer < 4; ++layer) world.Use(layer, {0, 1});
  }
  StreamPrompt(world, 512, 128);  // every expert of every layer, a quarter of the tokens each
  for (uint32_t layer = 0; layer < 4; ++layer) {
    EXPECT_EQ(world.StateOf(layer, 0), kReady) << layer;
    EXPECT_EQ(world.StateOf(layer, 1), kReady) << layer;
    EXPECT_EQ(world.StateOf(layer, 7), kAbsent) << layer;
  }
}

TEST(ResidencyManagerTest, PrefillWarmsTheCacheWithWhatThePolicyPrefers) {
  World world({.slot_count = 10, .ring_slots = 2});
  for (uint32_t layer = 0; layer < 4; ++layer) world.Use(layer, {0, 1});
  for (int token = 0; token < 60; ++token) world.manager().BeginStep(1);  // they go cold
  const uint64_t evictions = world.manager().stats().evictions;
  StreamPrompt(world, 512, 128);
  EXPECT_GT(world.manager().stats().evictions, evictions);
  EXPECT_EQ(world.manager().stats().resident, 8u);  // roles were swapped, no slot was lost
}

TEST(ResidencyManagerTest, ATransientHitUsesTheCachedSlot) {
  World world({});
  world.Use(2, {4});
  const uint64_t read = world.manager().stats().bytes_read;
  auto lease = world.Acquire(2, {4}, AcquireMode::kTransient);
  EXPECT_EQ(lease[0].state(), State::kReady);
  lease.clear();
  EXPECT_EQ(world.StateOf(2, 4), kReady);
  EXPECT_EQ(world.manager().stats().bytes_read, read);
}

TEST(ResidencyManagerTest, AFullRingGivesFewerUntilOneIsReleased) {
  World world({.slot_count = 4});
  world.Use(0, {0, 1});
  auto leases = world.Acquire(1, {0, 1, 2, 3}, AcquireMode::kTransient);
  ASSERT_EQ(leases.size(), 2u);
  world.Drain();
  leases.pop_back();
  EXPECT_EQ(world.Acquire(1, {2, 3}, AcquireMode::kTransient).size(), 1u);
  world.Drain();
}

TEST(ResidencyManagerTest, DecodeLeasesOfRingExpertsKeepThem) {
  World world({.slot_count = 4});
  world.Use(0, {0, 1});
  auto transient = world.Acquire(1, {0}, AcquireMode::kTransient);
  world.Drain();
  auto decode = world.Acquire(1, {0});
  EXPECT_EQ(decode[0].state(), State::kReady);
  transient.clear();
  EXPECT_EQ(decode[0].state(), State::kReady);
  EXPECT_TRUE(world.IsRecord(decode[0].key(), decode[0].data()));
}

// --- Speculation --------------------------------------------------------------------------------

TEST(ResidencyManagerTest, PrefetchOfWhatIsThereDoesNothing) {
  World world({.slot_count = 16});
  world.Use(0, {0});
  EXPECT_EQ(world.Prefetch(0, {0}), 0u);
  EXPECT_EQ(world.Prefetch(1, {0}), 1u);
  EXPECT_EQ(world.Prefetch(1, {0}), 0u);  // already being read
  world.Drain();
}

TEST(ResidencyManagerTest, PrefetchDisplacesNothingThatHasProvedItself) {
  World world({.slot_count = 10, .ring_slots = 2});
  for (int token = 0; token < 5; ++token) {
    world.manager().BeginStep(1);
    for (uint32_t layer = 0; layer < 4; ++layer) world.Use(layer, {0, 1});
  }
  EXPECT_EQ(world.Prefetch(0, {5, 6}, PrefetchReason::kHeat), 0u);
  EXPECT_EQ(world.manager().stats().resident, 8u);
}

TEST(ResidencyManagerTest, WarmingReadsLikeDemandAndWaitsForNobody) {
  World world({.slot_count = 16});
  ASSERT_EQ(world.Prefetch(1, {0, 1}, PrefetchReason::kHeat), 2u);
  EXPECT_EQ(world.scheduler().demand_in_flight(), 2u);
  EXPECT_EQ(world.scheduler().speculative_pending(), 0u);
  auto lease = world.Acquire(1, {0});  // does not give 1/1 up
  world.manager().CancelPrefetches();
  world.Drain();
  EXPECT_EQ(world.StateOf(1, 1), kReady);
  EXPECT_EQ(lease[0].state(), State::kReady);
  EXPECT_EQ(world.manager().stats().prefetch_used, 1u);
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, ALookaheadDisplacesWhatIsColdButNothingHot) {
  World world({.slot_count = 10, .ring_slots = 2});
  for (int token = 0; token < 30; ++token) {
    world.manager().BeginStep(1);
    for (uint32_t layer = 0; layer < 4; ++layer) world.Use(layer, {0, 1});
  }
  EXPECT_EQ(world.Prefetch(0, {5, 6}, PrefetchReason::kLookahead), 0u) << "all are hot";
  // Twenty tokens that never take expert 1 of layer 2 make it cold.
  for (int token = 0; token < 20; ++token) {
    world.manager().BeginStep(1);
    for (uint32_t layer : {0u, 1u, 3u}) world.Use(layer, {0, 1});
  }
  EXPECT_EQ(world.Prefetch(0, {5}, PrefetchReason::kHeat), 0u) << "5 has no heat of its own";
  EXPECT_EQ(world.Prefetch(0, {5}, PrefetchReason::kLookahead), 1u);
  EXPECT_EQ(world.StateOf(0, 0), kReady);
  world.Drain();
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, ALayerGivesUpTheLookaheadThatItDoesNotWant) {
  World world({.slot_count = 16});
  ASSERT_EQ(world.Prefetch(1, {0, 1}, PrefetchReason::kLookahead), 2u);
  ASSERT_EQ(world.Prefetch(2, {0}, PrefetchReason::kLookahead), 1u);
  auto lease = world.Acquire(1, {1});
  world.Drain();
  EXPECT_EQ(lease[0].state(), State::kReady);
  EXPECT_EQ(world.StateOf(1, 0), kAbsent);
  EXPECT_EQ(world.StateOf(2, 0), kReady) << "another layer's is kept";
  EXPECT_EQ(world.manager().stats().prefetch_wasted, 1u);
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, PrefetchLeavesOneLayersSlotsOutOfDma) {
  World world({.slot_count = 6, .ring_slots = 2});  // four cache slots, top-2
  EXPECT_EQ(world.Prefetch(1, {0, 1, 2, 3}), 2u);
  auto leases = world.Acquire(0, {0, 1});
  EXPECT_EQ(leases.size(), 2u);
  world.Drain();
}

TEST(ResidencyManagerTest, ADemandedPrefetchIsPromotedAndCountsAsUsed) {
  World world({.slot_count = 16});
  ASSERT_EQ(world.Prefetch(1, {0, 1}), 2u);
  auto lease = world.Acquire(1, {0});
  EXPECT_EQ(world.manager().stats().decode.in_flight_miss, 1u);
  EXPECT_EQ(world.scheduler().demand_in_flight(), 1u);
  world.Drain();
  EXPECT_EQ(lease[0].state(), State::kReady);
  EXPECT_EQ(world.manager().stats().prefetch_used, 1u);
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, CancelledPrefetchesAreWastedAndGiveTheirSlotsBack) {
  World world({.slot_count = 16});
  ASSERT_EQ(world.Prefetch(1, {0, 1, 2}), 3u);
  world.manager().CancelPrefetches();
  world.Drain();
  world.manager().CheckInvariants();
  EXPECT_EQ(world.manager().stats().prefetch_wasted, 3u);
  EXPECT_EQ(world.StateOf(1, 0), kAbsent);
  EXPECT_EQ(world.manager().stats().failed_reads, 0u);
}

TEST(ResidencyManagerTest, APrefetchDemandedAfterItsCancellationIsReadAfterAll) {
  World world({.slot_count = 16});
  ASSERT_EQ(world.Prefetch(1, {0}), 1u);
  world.manager().CancelPrefetches();
  auto lease = world.Acquire(1, {0});
  EXPECT_EQ(lease[0].state(), State::kPending);
  world.Drain();
  ASSERT_EQ(lease[0].state(), State::kReady);
  EXPECT_TRUE(world.IsRecord(lease[0].key(), lease[0].data()));
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, AnUnusedPrefetchThatIsEvictedIsWasted) {
  World world({.slot_count = 6, .ring_slots = 2, .policy = "lru"});
  ASSERT_EQ(world.Prefetch(1, {0}), 1u);
  world.Drain();
  for (uint32_t layer : {0u, 2u, 3u}) world.Use(layer, {0, 1});
  EXPECT_EQ(world.StateOf(1, 0), kAbsent);
  EXPECT_EQ(world.manager().stats().prefetch_wasted, 1u);
}

TEST(ResidencyManagerTest, PrefetchedBytesAreUsefulLateOrWasted) {
  World world({.slot_count = 16});
  ASSERT_EQ(world.Prefetch(1, {0, 1}), 2u);
  world.Drain();
  ASSERT_EQ(world.Prefetch(1, {2}), 1u);
  const auto leases = world.Acquire(1, {0, 2});
  world.Drain();
  ASSERT_EQ(world.Prefetch(2, {0}), 1u);
  world.Drain();
  for (uint32_t layer : {0u, 3u}) {
    for (uint32_t e = 0; e < 8; e += 2) world.Use(layer, {e, e + 1});
  }
  const ResidencyStats& stats = world.manager().stats();
  EXPECT_EQ(stats.prefetch_useful_bytes, kRecordBytes);
  EXPECT_EQ(stats.prefetch_late_bytes, kRecordBytes);
  EXPECT_EQ(stats.prefetch_wasted_bytes, kRecordBytes * stats.prefetch_wasted);
  EXPECT_GT(stats.prefetch_wasted, 0u) << "1/1 and 2/0 were never asked for";
  world.manager().CheckInvariants();
}

// --- Streaming ----------------------------------------------------------------------------------

TEST(ResidencyManagerTest, AStreamFillsTheRingAndWaitsThereForItsLayer) {
  World world({.slot_count = 8, .ring_slots = 4});
  world.Use(0, {0, 1});
  world.Use(0, {2, 3});
  EXPECT_EQ(world.Stream(1, {0, 1, 2, 3, 4, 5}), 4u) << "the cache is full, the ring has four slots";
  world.Drain();
  world.manager().CheckInvariants();
  EXPECT_EQ(world.StateOf(1, 3), kReady);
  EXPECT_EQ(world.StateOf(0, 0), kReady) << "a stream displaces nothing";
  EXPECT_EQ(world.Stream(1, {0, 1, 2, 3, 4, 5}), 4u) << "what is there is dealt with";
  {
    auto leases = world.Acquire(1, {0, 1, 2, 3}, AcquireMode::kTransient);
    ASSERT_EQ(leases.size(), 4u);
    for (const Lease& lease : leases) EXPECT_EQ(lease.state(), State::kReady);
  }
  EXPECT_EQ(world.manager().stats().prefill.prefetch_hit, 4u);
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, AStreamGoesToTheDriveWholeAndALookaheadIsHeldBack) {
  WorldOptions options{.slot_count = 8, .ring_slots = 4};
  options.scheduler.speculative_depth = 0;
  World world(options);
  world.Use(0, {0, 1});
  ASSERT_EQ(world.Stream(1, {0, 1, 2, 3}), 4u);
  EXPECT_EQ(world.scheduler().speculative_pending(), 0u);
  EXPECT_EQ(world.scheduler().demand_in_flight(), 4u);
  world.Drain();
  EXPECT_EQ(world.StateOf(1, 3), kReady);
}

TEST(ResidencyManagerTest, WhatWasStreamedForNothingLeavesWithItsLayersLookup) {
  World world({.slot_count = 8, .ring_slots = 4});
  world.Use(0, {0, 1});
  world.Use(0, {2, 3});
  ASSERT_EQ(world.Stream(1, {0, 1, 2, 3}), 4u);
  world.Drain();
  auto leases = world.Acquire(1, {4, 5, 6}, AcquireMode::kTransient);
  EXPECT_EQ(leases.size(), 3u) << "the ring is free again";
  world.Drain();
  EXPECT_GE(world.manager().stats().prefetch_wasted, 3u) << "all but what the policy kept";
  world.manager().CheckInvariants();
}

TEST(ResidencyManagerTest, CancellingDropsAStreamThatHasLanded) {
  World world({.slot_count = 8, .ring_slots = 4});
  world.Use(0, {0, 1});
  world.Use(0, {2, 3});
  ASSERT_EQ(world.Stream(1, {0, 1}), 2u);
  world.Drain();
  world.manager().CancelPrefetches();
  EXPECT_EQ(world.StateOf(1, 0), kAbsent);
  world.manager().CheckInvariants();
}

// --- Lifetimes ----------------------------------------------------------------------------------

TEST(ResidencyManagerTest, ShutdownWaitsForReadsInFlight) {
  World world({.slot_count = 16});
  world.Acquire(0, {0, 1}).clear();
  world.Prefetch(1, {3, 4});
  ASSERT_FALSE(world.scheduler().idle());
  world.DestroyManager();
  EXPECT_TRUE(world.scheduler().idle());
}

TEST(ResidencyManagerDeathTest, ALeaseMustNotOutliveTheManager) {
  World world({});
  auto leases = world.Acquire(0, {0});
  world.Drain();
  EXPECT_DEATH(world.DestroyManager(), "a lease outlives its manager");
}

TEST(ResidencyManagerDeathTest, DataOfAPendingLeaseIsABug) {
  World world({});
  auto leases = world.Acquire(0, {0});
  EXPECT_DEATH((void)leases[0].data(), "the lease is not ready");
  world.Drain();
}

TEST(ResidencyManagerDeathTest, ACallNamesAnExpertOnce) {
  World world({});
  EXPECT_DEATH(world.Acquire(0, {1, 1}), "named twice");
}

}  // namespace
}  // namespace moraine
