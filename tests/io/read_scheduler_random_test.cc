// A random workload against every fault at once, checked against a model that knows only the
// contract of read_scheduler.h: each read is decided once and released once, with the bytes right
// when it says ok, and a released buffer is never written again.
#include <gtest/gtest.h>

#include <cstdlib>

#include "scheduler_fixture.h"

namespace moraine {
namespace {

constexpr std::byte kFreePattern{0xE7};
constexpr uint64_t kBufferBytes = 16 * kBlock;
constexpr int kBufferCount = 24;

struct ModelRead {
  uint64_t offset = 0, length = 0;
  int buffer = 0;
  bool speculative = false;
  bool cancelled = false;  // by us, while it was speculative
  int64_t deadline_ns = 0;
  int64_t enqueued_ns = 0;
  bool decided = false;
  StatusCode first_code = StatusCode::kOk;
};

// One workload; everything about it comes from the seed.
class Workload {
 public:
  explicit Workload(uint64_t seed) : random_(seed) {
    file_bytes_ =
        (64 + random_.Below(64)) * kBlock + (random_.Chance(0.5) ? random_.Below(4096) : 0);
    contents_ = RandomBytes(file_bytes_, seed);
    SimulatedReaderOptions simulated;
    simulated.seed = seed;
    simulated.capacity = static_cast<uint32_t>(1 + random_.Below(16));
    SimulatedFaults& faults = simulated.faults;
    faults.error_probability = random_.Chance(0.5) ? random_.Uniform() * 0.4 : 0;
    faults.short_read_probability = random_.Chance(0.5) ? random_.Uniform() * 0.7 : 0;
    faults.corruption_probability = random_.Chance(0.2) ? random_.Uniform() * 0.5 : 0;
    faults.min_latency_ns = static_cast<int64_t>(random_.Below(1000));
    faults.max_latency_ns = faults.min_latency_ns + static_cast<int64_t>(random_.Below(20'000));
    faults_ = faults;
    simulated.manual_clock = &clock_;
    simulated.memory_files[kPackPath] = contents_;
    options_.chunk_bytes = kBlock << random_.Below(5);
    options_.max_attempts = static_cast<uint32_t>(1 + random_.Below(4));
    options_.speculative_depth = static_cast<uint32_t>(1 + random_.Below(8));
    capacity_ = simulated.capacity;
    auto arena = HostArena::Allocate(kBufferBytes * kBufferCount, {.huge_pages = false});
    CHECK(arena.ok());
    arena_ = std::move(*arena);
    std::memset(arena_.data(), static_cast<int>(kFreePattern), arena_.size_bytes());
    for (int i = 0; i < kBufferCount; ++i) free_buffers_.push_back(i);
    scheduler_ = std::make_unique<ReadScheduler>(
        std::make_unique<RecordingReader>(CreateSimulatedReader(std::move(simulated)), &log_),
        options_, clock_);
    file_ = *scheduler_->reader().OpenFile(kPackPath);
  }

  void Run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      Step();
      CheckCounters();
    }
    if (random_.Chance(0.2)) {
      scheduler_.reset();  // shutdown with reads in flight
      CheckFreeBuffers();
      return;
    }
    while (!scheduler_->idle() && !testing::Test::HasFailure()) {
      ASSERT_GT(Poll(-1), 0u) << "a wait without an outcome while reads are pending";
    }
    EXPECT_TRUE(reads_.empty()) << reads_.size() << " reads were never released";
    EXPECT_EQ(scheduler_->reader().in_flight(), 0u);
    CheckStats();
  }

 private:
  void Step() {
    switch (random_.Below(8)) {
      case 0:
      case 1:
      case 2:
        EnqueueOne();
        break;
      case 3:
        scheduler_->Flush();
        CheckBatches();
        break;
      case 4:
        Poll(0);
        break;
      case 5:
        Poll(random_.Chance(0.5) ? -1 : static_cast<int64_t>(1 + random_.Below(5000)));
        break;
      case 6:
        if (ModelRead* read = PickOne()) {
          scheduler_->Promote(picked_id_);
          if (!read->cancelled) read->speculative = false;
        }
        break;
      case 7:
        if (random_.Chance(0.3)) {
          clock_.AdvanceNs(static_cast<int64_t>(random_.Below(3000)));
        } else if (ModelRead* read = PickOne()) {
          scheduler_->Cancel(picked_id_);
          if (read->speculative && !read->decided) read->cancelled = true;
        }
        break;
    }
  }

  ModelRead* PickOne() {
    if (reads_.empty()) return nullptr;
    auto it = reads_.begin();
    std::advance(it, static_cast<ptrdiff_t>(random_.Below(reads_.size())));
    picked_id_ = it->first;
    return &it->second;
  }

  void EnqueueOne() {
    if (free_buffers_.empty()) return;
    ModelRead read;
    const size_t pick = random_.Below(free_buffers_.size());
    read.buffer = free_buffers_[pick];
    free_buffers_.erase(free_buffers_.begin() + static_cast<ptrdiff_t>(pick));
    CheckUntouched(read.buffer);
    read.length = (1 + random_.Below(16)) * kBlock;
    const uint64_t file_blocks = file_bytes_ / kBlock;
    // Now and then over the end of the file.
    read.offset = random_.Below(file_blocks - (random_.Chance(0.05) ? 0 : 16)) * kBlock;
    read.speculative = random_.Chance(0.4);
    read.enqueued_ns = clock_.NowNs();
    if (random_.Chance(0.3)) {
      read.deadline_ns = clock_.NowNs() + 1 + static_cast<int64_t>(random_.Below(40'000));
    }
    const ReadId id = scheduler_->Enqueue(
        {file_, read.offset, read.length, Buffer(read.buffer),
         read.speculative ? ReadPriority::kSpeculative : ReadPriority::kDemand, read.deadline_ns});
    ASSERT_TRUE(reads_.emplace(id, read).second) << "an id was given twice";
    ++enqueued_;
  }

  size_t Poll(int64_t wait_ns) {
    std::vector<ReadOutcome> outcomes;
    const size_t count = scheduler_->Poll(&outcomes, wait_ns);
    EXPECT_EQ(count, outcomes.size());
    for (const ReadOutcome& outcome : outcomes) CheckOutcome(outcome);
    CheckBatches();
    return count;
  }

  void CheckOutcome(const ReadOutcome& outcome) {
    const auto found = reads_.find(outcome.id);
    ASSERT_NE(found, reads_.end()) << "an outcome of an unknown or released read";
    ModelRead& read = found->second;
    const StatusCode code = outcome.status.code();
    if (read.decided) {
      ASSERT_TRUE(outcome.buffer_released) << "decided twice";
      EXPECT_EQ(code, read.first_code);
    } else {
      CheckReason(read, outcome);
      read.decided = true;
      read.first_code = code;
    }
    EXPECT_GE(outcome.latency_ns, 0);
    EXPECT_LE(outcome.latency_ns, clock_.NowNs() - read.enqueued_ns);
    if (!outcome.buffer_released) {
      EXPECT_NE(code, StatusCode::kOk);
      return;
    }
    std::memset(Buffer(read.buffer), static_cast<int>(kFreePattern), kBufferBytes);
    free_buffers_.push_back(read.buffer);
    reads_.erase(found);
    ++released_;
  }

  // Whether the contract allows this status for this read, and the bytes if it is ok.
  void CheckReason(const ModelRead& read, const ReadOutcome& outcome) {
    const bool in_file = read.offset + read.length <= file_bytes_;
    switch (outcome.status.code()) {
      case StatusCode::kOk:
        EXPECT_TRUE(in_file);
        EXPECT_FALSE(read.cancelled);
        EXPECT_TRUE(outcome.buffer_released);
        if (in_file && faults_.corruption_probability == 0) {
          EXPECT_EQ(std::memcmp(Buffer(read.buffer), contents_.data() + read.offset, read.length),
                    0);
        }
        break;
      case StatusCode::kIoError:
        EXPECT_GT(faults_.error_probability, 0);
        EXPECT_FALSE(read.cancelled);
        break;
      case StatusCode::kCorruption: {
        EXPECT_FALSE(in_file);
        const uint64_t found = file_bytes_ > read.offset ? file_bytes_ - read.offset : 0;
        // A deadline reports what is known so far.
        if (faults_.error_probability == 0 && outcome.buffer_released) {
          EXPECT_NE(outcome.status.message().find("found " + std::to_string(found)),
                    std::string::npos)
              << outcome.status.message() << ", in truth " << found;
        }
        break;
      }
      case StatusCode::kCancelled:
        EXPECT_TRUE(read.cancelled);
        break;
      case StatusCode::kDeadlineExceeded:
        ASSERT_NE(read.deadline_ns, 0);
        EXPECT_GE(clock_.NowNs(), read.deadline_ns);
        break;
      default:
        ADD_FAILURE() << outcome.status.ToString();
    }
  }

  // Priorities as they are now may differ from those at issue only by promotion, which removes
  // speculation: so what is speculative now and in the batch was speculative then.
  void CheckBatches() {
    EXPECT_LE(log_.max_in_flight, capacity_);
    for (const auto& batch : log_.batches) {
      EXPECT_FALSE(batch.empty());
      bool speculation_began = false;
      uint32_t speculative = 0;
      for (const BlockRead& read : batch) {
        EXPECT_LE(read.length, options_.chunk_bytes);
        const ModelRead* owner = OwnerOf(read.buffer);
        if (owner == nullptr) continue;  // released in the same Poll
        if (owner->speculative) {
          speculation_began = true;
          ++speculative;
        } else {
          EXPECT_FALSE(speculation_began) << "demand behind speculation in one batch";
        }
      }
      EXPECT_LE(speculative, options_.speculative_depth);
    }
    log_.batches.clear();
  }

  void CheckCounters() {
    uint32_t demand = 0, speculative = 0;
    for (const auto& [id, read] : reads_) {
      if (!read.decided) ++(read.speculative ? speculative : demand);
    }
    EXPECT_EQ(scheduler_->demand_in_flight(), demand);
    EXPECT_EQ(scheduler_->speculative_pending(), speculative);
    EXPECT_EQ(scheduler_->idle(), reads_.empty());
  }

  void CheckStats() {
    EXPECT_EQ(enqueued_, released_);
    EXPECT_LE(scheduler_->stats().busy_ns, static_cast<uint64_t>(clock_.NowNs()));
    CheckFreeBuffers();
  }
  void CheckFreeBuffers() {
    for (const int buffer : free_buffers_) CheckUntouched(buffer);
  }
  void CheckUntouched(int buffer) {
    const std::byte* const data = Buffer(buffer);
    EXPECT_TRUE(
        std::all_of(data, data + kBufferBytes, [](std::byte b) { return b == kFreePattern; }))
        << "buffer " << buffer << " was written after its release";
  }

  std::byte* Buffer(int index) {
    return arena_.data() + static_cast<uint64_t>(index) * kBufferBytes;
  }
  const ModelRead* OwnerOf(const std::byte* address) {
    const int buffer =
        static_cast<int>(static_cast<uint64_t>(address - arena_.data()) / kBufferBytes);
    for (const auto& [id, read] : reads_) {
      if (read.buffer == buffer) return &read;
    }
    return nullptr;
  }

  Random random_;
  ManualClock clock_;
  uint64_t file_bytes_ = 0;
  std::vector<std::byte> contents_;
  SimulatedFaults faults_;
  ReadSchedulerOptions options_;
  uint32_t capacity_ = 0;
  HostArena arena_;
  RecordingReader::Log log_;
  std::unique_ptr<ReadScheduler> scheduler_;
  FileId file_;
  std::vector<int> free_buffers_;
  std::map<ReadId, ModelRead> reads_;
  ReadId picked_id_ = 0;
  uint64_t enqueued_ = 0, released_ = 0;
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSeeds = 300;  // about ten times as slow
#else
constexpr uint64_t kSeeds = 1500;
#endif

// MORAINE_TEST_SEED=n replays one seed.
TEST(ReadSchedulerRandom, EveryReadIsDecidedOnceAndReleasedOnce) {
  const char* const replay = std::getenv("MORAINE_TEST_SEED");
  const uint64_t first = replay ? std::strtoull(replay, nullptr, 10) : 1;
  const uint64_t last = replay ? first : kSeeds;
  for (uint64_t seed = first; seed <= last; ++seed) {
    SCOPED_TRACE("replay with MORAINE_TEST_SEED=" + std::to_string(seed));
    Workload workload(seed);
    workload.Run(200);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace moraine
