// What a drive does wrong, and what the scheduler makes of it.
#include <gmock/gmock.h>

#include <cerrno>

#include "scheduler_fixture.h"

namespace moraine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int32_t kDice = 1 << 30;

class ReadSchedulerFaultTest : public SchedulerFixture {
 protected:
  ReadOutcome OnlyOutcome() {
    auto outcomes = PollUntilIdle();
    EXPECT_EQ(outcomes.size(), 1u);
    return outcomes.empty() ? ReadOutcome() : outcomes[0];
  }
};

TEST_F(ReadSchedulerFaultTest, AShortReadIsResumedWhereItEnded) {
  int calls = 0;
  faults_.script = [&calls](const BlockRead&) {
    return ++calls == 1 ? int32_t{3 * kBlock} : kDice;
  };
  Start({.chunk_bytes = 8 * kBlock});
  const ReadId id = Enqueue(16 * kBlock, 8 * kBlock);
  EXPECT_TRUE(OnlyOutcome().status.ok());
  EXPECT_TRUE(BytesAreRight(id));
  EXPECT_THAT(IssuedOffsets(), testing::ElementsAre(16 * kBlock, 19 * kBlock));
  EXPECT_EQ(log_.batches[1][0].length, 5 * kBlock);
  EXPECT_EQ(scheduler_->stats().short_reads, 1u);
  EXPECT_EQ(scheduler_->stats().retries, 0u);
}

TEST_F(ReadSchedulerFaultTest, AReadThatEndsInsideABlockIsResumedAtTheBlock) {
  int calls = 0;
  faults_.script = [&calls](const BlockRead&) { return ++calls == 1 ? 2 * 4096 + 123 : kDice; };
  Start({.chunk_bytes = 8 * kBlock});
  const ReadId id = Enqueue(0, 8 * kBlock);
  EXPECT_TRUE(OnlyOutcome().status.ok());
  EXPECT_TRUE(BytesAreRight(id));
  EXPECT_EQ(IssuedOffsets()[1], 2 * kBlock);
}

TEST_F(ReadSchedulerFaultTest, ShortReadsDoNotUseUpAttempts) {
  faults_.script = [](const BlockRead&) { return int32_t{kBlock}; };  // a block at a time
  Start({.chunk_bytes = 16 * kBlock, .max_attempts = 1});
  const ReadId id = Enqueue(0, 16 * kBlock);
  EXPECT_TRUE(OnlyOutcome().status.ok());
  EXPECT_TRUE(BytesAreRight(id));
  EXPECT_EQ(scheduler_->stats().short_reads, 15u);
}

TEST_F(ReadSchedulerFaultTest, EioOnceIsRetried) {
  int failures_left = 2;
  faults_.script = [&failures_left](const BlockRead& read) {
    return read.offset == 2 * kBlock && failures_left-- > 0 ? -EIO : kDice;
  };
  Start({.chunk_bytes = kBlock, .max_attempts = 3});
  const ReadId id = Enqueue(0, 4 * kBlock);
  EXPECT_TRUE(OnlyOutcome().status.ok());
  EXPECT_TRUE(BytesAreRight(id));
  EXPECT_EQ(scheduler_->stats().retries, 2u);
  EXPECT_EQ(scheduler_->stats().failures, 0u);
}

TEST_F(ReadSchedulerFaultTest, EioForEverFailsTheRecordAndSaysWhere) {
  int attempts = 0;
  faults_.script = [&attempts](const BlockRead& read) {
    if (read.offset != 6 * kBlock) return kDice;
    ++attempts;
    return -EIO;
  };
  Start({.chunk_bytes = kBlock, .max_attempts = 3});
  Enqueue(4 * kBlock, 4 * kBlock);
  const ReadOutcome outcome = OnlyOutcome();
  EXPECT_EQ(attempts, 3);
  EXPECT_EQ(outcome.status.code(), StatusCode::kIoError);
  EXPECT_TRUE(outcome.buffer_released);
  EXPECT_THAT(outcome.status.message(),
              AllOf(HasSubstr("experts-000.pack"), HasSubstr("reading 4096 bytes at offset 24576"),
                    HasSubstr("Input/output error"), HasSubstr("errno 5"), HasSubstr("3 attempts"),
                    HasSubstr("record of 16384 bytes at offset 16384")));
  EXPECT_EQ(scheduler_->stats().failures, 1u);
  EXPECT_EQ(scheduler_->stats().retries, 2u);
  EXPECT_EQ(scheduler_->stats().demand_records, 0u);
}

TEST_F(ReadSchedulerFaultTest, OneFailedRecordDoesNotTouchTheOthers) {
  faults_.max_latency_ns = 1000;
  faults_.script = [](const BlockRead& read) {
    return read.offset >= 8 * kBlock && read.offset < 16 * kBlock ? -EIO : kDice;
  };
  Start({.chunk_bytes = 2 * kBlock});
  const ReadId before = Enqueue(0, 8 * kBlock);
  const ReadId bad = Enqueue(8 * kBlock, 8 * kBlock);
  const ReadId after = Enqueue(16 * kBlock, 8 * kBlock);
  for (const ReadOutcome& outcome : PollUntilIdle()) {
    EXPECT_EQ(outcome.status.ok(), outcome.id != bad);
  }
  EXPECT_TRUE(BytesAreRight(before));
  EXPECT_TRUE(BytesAreRight(after));
}

TEST_F(ReadSchedulerFaultTest, AFailedRecordIsReportedWhenItsLastChunkHasLanded) {
  faults_.script = [](const BlockRead& read) { return read.offset == 0 ? -EIO : kDice; };
  faults_.min_latency_ns = 1000;
  faults_.max_latency_ns = 90'000;
  Start({.chunk_bytes = kBlock, .max_attempts = 1});
  Enqueue(0, 8 * kBlock);
  const ReadOutcome outcome = OnlyOutcome();
  EXPECT_FALSE(outcome.status.ok());
  EXPECT_TRUE(outcome.buffer_released);
  EXPECT_EQ(scheduler_->reader().in_flight(), 0u);
}

TEST_F(ReadSchedulerFaultTest, ATruncatedFileSaysHowMuchThereIs) {
  file_bytes_ = 10 * kBlock + 1000;
  for (const uint32_t chunk_bytes : {kBlock, 4 * kBlock, 64 * kBlock}) {
    SCOPED_TRACE(chunk_bytes);
    arena_used_ = 0;
    Start({.chunk_bytes = chunk_bytes});
    Enqueue(8 * kBlock, 8 * kBlock);
    const ReadOutcome outcome = OnlyOutcome();
    EXPECT_EQ(outcome.status.code(), StatusCode::kCorruption);
    EXPECT_THAT(outcome.status.message(),
                AllOf(HasSubstr("experts-000.pack"), HasSubstr("at offset 32768"),
                      HasSubstr("expected 32768 bytes"), HasSubstr("found 9192")));
    EXPECT_EQ(scheduler_->stats().failures, 1u);
  }
}

TEST_F(ReadSchedulerFaultTest, ARecordBehindTheEndFindsNothing) {
  file_bytes_ = 4 * kBlock;
  Start({.chunk_bytes = kBlock});
  Enqueue(8 * kBlock, 2 * kBlock);
  const ReadOutcome outcome = OnlyOutcome();
  EXPECT_EQ(outcome.status.code(), StatusCode::kCorruption);
  EXPECT_THAT(outcome.status.message(), HasSubstr("found 0"));
}

TEST_F(ReadSchedulerFaultTest, ADeadlineOfAFailingRecordReportsTheFailure) {
  // The first block fails, the last one takes its time: a waiter must not wait for the buffer.
  faults_.script = [](const BlockRead& read) { return read.offset == 0 ? -EIO : kDice; };
  faults_.min_latency_ns = 1000;
  faults_.max_latency_ns = 90'000;
  int failures_before_release = 0;
  for (int64_t deadline_us = 1; deadline_us <= 100; ++deadline_us) {
    clock_ = ManualClock();
    arena_used_ = 0;
    Start({.chunk_bytes = kBlock, .max_attempts = 1});
    Enqueue(0, 8 * kBlock, ReadPriority::kDemand, deadline_us * 1000);
    const auto outcomes = PollUntilIdle();
    ASSERT_FALSE(outcomes.empty());
    EXPECT_TRUE(outcomes.back().buffer_released);
    EXPECT_EQ(outcomes.back().status.code(), outcomes.front().status.code());
    if (outcomes.size() == 1) continue;
    ASSERT_EQ(outcomes.size(), 2u);
    EXPECT_FALSE(outcomes[0].buffer_released);
    EXPECT_EQ(outcomes[0].latency_ns, deadline_us * 1000);
    if (outcomes[0].status.code() == StatusCode::kIoError) ++failures_before_release;
  }
  EXPECT_GT(failures_before_release, 0);
}

TEST_F(ReadSchedulerFaultTest, ARetryOfSpeculationDoesNotStarveDemand) {
  // All of the drive's depth is filled with speculation that fails; demand must still get through.
  capacity_ = 2;
  faults_.script = [](const BlockRead& read) { return read.offset >= 64 * kBlock ? -EIO : kDice; };
  faults_.min_latency_ns = faults_.max_latency_ns = 1000;
  Start({.chunk_bytes = kBlock, .max_attempts = 1000, .speculative_depth = 8});
  EnqueueSpeculative(64 * kBlock, 8 * kBlock);
  scheduler_->Flush();
  const ReadId demand = Enqueue(0, 8 * kBlock);
  std::vector<ReadOutcome> outcomes;
  while (outcomes.empty()) scheduler_->Poll(&outcomes, 10'000);
  EXPECT_EQ(outcomes[0].id, demand);
  EXPECT_TRUE(outcomes[0].status.ok());
  EXPECT_LE(clock_.NowNs(), 6000);  // one round of speculation, then four of demand
}

TEST_F(ReadSchedulerFaultTest, ScriptedEndlessErrorsUnderReorderingFailEachRecordOnce) {
  faults_.max_latency_ns = 10'000;
  faults_.error_probability = 1;
  Start({.chunk_bytes = kBlock});
  for (uint64_t i = 0; i < 10; ++i) Enqueue(i * 8 * kBlock, 8 * kBlock);
  const auto outcomes = PollUntilIdle();
  EXPECT_EQ(outcomes.size(), 10u);
  for (const ReadOutcome& outcome : outcomes) {
    EXPECT_EQ(outcome.status.code(), StatusCode::kIoError);
  }
}

}  // namespace
}  // namespace moraine
