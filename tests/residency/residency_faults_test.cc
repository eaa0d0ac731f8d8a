// Reads that fail, come late, come short or bring the wrong bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "residency_world.h"

namespace moraine {
namespace {

using enum ExpertState;
using ::testing::AllOf;
using ::testing::HasSubstr;
using State = Lease::State;

constexpr int32_t kLetTheDiceDecide = 1 << 30;

// Faults scripted by the test while it runs.
struct Script {
  std::function<int32_t(const BlockRead&)> next;
  SimulatedFaults Faults(double corruption = 0) {
    SimulatedFaults faults;
    faults.min_latency_ns = faults.max_latency_ns = 1000;
    faults.corruption_probability = corruption;
    faults.script = [this](const BlockRead& read) {
      return next ? next(read) : kLetTheDiceDecide;
    };
    return faults;
  }
};

TEST(ResidencyFaultsTest, AReadErrorFailsTheLeasesAndTheNextRequestTriesAgain) {
  Script script;
  World world({.faults = script.Faults()});
  script.next = [](const BlockRead&) { return -EIO; };
  auto leases = world.Acquire(2, {5});
  auto also = world.Acquire(2, {5});
  world.Drain();
  ASSERT_EQ(leases[0].state(), State::kFailed);
  EXPECT_EQ(leases[0].failure().code(), StatusCode::kIoError);
  // Expert (2, 5) is record 21; a record's worth of header is in front.
  EXPECT_THAT(leases[0].failure().message(),
              AllOf(HasSubstr("layer 2 expert 5"), HasSubstr("experts-000.pack at offset 180224"),
                    HasSubstr("Input/output error")));
  EXPECT_EQ(also[0].state(), State::kFailed);
  EXPECT_EQ(world.StateOf(2, 5), kAbsent);
  EXPECT_EQ(world.manager().stats().failed_reads, 1u);
  world.manager().CheckInvariants();

  // The failure is still held while the expert is read again, into another slot.
  script.next = nullptr;
  auto retry = world.Acquire(2, {5});
  world.Drain();
  ASSERT_EQ(retry[0].state(), State::kReady);
  EXPECT_TRUE(world.IsRecord(retry[0].key(), retry[0].data()));
  EXPECT_EQ(leases[0].state(), State::kFailed);
  world.manager().CheckInvariants();
}

TEST(ResidencyFaultsTest, OneErrorIsRetriedBelowAndNeverSeen) {
  Script script;
  int errors = 1;
  World world({.faults = script.Faults()});
  script.next = [&](const BlockRead&) { return errors-- > 0 ? -EIO : kLetTheDiceDecide; };
  auto leases = world.Acquire(0, {1});
  world.Drain();
  EXPECT_EQ(leases[0].state(), State::kReady);
  EXPECT_EQ(world.manager().stats().failed_reads, 0u);
}

TEST(ResidencyFaultsTest, ShortReadsAreResumed) {
  Script script;
  int shortened = 0;
  World world({.faults = script.Faults(), .scheduler = {.chunk_bytes = 8192}});
  script.next = [&](const BlockRead& read) {
    return read.length > 4096 && ++shortened ? 4096 : kLetTheDiceDecide;
  };
  auto leases = world.Acquire(0, {1, 2});
  world.Drain();
  EXPECT_EQ(shortened, 2);
  for (const Lease& lease : leases) {
    ASSERT_EQ(lease.state(), State::kReady);
    EXPECT_TRUE(world.IsRecord(lease.key(), lease.data()));
  }
}

// The simulated device flips a bit in every read that the script leaves to the dice.
TEST(ResidencyFaultsTest, ARecordCorruptOnceIsReadAgain) {
  Script script;
  World world({.faults = script.Faults(/*corruption=*/1), .scheduler = {.chunk_bytes = 8192}});
  int reads = 0;
  // A scripted full read is a clean one.
  script.next = [&](const BlockRead& read) {
    return ++reads == 1 ? kLetTheDiceDecide : static_cast<int32_t>(read.length);
  };
  auto leases = world.Acquire(0, {1});
  world.Drain();
  EXPECT_EQ(reads, 2);
  EXPECT_EQ(world.manager().stats().healed, 1u);
  ASSERT_EQ(leases[0].state(), State::kReady);
  EXPECT_TRUE(world.IsRecord(leases[0].key(), leases[0].data()));
  EXPECT_EQ(world.manager().stats().quarantined, 0u);
}

TEST(ResidencyFaultsTest, ARecordCorruptTwiceIsQuarantinedForGood) {
  Script script;
  World world({.faults = script.Faults(/*corruption=*/1)});
  auto leases = world.Acquire(3, {2});
  world.Drain();
  ASSERT_EQ(leases[0].state(), State::kFailed);
  EXPECT_EQ(leases[0].failure().code(), StatusCode::kCorruption);
  EXPECT_THAT(leases[0].failure().message(),
              AllOf(HasSubstr("layer 3 expert 2"), HasSubstr("offset"), HasSubstr("checksum")));
  EXPECT_EQ(world.StateOf(3, 2), kQuarantined);
  EXPECT_EQ(world.manager().stats().quarantined, 1u);
  world.manager().CheckInvariants();

  const uint64_t submits = world.scheduler().stats().submit_calls;
  auto again = world.Acquire(3, {2});
  ASSERT_EQ(again.size(), 1u);
  ASSERT_EQ(again[0].state(), State::kFailed);  // at once, without I/O
  EXPECT_EQ(again[0].failure().message(), leases[0].failure().message());
  EXPECT_EQ(world.scheduler().stats().submit_calls, submits);
  EXPECT_EQ(world.Prefetch(3, {2}), 0u);
  world.manager().CheckInvariants();
  again.clear();
  leases.clear();
  world.manager().CheckInvariants();

  // The others are served.
  script.next = [](const BlockRead& read) { return static_cast<int32_t>(read.length); };
  auto healthy = world.Acquire(3, {3, 4});
  world.Drain();
  EXPECT_EQ(healthy[0].state(), State::kReady);
}

// Two chunks a record, one from each drive; the copies in `bad` have a flipped bit in every read.
TEST(ResidencyFaultsTest, ARecordCorruptInOneCopyIsReadFromTheOther) {
  for (const uint32_t bad : {0u, 1u}) {
    SCOPED_TRACE(bad);
    Script script;
    World world({.faults = script.Faults(/*corruption=*/1), .mirrored = true});
    uint64_t reads = 0;
    script.next = [&](const BlockRead& read) {
      ++reads;
      return read.file == FileId(bad) ? kLetTheDiceDecide : static_cast<int32_t>(read.length);
    };
    auto leases = world.Acquire(0, {1});
    world.Drain();
    ASSERT_EQ(leases[0].state(), State::kReady);
    EXPECT_TRUE(world.IsRecord(leases[0].key(), leases[0].data()));
    // Mixed, then copy 0, then, if that was the bad one, copy 1.
    EXPECT_EQ(reads, bad == 1 ? 4u : 6u);
    EXPECT_EQ(world.manager().stats().healed, 1u);
    EXPECT_EQ(world.manager().stats().quarantined, 0u);
    world.manager().CheckInvariants();
  }
}

TEST(ResidencyFaultsTest, ARecordCorruptInBothCopiesIsQuarantined) {
  Script script;
  World world({.faults = script.Faults(/*corruption=*/1), .mirrored = true});
  auto leases = world.Acquire(0, {1});
  world.Drain();
  ASSERT_EQ(leases[0].state(), State::kFailed);
  EXPECT_EQ(leases[0].failure().code(), StatusCode::kCorruption);
  EXPECT_THAT(leases[0].failure().message(),
              AllOf(HasSubstr("all 2 copies"), HasSubstr("layer 0 expert 1")));
  EXPECT_EQ(world.StateOf(0, 1), kQuarantined);
  EXPECT_EQ(world.manager().stats().quarantined, 1u);
  EXPECT_EQ(world.manager().stats().healed, 0u);
  EXPECT_EQ(world.manager().stats().bytes_read, 3 * kRecordBytes);
  world.manager().CheckInvariants();
}

TEST(ResidencyFaultsTest, ADeadDriveIsNotNoticedButTwoAre) {
  Script script;
  World world({.faults = script.Faults(), .mirrored = true});
  script.next = [](const BlockRead& read) {
    return read.file == FileId(0) ? -EIO : kLetTheDiceDecide;
  };
  for (uint32_t layer = 0; layer < 4; ++layer) {
    auto leases = world.Acquire(layer, {0, 1});
    world.Drain();
    for (const Lease& lease : leases) {
      ASSERT_EQ(lease.state(), State::kReady);
      EXPECT_TRUE(world.IsRecord(lease.key(), lease.data()));
    }
  }
  EXPECT_GT(world.mirrored().drive_stats()[0].healed, 0u);
  EXPECT_EQ(world.scheduler().stats().retries, 0u);
  script.next = [](const BlockRead&) { return -EIO; };
  auto leases = world.Acquire(0, {5});
  world.Drain();
  ASSERT_EQ(leases[0].state(), State::kFailed);
  EXPECT_THAT(leases[0].failure().message(), AllOf(HasSubstr(kPackName), HasSubstr(kMirrorName)));
  world.manager().CheckInvariants();
}

TEST(ResidencyFaultsTest, AQuarantineTakesNoSlot) {
  Script script;
  World world({.slot_count = 4, .faults = script.Faults(/*corruption=*/1)});
  world.Use(0, {0, 1});
  world.Use(0, {2, 3});
  EXPECT_EQ(world.manager().stats().quarantined, 4u);
  script.next = [](const BlockRead& read) { return static_cast<int32_t>(read.length); };
  auto bad = world.Acquire(0, {0, 1, 2, 3});
  EXPECT_EQ(bad.size(), 4u);
  auto good = world.Acquire(1, {0, 1});
  EXPECT_EQ(good.size(), 2u);
  world.Drain();
  EXPECT_EQ(good[1].state(), State::kReady);
}

TEST(ResidencyFaultsTest, AMissedDeadlineFailsLeasesAtOnceAndTheSlotDrains) {
  WorldOptions options;
  options.slot_count = 4;
  options.read_deadline_ns = 10'000;
  options.faults.min_latency_ns = options.faults.max_latency_ns = 1'000'000;
  // A device that cannot be asked to stop would take all of it; with seed 3 it does not stop.
  options.seed = 3;
  World world(options);
  auto leases = world.Acquire(0, {0});
  while (leases[0].state() == State::kPending) world.manager().Poll(-1);
  ASSERT_EQ(leases[0].state(), State::kFailed);
  EXPECT_EQ(leases[0].failure().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(leases[0].failure().message(), HasSubstr("layer 0 expert 0"));
  ASSERT_EQ(world.StateOf(0, 0), kDraining);
  world.manager().CheckInvariants();

  // Somebody else wants it meanwhile: the same failure, at once.
  auto late = world.Acquire(0, {0});
  EXPECT_EQ(late[0].state(), State::kFailed);
  EXPECT_EQ(late[0].failure().code(), StatusCode::kDeadlineExceeded);
  // Released or not, the slot is not free: the device may still write to it.
  leases.clear();
  late.clear();
  world.manager().CheckInvariants();
  EXPECT_EQ(world.StateOf(0, 0), kDraining);
  world.Drain();
  EXPECT_EQ(world.StateOf(0, 0), kAbsent);
  world.manager().CheckInvariants();
}

TEST(ResidencyFaultsTest, ADrainedSlotStaysWithItsFailedLease) {
  WorldOptions options;
  options.read_deadline_ns = 10'000;
  options.faults.min_latency_ns = options.faults.max_latency_ns = 1'000'000;
  World world(options);
  auto leases = world.Acquire(0, {0});
  world.Drain();
  EXPECT_EQ(world.StateOf(0, 0), kAbsent);
  EXPECT_EQ(leases[0].state(), State::kFailed);
  EXPECT_THAT(leases[0].failure().message(), HasSubstr("did not arrive within 10 us"));
  world.manager().CheckInvariants();
}

TEST(ResidencyFaultsTest, AFailedPrefetchIsWastedAndFailsNobody) {
  Script script;
  World world({.slot_count = 16, .faults = script.Faults()});
  script.next = [](const BlockRead&) { return -EIO; };
  ASSERT_EQ(world.Prefetch(1, {4}), 1u);
  world.Drain();
  EXPECT_EQ(world.StateOf(1, 4), kAbsent);
  EXPECT_EQ(world.manager().stats().prefetch_wasted, 1u);
  world.manager().CheckInvariants();
}

TEST(ResidencyFaultsTest, ShutdownWhileASlotDrains) {
  WorldOptions options;
  options.read_deadline_ns = 10'000;
  options.faults.min_latency_ns = options.faults.max_latency_ns = 1'000'000;
  options.seed = 3;
  World world(options);
  auto leases = world.Acquire(0, {0});
  while (leases[0].state() == State::kPending) world.manager().Poll(-1);
  leases.clear();
  world.DestroyManager();
  EXPECT_TRUE(world.scheduler().idle());
}

}  // namespace
}  // namespace moraine
