// What the scheduler's tests share: a simulated drive with one file of random bytes on a manual
// clock, and a reader in front of it that writes down what reaches the device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "io/read_scheduler.h"
#include "io/simulated_reader.h"
#include "memory/host_arena.h"

namespace moraine {

// Forwards to another reader and remembers the batches and cancellations.
class RecordingReader final : public BlockReader {
 public:
  struct Log {
    std::vector<std::vector<BlockRead>> batches;
    std::vector<uint64_t> cancelled_tags;
    uint32_t max_in_flight = 0;
  };
  RecordingReader(std::unique_ptr<BlockReader> inner, Log* log)
      : inner_(std::move(inner)), log_(log) {}

  Result<FileId> OpenFile(const std::string& path) override { return inner_->OpenFile(path); }
  IoAlignment alignment(FileId file) const override { return inner_->alignment(file); }
  const std::string& path(FileId file) const override { return inner_->path(file); }
  void UnregisterBuffer(std::span<std::byte> buffer) override { inner_->UnregisterBuffer(buffer); }
  Status RegisterBuffers(std::span<const std::span<std::byte>> buffers) override {
    return inner_->RegisterBuffers(buffers);
  }
  uint32_t capacity() const override { return inner_->capacity(); }
  uint32_t in_flight() const override { return inner_->in_flight(); }
  void Submit(std::span<const BlockRead> reads) override {
    log_->batches.emplace_back(reads.begin(), reads.end());
    inner_->Submit(reads);
    log_->max_in_flight = std::max(log_->max_in_flight, inner_->in_flight());
  }
  void Cancel(uint64_t tag) override {
    log_->cancelled_tags.push_back(tag);
    inner_->Cancel(tag);
  }
  size_t Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) override {
    return inner_->Reap(completions, wait_ns);
  }
  const char* name() const override { return inner_->name(); }

 private:
  std::unique_ptr<BlockReader> inner_;
  Log* log_;
};

inline std::vector<std::byte> RandomBytes(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.Next());
  return bytes;
}

inline constexpr char kPackPath[] = "experts-000.pack";
inline constexpr uint32_t kBlock = 4096;

class SchedulerFixture : public testing::Test {
 protected:
  // Sets `faults_`, `capacity_`, `file_bytes_` before, as the test needs them.
  void Start(ReadSchedulerOptions options) {
    contents_ = RandomBytes(file_bytes_, 7);
    SimulatedReaderOptions simulated;
    simulated.seed = 11;
    simulated.capacity = capacity_;
    simulated.faults = faults_;
    simulated.manual_clock = &clock_;
    simulated.memory_files[kPackPath] = contents_;
    scheduler_ = std::make_unique<ReadScheduler>(
        std::make_unique<RecordingReader>(CreateSimulatedReader(std::move(simulated)), &log_),
        options, clock_);
    file_ = *scheduler_->reader().OpenFile(kPackPath);
    auto arena = HostArena::Allocate(1 << 20, {.huge_pages = false});
    ASSERT_TRUE(arena.ok());
    arena_ = std::move(*arena);
  }

  // Buffers are taken from the arena one after the other.
  ReadId Enqueue(uint64_t offset, uint64_t length, ReadPriority priority = ReadPriority::kDemand,
                 int64_t deadline_ns = 0) {
    std::byte* const buffer = arena_.data() + arena_used_;
    arena_used_ += length;
    CHECK(arena_used_ <= arena_.size_bytes(), "the test's arena is too small");
    const ReadId id = scheduler_->Enqueue({file_, offset, length, buffer, priority, deadline_ns});
    reads_[id] = {offset, length, buffer};
    return id;
  }
  ReadId EnqueueSpeculative(uint64_t offset, uint64_t length) {
    return Enqueue(offset, length, ReadPriority::kSpeculative);
  }
  std::vector<ReadOutcome> Poll(int64_t wait_ns) {
    std::vector<ReadOutcome> outcomes;
    const size_t count = scheduler_->Poll(&outcomes, wait_ns);
    EXPECT_EQ(count, outcomes.size());
    return outcomes;
  }
  std::vector<ReadOutcome> PollUntilIdle() {
    std::vector<ReadOutcome> outcomes;
    while (!scheduler_->idle()) {
      if (scheduler_->Poll(&outcomes, -1) == 0) break;
    }
    EXPECT_TRUE(scheduler_->idle());
    return outcomes;
  }
  bool BytesAreRight(ReadId id) const {
    const Read& read = reads_.at(id);
    return std::memcmp(read.buffer, contents_.data() + read.offset, read.length) == 0;
  }
  // Offsets in the order in which they reached the device.
  std::vector<uint64_t> IssuedOffsets() const {
    std::vector<uint64_t> offsets;
    for (const auto& batch : log_.batches) {
      for (const BlockRead& read : batch) offsets.push_back(read.offset);
    }
    return offsets;
  }

  struct Read {
    uint64_t offset = 0, length = 0;
    std::byte* buffer = nullptr;
  };
  ManualClock clock_;
  SimulatedFaults faults_;
  uint32_t capacity_ = 16;
  size_t file_bytes_ = 256 * kBlock;
  std::vector<std::byte> contents_;
  RecordingReader::Log log_;
  HostArena arena_;  // outlives the scheduler, whose reads land in it
  uint64_t arena_used_ = 0;
  std::unique_ptr<ReadScheduler> scheduler_;
  FileId file_;
  std::map<ReadId, Read> reads_;
};

}  // namespace moraine
