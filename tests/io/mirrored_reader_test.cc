// Which copy is read, and that a copy which fails is not noticed.
#include "io/mirrored_reader.h"

#include <gmock/gmock.h>

#include <cerrno>

#include "scheduler_fixture.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kLetTheDiceDecide = 1 << 30;
constexpr char kMirrorPath[] = "mirror/experts-000.pack";
constexpr uint32_t kFileBytes = 256 * kBlock;

class MirroredReaderTest : public testing::Test {
 protected:
  void Start(std::vector<uint32_t> weights = {1, 1}, uint32_t capacity = 64,
             size_t mirror_bytes = kFileBytes, uint64_t seed = 11) {
    contents_ = RandomBytes(kFileBytes, 7);
    SimulatedReaderOptions simulated;
    simulated.seed = seed;
    simulated.capacity = capacity;
    simulated.faults = faults_;
    simulated.faults.script = [this](const BlockRead& read) {
      return script_ ? script_(read) : kLetTheDiceDecide;
    };
    simulated.manual_clock = &clock_;
    simulated.memory_files[kPackPath] = contents_;
    simulated.memory_files[kMirrorPath] = {contents_.begin(),
                                           contents_.begin() + static_cast<ptrdiff_t>(mirror_bytes)};
    reader_ = std::make_unique<MirroredReader>(
        std::make_unique<RecordingReader>(CreateSimulatedReader(std::move(simulated)), &log_),
        std::vector<MirroredReader::Drive>{{"a", weights[0]}, {"b", weights[1]}});
    file_ = *reader_->OpenCopies({{kPackPath, 0}, {kMirrorPath, 1}});
    arena_ = std::move(*HostArena::Allocate(kFileBytes, {.huge_pages = false}));
  }
  // At the place in the arena that the bytes have in the file.
  BlockRead Read(uint32_t block, uint32_t blocks, uint64_t tag, uint32_t copy = kAnyCopy) {
    return {file_, uint64_t{block} * kBlock, arena_.data() + uint64_t{block} * kBlock,
            blocks * kBlock, tag, copy};
  }
  void Submit(const BlockRead& read) { reader_->Submit(std::span(&read, 1)); }
  std::vector<BlockCompletion> Drain() {
    std::vector<BlockCompletion> completions;
    while (reader_->in_flight() > 0) reader_->Reap(&completions, -1);
    return completions;
  }
  bool IsRight(uint32_t block, uint32_t blocks) const {
    return std::memcmp(arena_.data() + uint64_t{block} * kBlock,
                       contents_.data() + uint64_t{block} * kBlock, uint64_t{blocks} * kBlock) == 0;
  }
  // 0 or 1 for each read that reached a drive.
  std::vector<uint32_t> Drives() const {
    std::vector<uint32_t> drives;
    for (const auto& batch : log_.batches) {
      for (const BlockRead& read : batch) drives.push_back(read.file.value());
    }
    return drives;
  }

  ManualClock clock_;
  SimulatedFaults faults_ = {.min_latency_ns = 1000, .max_latency_ns = 1000, .script = {}};
  std::function<int32_t(const BlockRead&)> script_;
  std::vector<std::byte> contents_;
  RecordingReader::Log log_;
  HostArena arena_;
  std::unique_ptr<MirroredReader> reader_;
  FileId file_;
};

TEST_F(MirroredReaderTest, TheDriveWithFewerBytesInFlightIsRead) {
  Start();
  Submit(Read(0, 4, 1));   // both idle: the first copy
  Submit(Read(4, 1, 2));   // 1 block to 4
  Submit(Read(5, 1, 3));   // 2 to 4
  Submit(Read(6, 2, 4));   // 4 to 4
  Submit(Read(8, 1, 5));   // equal: the first copy
  EXPECT_THAT(Drives(), ElementsAre(0, 1, 1, 1, 0));
  EXPECT_EQ(Drain().size(), 5u);
  EXPECT_TRUE(IsRight(0, 9));
  Submit(Read(9, 1, 6));  // what has landed no longer counts
  EXPECT_EQ(Drives().back(), 0u);
  Drain();
  EXPECT_EQ(reader_->drive_stats()[0].bytes, 6u * kBlock);
  EXPECT_EQ(reader_->drive_stats()[1].bytes, 4u * kBlock);
  EXPECT_EQ(reader_->drive_stats()[1].reads, 3u);
}

TEST_F(MirroredReaderTest, TheFasterDriveGetsMoreByItsWeight) {
  Start({1, 3});
  for (uint32_t i = 0; i < 8; ++i) Submit(Read(i, 1, i));
  EXPECT_THAT(Drives(), ElementsAre(1, 1, 1, 0, 1, 1, 1, 0));
  Drain();
}

TEST_F(MirroredReaderTest, AnErrorOfOneDriveIsHealedByTheOtherAndCounted) {
  Start();
  script_ = [](const BlockRead& read) {
    return read.file == FileId(0) ? -EIO : kLetTheDiceDecide;
  };
  Submit(Read(3, 2, 77));
  const auto completions = Drain();
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].tag, 77u);
  EXPECT_EQ(completions[0].result, static_cast<int32_t>(2 * kBlock));
  EXPECT_TRUE(IsRight(3, 2));
  EXPECT_THAT(Drives(), ElementsAre(0, 1));
  const DriveStats& broken = reader_->drive_stats()[0];
  EXPECT_EQ(broken.errors, 1u);
  EXPECT_EQ(broken.healed, 1u);
  EXPECT_EQ(broken.bytes, 0u);
  EXPECT_EQ(reader_->drive_stats()[1].errors, 0u);
}

TEST_F(MirroredReaderTest, WhatBothDrivesFailIsReportedOnce) {
  Start();
  script_ = [](const BlockRead& read) { return read.file == FileId(0) ? -EIO : 0; };
  Submit(Read(0, 1, 5));
  const auto completions = Drain();
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].result, -EIO);  // rather than "the file ends": it is worth another try
  EXPECT_EQ(Drives().size(), 2u);
  EXPECT_EQ(reader_->drive_stats()[0].healed + reader_->drive_stats()[1].healed, 0u);
}

TEST_F(MirroredReaderTest, ATruncatedCopyIsHealed) {
  Start({1, 1}, 64, /*mirror_bytes=*/2 * kBlock);
  Submit(Read(8, 1, 1, /*copy=*/1));
  const auto completions = Drain();
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].result, static_cast<int32_t>(kBlock));
  EXPECT_TRUE(IsRight(8, 1));
  EXPECT_EQ(reader_->drive_stats()[1].healed, 1u);
}

TEST_F(MirroredReaderTest, ACopyThatIsAskedForIsRead) {
  Start();
  for (uint32_t i = 0; i < 4; ++i) Submit(Read(i, 1, i, /*copy=*/1));
  EXPECT_THAT(Drives(), ElementsAre(1, 1, 1, 1));
  Drain();
}

TEST_F(MirroredReaderTest, ACancelledReadIsNotTriedAgain) {
  Start();
  script_ = [](const BlockRead&) { return -EIO; };
  Submit(Read(0, 1, 5));
  Submit(Read(1, 1, 6));
  reader_->Cancel(6);
  ASSERT_EQ(log_.cancelled_tags.size(), 1u);
  EXPECT_EQ(log_.cancelled_tags[0], log_.batches[1][0].tag);  // the inner reader's tag
  EXPECT_EQ(Drain().size(), 2u);
  EXPECT_EQ(Drives().size(), 3u);  // the other one's second copy alone
}

TEST_F(MirroredReaderTest, ABrokenDriveIsLeftAloneButProbedAndTakenBack) {
  Start();
  bool broken = true;
  script_ = [&](const BlockRead& read) {
    return broken && read.file == FileId(0) ? -EIO : kLetTheDiceDecide;
  };
  const auto one = [&] {
    Submit(Read(0, 1, 1));
    const auto completions = Drain();
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].result, static_cast<int32_t>(kBlock));
  };
  for (uint32_t i = 0; i < MirroredReader::kSuspectErrors; ++i) one();
  EXPECT_EQ(reader_->drive_stats()[0].errors, uint64_t{MirroredReader::kSuspectErrors});
  for (uint32_t i = 1; i < MirroredReader::kProbeInterval; ++i) one();
  EXPECT_EQ(reader_->drive_stats()[0].errors, uint64_t{MirroredReader::kSuspectErrors});
  one();  // the probe
  EXPECT_EQ(reader_->drive_stats()[0].errors, uint64_t{MirroredReader::kSuspectErrors} + 1);
  broken = false;
  for (uint32_t i = 0; i < MirroredReader::kProbeInterval; ++i) one();
  EXPECT_EQ(reader_->drive_stats()[0].reads, 1u);
  one();
  EXPECT_EQ(reader_->drive_stats()[0].reads, 2u);
}

TEST_F(MirroredReaderTest, PathAndErrorsNameBothCopies) {
  Start();
  EXPECT_THAT(reader_->path(file_), AllOf(HasSubstr(kPackPath), HasSubstr(kMirrorPath)));
  EXPECT_THAT(reader_->OpenCopies({{kPackPath, 0}, {"/absent/experts-000.pack", 1}}).status().message(),
              HasSubstr("/absent/experts-000.pack"));
}

// One broken drive of two, in every way at once, below the scheduler: nothing is lost, nothing wrong.
TEST_F(MirroredReaderTest, RandomRecordsUnderTheSchedulerSurviveABrokenDrive) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    faults_ = {.short_read_probability = 0.3, .min_latency_ns = 100, .max_latency_ns = 50'000,
               .script = {}};
    Random random(seed);
    const FileId broken(static_cast<uint32_t>(random.Below(2)));
    const double share = random.Uniform();
    script_ = [&](const BlockRead& read) {
      return read.file == broken && random.Chance(share) ? (random.Chance(0.5) ? -EIO : 0)
                                                         : kLetTheDiceDecide;
    };
    Start({1 + static_cast<uint32_t>(random.Below(3)), 1}, 8, kFileBytes, seed);
    MirroredReader& mirrored = *reader_;
    ReadScheduler scheduler(std::move(reader_), {.chunk_bytes = 2 * kBlock}, clock_);
    std::vector<ReadOutcome> outcomes;
    std::vector<std::pair<uint32_t, uint32_t>> records;  // block, blocks
    for (uint32_t block = 0; block + 8 <= 256; block += 8) {
      records.emplace_back(block, 1 + static_cast<uint32_t>(random.Below(8)));
      const BlockRead read = Read(block, records.back().second, 0);
      scheduler.Enqueue({.file = file_, .offset = read.offset, .length = read.length,
                         .buffer = read.buffer,
                         .priority = random.Chance(0.3) ? ReadPriority::kSpeculative
                                                        : ReadPriority::kDemand});
      if (random.Chance(0.3)) scheduler.Poll(&outcomes, 0);
    }
    while (!scheduler.idle()) scheduler.Poll(&outcomes, -1);
    ASSERT_EQ(outcomes.size(), records.size());
    for (const ReadOutcome& outcome : outcomes) {
      EXPECT_TRUE(outcome.status.ok()) << outcome.status.ToString();
    }
    for (const auto& [block, blocks] : records) EXPECT_TRUE(IsRight(block, blocks)) << block;
    const DriveStats& stats = mirrored.drive_stats()[broken.value()];
    EXPECT_EQ(stats.healed, stats.errors);
    EXPECT_EQ(scheduler.stats().retries, 0u);
    EXPECT_EQ(mirrored.drive_stats()[0].bytes + mirrored.drive_stats()[1].bytes,
              scheduler.stats().demand_bytes + scheduler.stats().speculative_bytes);
    script_ = nullptr;
  }
}

}  // namespace
}  // namespace moraine
