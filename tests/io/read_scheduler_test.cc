// Chunking, order, priorities, promotion, cancellation, deadlines, accounting.
#include <gmock/gmock.h>

#include <map>
#include <set>

#include "scheduler_fixture.h"

namespace moraine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(LatencyCountsTest, QuantilesAreBoundsOfBuckets) {
  LatencyCounts latency;
  EXPECT_FALSE(latency.QuantileNs(0.5));
  for (int i = 0; i < 98; ++i) latency.Add(32'000);
  EXPECT_EQ(latency.QuantileNs(0.5), 32'000);
  latency.Add(1'000'000);
  latency.Add(-1);
  EXPECT_EQ(latency.QuantileNs(0.99), 32'000);
  EXPECT_EQ(latency.QuantileNs(1), 1'024'000);
  for (size_t bucket = 0; bucket + 1 < LatencyCounts::kBuckets; ++bucket) {
    LatencyCounts one;
    one.Add(LatencyCounts::BoundNs(bucket));
    EXPECT_EQ(one.counts[bucket], 1u) << bucket;
    EXPECT_LT(LatencyCounts::BoundNs(bucket), LatencyCounts::BoundNs(bucket + 1));
  }
  latency.Add(60'000'000'000);  // beyond all bounds: no figure rather than a wrong one
  EXPECT_FALSE(latency.QuantileNs(1));
  EXPECT_EQ(latency.total(), 101u);
}

class ReadSchedulerTest : public SchedulerFixture {};

TEST_F(ReadSchedulerTest, ARecordInChunksArrivesWhole) {
  faults_.min_latency_ns = 100;
  faults_.max_latency_ns = 10'000;  // chunks come back in any order
  Start({.chunk_bytes = 4 * kBlock});
  const ReadId id = Enqueue(3 * kBlock, 21 * kBlock);
  EXPECT_FALSE(scheduler_->idle());
  EXPECT_EQ(scheduler_->demand_in_flight(), 1u);
  EXPECT_THAT(log_.batches, IsEmpty()) << "Enqueue must not issue";
  const auto outcomes = PollUntilIdle();
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, id);
  EXPECT_TRUE(outcomes[0].status.ok()) << outcomes[0].status.ToString();
  EXPECT_TRUE(outcomes[0].buffer_released);
  EXPECT_EQ(outcomes[0].latency_ns, clock_.NowNs());
  EXPECT_TRUE(BytesAreRight(id));
  EXPECT_EQ(IssuedOffsets().size(), 6u);  // ceil(21 / 4), none smaller than 21 / 6
  EXPECT_EQ(scheduler_->stats().demand_bytes, 21u * kBlock);
  EXPECT_EQ(scheduler_->stats().demand_records, 1u);
  EXPECT_EQ(scheduler_->stats().demand_latency.total(), 1u);
  EXPECT_EQ(scheduler_->demand_in_flight(), 0u);
}

TEST_F(ReadSchedulerTest, ChunksOfOneRecordAreOfAboutEqualSize) {
  Start({.chunk_bytes = 16 * kBlock});
  Enqueue(0, 17 * kBlock);
  scheduler_->Flush();
  ASSERT_EQ(log_.batches.size(), 1u);
  ASSERT_EQ(log_.batches[0].size(), 2u);
  EXPECT_EQ(log_.batches[0][0].length, 9 * kBlock);
  EXPECT_EQ(log_.batches[0][1].length, 8 * kBlock);
  PollUntilIdle();
}

TEST_F(ReadSchedulerTest, ChunksBeginWhereTheyAreAskedTo) {
  Start({.chunk_bytes = 16 * kBlock, .chunk_alignment = 8 * kBlock});
  Enqueue(0, 34 * kBlock);  // three chunks of 12 blocks without the alignment
  scheduler_->Flush();
  EXPECT_THAT(IssuedOffsets(), ElementsAre(0, 16 * kBlock, 32 * kBlock));
  PollUntilIdle();
}

TEST_F(ReadSchedulerTest, TellsOfPartsAsTheyArrive) {
  struct Parts final : ReadProgress {
    void OnPart(ReadId id, uint64_t offset, uint64_t length) override {
      bytes[id] += length;
      offsets[id].insert(offset);
    }
    std::map<ReadId, uint64_t> bytes;
    std::map<ReadId, std::set<uint64_t>> offsets;
  } parts;
  faults_.min_latency_ns = 100;
  faults_.max_latency_ns = 10'000;
  faults_.short_read_probability = 0.3;  // a part is told of when it is whole, once
  Start({.chunk_bytes = 4 * kBlock});
  scheduler_->SetProgress(&parts);
  const ReadId demand = Enqueue(0, 10 * kBlock);
  const ReadId speculative = EnqueueSpeculative(20 * kBlock, 4 * kBlock);
  size_t decided = 0;
  std::vector<ReadOutcome> outcomes;
  while (!scheduler_->idle()) {
    scheduler_->Poll(&outcomes, -1);
    for (; decided < outcomes.size(); ++decided) {
      const ReadId id = outcomes[decided].id;
      EXPECT_EQ(parts.bytes[id], (id == demand ? 10 : 4) * kBlock) << "before the outcome";
    }
  }
  EXPECT_EQ(decided, 2u);
  EXPECT_THAT(parts.offsets[demand], ElementsAre(0, 4 * kBlock, 8 * kBlock));
  EXPECT_THAT(parts.offsets[speculative], ElementsAre(0));
  scheduler_->SetProgress(nullptr);
}

TEST_F(ReadSchedulerTest, OneSubmitForAllThatFits) {
  capacity_ = 8;
  Start({.chunk_bytes = kBlock});
  for (int i = 0; i < 5; ++i) Enqueue(static_cast<uint64_t>(i) * 2 * kBlock, 2 * kBlock);
  scheduler_->Flush();
  ASSERT_EQ(log_.batches.size(), 1u);
  EXPECT_EQ(log_.batches[0].size(), 8u);
  EXPECT_EQ(scheduler_->stats().submit_calls, 1u);
  scheduler_->Flush();  // nothing fits: no call
  EXPECT_EQ(log_.batches.size(), 1u);
  EXPECT_EQ(PollUntilIdle().size(), 5u);
}

TEST_F(ReadSchedulerTest, MoreReadsThanCapacity) {
  capacity_ = 3;
  faults_.max_latency_ns = 500;
  Start({.chunk_bytes = kBlock});
  std::vector<ReadId> ids;
  for (uint64_t i = 0; i < 200; ++i) ids.push_back(Enqueue(i * kBlock, kBlock));
  const auto outcomes = PollUntilIdle();
  EXPECT_EQ(outcomes.size(), 200u);
  for (const ReadOutcome& outcome : outcomes) EXPECT_TRUE(outcome.status.ok());
  for (const ReadId id : ids) EXPECT_TRUE(BytesAreRight(id));
  EXPECT_EQ(log_.max_in_flight, 3u);
}

TEST_F(ReadSchedulerTest, DemandGoesBeforeSpeculationThatWasQueuedEarlier) {
  capacity_ = 4;
  Start({.chunk_bytes = kBlock, .speculative_depth = 4});
  EnqueueSpeculative(100 * kBlock, 3 * kBlock);
  Enqueue(0, 2 * kBlock);
  Enqueue(10 * kBlock, 3 * kBlock);
  scheduler_->Flush();
  // Four fit, five are demanded.
  EXPECT_THAT(IssuedOffsets(), ElementsAre(0, kBlock, 10 * kBlock, 11 * kBlock));
  PollUntilIdle();
  EXPECT_THAT(IssuedOffsets(), ElementsAre(0, kBlock, 10 * kBlock, 11 * kBlock, 12 * kBlock,
                                           100 * kBlock, 101 * kBlock, 102 * kBlock));
  EXPECT_EQ(scheduler_->stats().speculative_bytes, 3u * kBlock);
  EXPECT_EQ(scheduler_->stats().speculative_records, 1u);
}

TEST_F(ReadSchedulerTest, SpeculationNeverTakesMoreThanItsDepth) {
  faults_.min_latency_ns = faults_.max_latency_ns = 1000;
  Start({.chunk_bytes = kBlock, .speculative_depth = 2});
  for (uint64_t i = 0; i < 5; ++i) EnqueueSpeculative(i * kBlock, kBlock);
  EXPECT_EQ(scheduler_->speculative_pending(), 5u);
  EXPECT_EQ(PollUntilIdle().size(), 5u);
  EXPECT_EQ(log_.max_in_flight, 2u);
  EXPECT_EQ(scheduler_->speculative_pending(), 0u);
}

TEST_F(ReadSchedulerTest, SpeculationNeverTakesMoreThanItsBytesAndOneChunk) {
  faults_.min_latency_ns = faults_.max_latency_ns = 1000;
  Start({.chunk_bytes = 2 * kBlock, .speculative_depth = 8, .speculative_bytes = 3 * kBlock});
  for (uint64_t i = 0; i < 5; ++i) EnqueueSpeculative(i * 10 * kBlock, 2 * kBlock);
  EXPECT_EQ(PollUntilIdle().size(), 5u);
  EXPECT_EQ(log_.max_in_flight, 2u);
}

TEST_F(ReadSchedulerTest, SpeculationIsIssuedWhenFewDemandChunksAreLeft) {
  faults_.min_latency_ns = faults_.max_latency_ns = 1000;
  Start({.chunk_bytes = kBlock, .speculative_depth = 8, .demand_beside_speculation = 1});
  EnqueueSpeculative(100 * kBlock, kBlock);
  Enqueue(0, 2 * kBlock);
  scheduler_->Flush();
  EXPECT_THAT(IssuedOffsets(), ElementsAre(0, kBlock));
  PollUntilIdle();
  EXPECT_THAT(IssuedOffsets(), ElementsAre(0, kBlock, 100 * kBlock));
}

TEST_F(ReadSchedulerTest, CollectTakesWhatHasArrivedAndIssuesNothing) {
  Start({.chunk_bytes = kBlock, .speculative_depth = 1});
  EnqueueSpeculative(0, kBlock);
  EnqueueSpeculative(10 * kBlock, kBlock);
  scheduler_->Flush();
  std::vector<ReadOutcome> outcomes;
  EXPECT_EQ(scheduler_->Collect(&outcomes), 1u);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].delivered_bytes, kBlock);
  EXPECT_THAT(IssuedOffsets(), ElementsAre(0));
  EXPECT_EQ(PollUntilIdle().size(), 1u);
}

TEST_F(ReadSchedulerTest, APromotedReadHasTheDeadlineOfItsDemand) {
  faults_.min_latency_ns = faults_.max_latency_ns = 1'000'000;
  Start({.chunk_bytes = kBlock});
  const ReadId id = EnqueueSpeculative(0, kBlock);
  scheduler_->Flush();
  scheduler_->Promote(id, clock_.NowNs() + 1000);
  const auto outcomes = PollUntilIdle();
  ASSERT_FALSE(outcomes.empty());
  EXPECT_EQ(outcomes[0].status.code(), StatusCode::kDeadlineExceeded);
}

TEST_F(ReadSchedulerTest, AtDepthZeroSpeculationWaitsForPromotionAndPollDoesNotHang) {
  Start({.chunk_bytes = kBlock, .speculative_depth = 0});
  const ReadId id = EnqueueSpeculative(0, kBlock);
  EXPECT_THAT(Poll(-1), IsEmpty());
  EXPECT_THAT(log_.batches, IsEmpty());
  scheduler_->Promote(id);
  EXPECT_EQ(PollUntilIdle().size(), 1u);
  EXPECT_TRUE(BytesAreRight(id));
}

TEST_F(ReadSchedulerTest, PromotionMovesTheRestOfARecordAheadOfOtherSpeculation) {
  capacity_ = 1;
  Start({.chunk_bytes = kBlock, .speculative_depth = 4});
  EnqueueSpeculative(0, 2 * kBlock);
  const ReadId wanted = EnqueueSpeculative(50 * kBlock, 2 * kBlock);
  scheduler_->Flush();  // the first block of the first record
  scheduler_->Promote(wanted);
  EXPECT_EQ(scheduler_->demand_in_flight(), 1u);
  EXPECT_EQ(scheduler_->speculative_pending(), 1u);
  PollUntilIdle();
  EXPECT_THAT(IssuedOffsets(), ElementsAre(0, 50 * kBlock, 51 * kBlock, kBlock));
  EXPECT_EQ(scheduler_->stats().demand_records, 1u);
}

TEST_F(ReadSchedulerTest, PromotedChunksInFlightNoLongerCountAsSpeculation) {
  faults_.min_latency_ns = faults_.max_latency_ns = 1000;
  Start({.chunk_bytes = kBlock, .speculative_depth = 2});
  const ReadId first = EnqueueSpeculative(0, 2 * kBlock);
  EnqueueSpeculative(10 * kBlock, 2 * kBlock);
  scheduler_->Flush();
  EXPECT_EQ(scheduler_->reader().in_flight(), 2u);
  scheduler_->Promote(first);
  scheduler_->Flush();
  EXPECT_EQ(scheduler_->reader().in_flight(), 4u);
  EXPECT_EQ(PollUntilIdle().size(), 2u);
}

TEST_F(ReadSchedulerTest, CancellingWhatIsQueuedReadsNothing) {
  Start({.chunk_bytes = kBlock});
  const ReadId id = EnqueueSpeculative(0, 3 * kBlock);
  scheduler_->Cancel(id);
  EXPECT_FALSE(scheduler_->idle());  // the outcome is still to be told
  const auto outcomes = Poll(-1);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, id);
  EXPECT_EQ(outcomes[0].status.code(), StatusCode::kCancelled);
  EXPECT_TRUE(outcomes[0].buffer_released);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_THAT(log_.batches, IsEmpty());
  EXPECT_EQ(scheduler_->stats().cancelled, 1u);
}

TEST_F(ReadSchedulerTest, CancellingWhatIsInFlightHoldsTheBufferUntilItHasLanded) {
  capacity_ = 2;
  int64_t latency_ns = 1000;
  faults_.min_latency_ns = faults_.max_latency_ns = latency_ns;
  Start({.chunk_bytes = kBlock});
  const ReadId id = EnqueueSpeculative(0, 4 * kBlock);
  scheduler_->Flush();
  ASSERT_EQ(scheduler_->reader().in_flight(), 2u);
  scheduler_->Cancel(id);
  EXPECT_EQ(log_.cancelled_tags.size(), 2u);
  const auto outcomes = PollUntilIdle();
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].status.code(), StatusCode::kCancelled);
  EXPECT_TRUE(outcomes[0].buffer_released);
  EXPECT_EQ(scheduler_->reader().in_flight(), 0u);
  EXPECT_EQ(IssuedOffsets().size(), 2u) << "the queued half must not be read";
}

TEST_F(ReadSchedulerTest, DemandAndUnknownReadsAreNotCancelled) {
  Start({.chunk_bytes = kBlock});
  const ReadId demand = Enqueue(0, kBlock);
  const ReadId promoted = EnqueueSpeculative(kBlock, kBlock);
  scheduler_->Promote(promoted);
  scheduler_->Cancel(demand);
  scheduler_->Cancel(promoted);
  scheduler_->Cancel(12345);
  scheduler_->Promote(12345);
  for (const ReadOutcome& outcome : PollUntilIdle()) EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(scheduler_->stats().cancelled, 0u);
  // An id whose record was reused must not reach the new one.
  const ReadId reused = EnqueueSpeculative(2 * kBlock, kBlock);
  ASSERT_NE(reused, promoted);
  scheduler_->Cancel(promoted);
  scheduler_->Cancel(demand);
  ASSERT_EQ(Poll(-1).size(), 1u);
  EXPECT_TRUE(BytesAreRight(reused));
}

TEST_F(ReadSchedulerTest, ADeadlineReportsAtOnceAndReleasesTheBufferLater) {
  faults_.min_latency_ns = faults_.max_latency_ns = 50'000;
  capacity_ = 1;
  // A device that does not listen to cancellations, as real ones seldom do.
  Start({.chunk_bytes = kBlock});
  const ReadId id = Enqueue(0, 2 * kBlock, ReadPriority::kDemand, /*deadline_ns=*/20'000);
  auto outcomes = Poll(-1);
  EXPECT_EQ(clock_.NowNs(), 20'000);
  ASSERT_GE(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, id);
  EXPECT_EQ(outcomes[0].status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(outcomes[0].buffer_released);
  EXPECT_THAT(outcomes[0].status.message(), testing::HasSubstr(kPackPath));
  EXPECT_FALSE(scheduler_->idle());
  EXPECT_EQ(scheduler_->demand_in_flight(), 0u);
  const auto released = PollUntilIdle();
  ASSERT_EQ(released.size(), 1u);
  EXPECT_EQ(released[0].id, id);
  EXPECT_EQ(released[0].status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(released[0].buffer_released);
  EXPECT_EQ(IssuedOffsets().size(), 1u) << "the second block must not be read any more";
  EXPECT_EQ(scheduler_->stats().deadline_misses, 1u);
}

TEST_F(ReadSchedulerTest, ADeadlineInTheQueueIsOneOutcome) {
  capacity_ = 1;
  faults_.min_latency_ns = faults_.max_latency_ns = 50'000;
  Start({.chunk_bytes = kBlock});
  const ReadId first = Enqueue(0, kBlock);
  const ReadId late = Enqueue(kBlock, kBlock, ReadPriority::kDemand, 10'000);
  auto outcomes = Poll(-1);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, late);
  EXPECT_EQ(outcomes[0].status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(outcomes[0].buffer_released);
  outcomes = PollUntilIdle();
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, first);
  EXPECT_TRUE(outcomes[0].status.ok());
}

TEST_F(ReadSchedulerTest, WhatArrivedBeforeAnybodyLookedIsNotLate) {
  faults_.min_latency_ns = faults_.max_latency_ns = 1000;
  Start({.chunk_bytes = kBlock});
  const ReadId id = Enqueue(0, kBlock, ReadPriority::kDemand, 5000);
  scheduler_->Flush();
  clock_.AdvanceNs(9000);  // compute took long
  const auto outcomes = Poll(0);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_TRUE(outcomes[0].status.ok());
  EXPECT_TRUE(BytesAreRight(id));
}

TEST_F(ReadSchedulerTest, APollWithATimeLimitGivesUpInTime) {
  faults_.min_latency_ns = faults_.max_latency_ns = 50'000;
  Start({.chunk_bytes = kBlock});
  Enqueue(0, kBlock);
  EXPECT_THAT(Poll(0), IsEmpty());
  EXPECT_EQ(clock_.NowNs(), 0);
  EXPECT_THAT(Poll(30'000), IsEmpty());
  EXPECT_EQ(clock_.NowNs(), 30'000);
  EXPECT_EQ(Poll(30'000).size(), 1u);
  EXPECT_EQ(clock_.NowNs(), 50'000);
  EXPECT_THAT(Poll(-1), IsEmpty());  // idle: returns
}

TEST_F(ReadSchedulerTest, BusyTimeIsTheUnionOfTheReads) {
  faults_.min_latency_ns = faults_.max_latency_ns = 1000;
  Start({.chunk_bytes = kBlock});
  Enqueue(0, 4 * kBlock);
  PollUntilIdle();
  EXPECT_EQ(scheduler_->stats().busy_ns, 1000u) << "four chunks at once are busy once";
  clock_.AdvanceNs(77'000);
  EXPECT_THAT(Poll(0), IsEmpty());
  EXPECT_EQ(scheduler_->stats().busy_ns, 1000u) << "an idle drive is not busy";
  Enqueue(0, kBlock);
  scheduler_->Flush();
  clock_.AdvanceNs(400);
  EXPECT_THAT(Poll(0), IsEmpty());
  EXPECT_EQ(scheduler_->stats().busy_ns, 1400u) << "counted while it lasts";
  PollUntilIdle();
  EXPECT_EQ(scheduler_->stats().busy_ns, 2000u);
}

TEST_F(ReadSchedulerTest, DestroyedWithReadsInFlightAndQueued) {
  capacity_ = 4;
  faults_.min_latency_ns = faults_.max_latency_ns = 1'000'000;
  Start({.chunk_bytes = kBlock});
  for (uint64_t i = 0; i < 8; ++i) Enqueue(i * 2 * kBlock, 2 * kBlock);
  scheduler_->Flush();
  ASSERT_EQ(scheduler_->reader().in_flight(), 4u);
  scheduler_.reset();
  EXPECT_EQ(clock_.NowNs(), 1'000'000) << "the buffers are under DMA until then";
  EXPECT_EQ(IssuedOffsets().size(), 4u) << "what was queued must not be started by a shutdown";
}

TEST_F(ReadSchedulerTest, MisalignedReadsAreBugs) {
  Start({.chunk_bytes = kBlock});
  std::byte* const buffer = arena_.data();
  EXPECT_DEATH(scheduler_->Enqueue({file_, 100, kBlock, buffer}), "not aligned");
  EXPECT_DEATH(scheduler_->Enqueue({file_, 0, 100, buffer}), "not aligned");
  EXPECT_DEATH(scheduler_->Enqueue({file_, 0, kBlock, buffer + 1}), "not aligned");
}

}  // namespace
}  // namespace moraine
