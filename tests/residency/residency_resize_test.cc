// The number of slots changes: memory is given back and taken, nothing that is held is touched.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "residency_world.h"

namespace moraine {
namespace {

using enum ExpertState;
using ::testing::HasSubstr;
using State = Lease::State;

constexpr uint64_t kAllWork = 1 << 30;

// 4 layers of 8 experts, top-2; segments of 4 slots.
WorldOptions Growable(uint32_t slots, uint32_t most) {
  WorldOptions options;
  options.slot_count = slots;
  options.max_slot_count = most;
  options.slots_per_segment = 4;
  options.ring_slots = 2;
  return options;
}

void FillTheCache(World& world) {
  for (uint32_t layer = 0; layer < 4; ++layer) {
    for (uint32_t expert = 0; expert < 8; expert += 2) world.Use(layer, {expert, expert + 1});
  }
}

TEST(ResidencyResizeTest, ShrinkingGivesMemoryBackAndKeepsWhatThePolicyPrefers) {
  World world(Growable(34, 34));
  FillTheCache(world);
  ASSERT_EQ(world.manager().stats().resident, 32u);
  for (int i = 0; i < 20; ++i) {  // heat
    world.manager().BeginStep(1);
    for (uint32_t layer = 0; layer < 4; ++layer) world.Use(layer, {6, 7});
  }
  ASSERT_TRUE(world.manager().SetSlotTarget(10).ok());
  while (world.manager().AdvanceResize(kAllWork)) world.manager().CheckInvariants();
  world.manager().CheckInvariants();
  EXPECT_EQ(world.segments().mapped_slots(), 10u);
  EXPECT_EQ(world.manager().stats().slot_count, 10u);
  EXPECT_EQ(world.manager().stats().resident, 8u);
  EXPECT_GT(world.manager().stats().moved, 0u) << "the hot were not all in the segments that stayed";
  const uint64_t read = world.manager().stats().bytes_read;
  for (uint32_t layer = 0; layer < 4; ++layer) {
    const auto leases = world.Acquire(layer, {6, 7});
    for (const Lease& lease : leases) {
      ASSERT_EQ(lease.state(), State::kReady) << "layer " << layer;
      EXPECT_TRUE(world.IsRecord(lease.key(), lease.data())) << "moved with its bytes";
    }
  }
  EXPECT_EQ(world.manager().stats().bytes_read, read) << "the hot experts have survived";
}

TEST(ResidencyResizeTest, EveryTargetIsReachedExactlyFromEveryOther) {
  World world(Growable(20, 30));
  for (uint32_t from = MinimumSlots(2); from <= 30; ++from) {
    for (uint32_t to = MinimumSlots(2); to <= 30; ++to) {
      for (const uint32_t target : {from, to}) {
        ASSERT_TRUE(world.manager().SetSlotTarget(target).ok());
        const uint32_t fewest = std::min(target, world.manager().stats().slot_count);
        while (world.manager().AdvanceResize(1)) {
          world.manager().CheckInvariants();
          EXPECT_GE(world.manager().stats().slot_count, fewest) << from << " to " << to;
        }
        EXPECT_EQ(world.segments().mapped_slots(), target) << from << " to " << to;
        EXPECT_EQ(world.manager().stats().slot_count, target);
      }
    }
    FillTheCache(world);
  }
}

TEST(ResidencyResizeTest, ALeaseHoldsItsSegmentAndTheShrinkEndsWithIt) {
  World world(Growable(16, 16));
  FillTheCache(world);
  auto held = world.Acquire(3, {6});
  auto other = world.Acquire(2, {1, 4});
  world.Drain();
  const std::byte* const address = held[0].data();
  ASSERT_TRUE(world.manager().SetSlotTarget(4).ok());
  // Two experts of another layer and this one: all four remaining slots and more are wanted.
  while (world.manager().AdvanceResize(kAllWork) &&
         world.manager().stats().closing_slots > 3) {
  }
  EXPECT_TRUE(world.manager().AdvanceResize(kAllWork)) << "leases are in the way";
  EXPECT_GT(world.segments().mapped_slots(), 4u);
  ASSERT_EQ(held[0].state(), State::kReady);
  EXPECT_EQ(held[0].data(), address);
  EXPECT_TRUE(world.IsRecord(held[0].key(), held[0].data()));
  world.manager().CheckInvariants();

  // Requests go on meanwhile.
  auto more = world.Acquire(0, {0, 1});
  EXPECT_EQ(more.size(), 2u);
  world.Drain();
  EXPECT_EQ(more[1].state(), State::kReady);
  more.clear();
  held.clear();
  other.clear();
  while (world.manager().AdvanceResize(kAllWork)) world.manager().CheckInvariants();
  EXPECT_EQ(world.segments().mapped_slots(), 4u);
  world.manager().CheckInvariants();
}

TEST(ResidencyResizeTest, AReadInFlightLandsAndItsSlotIsVacatedAfterwards) {
  WorldOptions options = Growable(16, 16);
  options.faults.min_latency_ns = options.faults.max_latency_ns = 1'000'000;
  World world(options);
  std::vector<Lease> pending = world.Acquire(1, {0, 1});
  ASSERT_EQ(world.Prefetch(2, {0, 1, 2}), 3u);
  ASSERT_TRUE(world.manager().SetSlotTarget(5).ok());
  EXPECT_TRUE(world.manager().AdvanceResize(kAllWork));
  world.manager().CheckInvariants();
  world.Drain();  // the simulated device CHECKs that nothing is unmapped under it
  ASSERT_EQ(pending[0].state(), State::kReady);
  EXPECT_TRUE(world.IsRecord(pending[1].key(), pending[1].data()));
  pending.clear();
  while (world.manager().AdvanceResize(kAllWork)) world.manager().CheckInvariants();
  EXPECT_EQ(world.segments().mapped_slots(), 5u);
}

TEST(ResidencyResizeTest, TheRingFollowsTheNumberOfSlots) {
  WorldOptions options = Growable(34, 34);
  options.ring_slots = 0;
  options.experts_per_layer = {40, 40, 40, 40};
  World world(options);
  EXPECT_EQ(world.manager().stats().ring_slots, 4u);
  ASSERT_TRUE(world.manager().SetSlotTarget(17).ok());
  while (world.manager().AdvanceResize(kAllWork)) {
  }
  EXPECT_EQ(world.manager().stats().ring_slots, 2u);
  ASSERT_TRUE(world.manager().SetSlotTarget(32).ok());
  while (world.manager().AdvanceResize(kAllWork)) {
  }
  EXPECT_EQ(world.manager().stats().ring_slots, 4u);
  world.manager().CheckInvariants();
}

TEST(ResidencyResizeTest, TargetsBeyondTheLimitsNameThem) {
  World world(Growable(8, 12));
  EXPECT_THAT(world.manager().SetSlotTarget(3).message(), HasSubstr("minimum for top-2 routing is 4"));
  EXPECT_THAT(world.manager().SetSlotTarget(13).message(), HasSubstr("maximum set at start is 12"));
  EXPECT_EQ(world.manager().stats().slot_target, 8u);
  EXPECT_FALSE(world.manager().AdvanceResize(kAllWork));
}

TEST(ResidencyResizeTest, GrowthWithoutMemoryEndsWhereItIs) {
  World world(Growable(8, 30));
  world.set_memory_is_short(true);
  ASSERT_TRUE(world.manager().SetSlotTarget(30).ok());
  EXPECT_FALSE(world.manager().AdvanceResize(kAllWork));
  EXPECT_EQ(world.manager().stats().slot_target, 8u);
  EXPECT_EQ(world.manager().stats().slot_count, 8u);
  world.manager().CheckInvariants();
  world.set_memory_is_short(false);
  ASSERT_TRUE(world.manager().SetSlotTarget(30).ok());
  EXPECT_FALSE(world.manager().AdvanceResize(kAllWork));
  EXPECT_EQ(world.segments().mapped_slots(), 30u);
}

TEST(SlotSegmentsTest, SegmentsFillTheirHugePages) {
  for (const uint64_t pages : {1u, 10u, 17u, 162u, 373u, 648u, 771u, 4096u}) {
    const uint64_t slot_bytes = pages * 4096;
    for (const uint32_t slots : {4u, 100u, 6144u, 58368u}) {
      const uint32_t count = SlotsPerSegment(slot_bytes, slots);
      ASSERT_GT(count, 0u);
      const uint64_t bytes = count * slot_bytes;
      const double waste = static_cast<double>(AlignUp(bytes, 2 * kMiB) - bytes);
      EXPECT_LE(waste / static_cast<double>(bytes), 1.0 / 20) << slot_bytes << " x " << slots;
      EXPECT_LE(bytes, std::max<uint64_t>(544 * kMiB, 2 * slot_bytes * slots / 64 + 64 * kMiB));
    }
  }
}

}  // namespace
}  // namespace moraine
