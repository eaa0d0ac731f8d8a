// The scheduler on the decode path allocates nothing once its pools have grown.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>

#include "scheduler_fixture.h"

namespace {
std::atomic<uint64_t> allocation_count{0};
}  // namespace

void* operator new(size_t bytes) {
  allocation_count.fetch_add(1, std::memory_order_relaxed);  // a counter, orders nothing
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace moraine {
namespace {

// A layer's worth of misses, some speculation, one promotion; then all is waited for.
void OneLayer(ReadScheduler* scheduler, FileId file, std::byte* buffers, Random* random,
              std::vector<ReadOutcome>* outcomes) {
  ReadId last = 0;
  for (uint64_t i = 0; i < 40; ++i) {
    RecordRead read;
    read.file = file;
    read.offset = random->Below(64) * kBlock;
    read.length = 6 * kBlock;
    read.buffer = buffers + i * read.length;
    read.priority = i % 3 == 0 ? ReadPriority::kSpeculative : ReadPriority::kDemand;
    read.deadline_ns = 1ll << 62;
    last = scheduler->Enqueue(read);
    if (i % 10 == 9) scheduler->Flush();
    if (i % 3 == 0) scheduler->Promote(last);
  }
  outcomes->clear();
  while (!scheduler->idle()) scheduler->Poll(outcomes, -1);
}

// Runs layers until the pools have grown, then counts over many more.
uint64_t AllocationsInSteadyState(std::unique_ptr<BlockReader> reader, const std::string& path,
                                  const Clock& clock) {
  ReadScheduler scheduler(std::move(reader), {.chunk_bytes = 2 * kBlock, .max_attempts = 1000},
                          clock);
  const FileId file = *scheduler.reader().OpenFile(path);
  auto arena = HostArena::Allocate(40 * 6 * kBlock, {.huge_pages = false});
  CHECK(arena.ok());
  Random random(3);
  std::vector<ReadOutcome> outcomes;
  outcomes.reserve(100);
  for (int i = 0; i < 20; ++i) OneLayer(&scheduler, file, arena->data(), &random, &outcomes);
  const uint64_t before = allocation_count.load(std::memory_order_relaxed);
  size_t failed = 0;
  for (int i = 0; i < 200; ++i) {
    OneLayer(&scheduler, file, arena->data(), &random, &outcomes);
    for (const ReadOutcome& outcome : outcomes) failed += outcome.status.ok() ? 0 : 1;
  }
  const uint64_t allocations = allocation_count.load(std::memory_order_relaxed) - before;
  EXPECT_EQ(failed, 0u);
  return allocations;
}

TEST(ReadSchedulerAllocations, NoneInSteadyStateUnderFaults) {
  const uint64_t before = allocation_count.load(std::memory_order_relaxed);
  ManualClock clock;
  SimulatedReaderOptions options;
  options.capacity = 16;
  options.manual_clock = &clock;
  options.faults.error_probability = 0.1;
  options.faults.short_read_probability = 0.3;
  options.faults.max_latency_ns = 10'000;
  options.memory_files["pack"] = RandomBytes(128 * kBlock, 1);
  EXPECT_EQ(AllocationsInSteadyState(CreateSimulatedReader(std::move(options)), "pack", clock), 0u);
  EXPECT_GT(allocation_count.load(std::memory_order_relaxed), before) << "the counter is dead";
}

TEST(ReadSchedulerAllocations, NoneInSteadyStateOnRealReaders) {
  const std::string path = std::string(MORAINE_BINARY_DIR) + "/allocation_test.pack";
  const auto contents = RandomBytes(128 * kBlock, 1);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(contents.data()),
             static_cast<std::streamsize>(contents.size()));
  for (const char* kind : {"auto", "pread"}) {
    auto reader = CreateBlockReader({.kind = kind, .capacity = 16, .pread_threads = 4});
    ASSERT_TRUE(reader.ok()) << reader.status().ToString();
    EXPECT_EQ(AllocationsInSteadyState(std::move(*reader), path, RealClock()), 0u) << kind;
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace moraine
