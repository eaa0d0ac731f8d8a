#include "io/simulated_reader.h"

#include <gmock/gmock.h>

#include <cerrno>

#include "scheduler_fixture.h"

namespace moraine {
namespace {

class SimulatedReaderTest : public testing::Test {
 protected:
  void SetUp() override {
    contents_ = RandomBytes(64 * kBlock, 5);
    auto arena = HostArena::Allocate(64 * kBlock, {.huge_pages = false});
    ASSERT_TRUE(arena.ok());
    arena_ = std::move(*arena);
  }
  std::unique_ptr<BlockReader> Create(uint64_t seed, const SimulatedFaults& faults) {
    SimulatedReaderOptions options;
    options.seed = seed;
    options.capacity = 64;
    options.faults = faults;
    options.manual_clock = &clock_;
    options.memory_files["pack"] = contents_;
    auto reader = CreateSimulatedReader(std::move(options));
    file_ = *reader->OpenFile("pack");
    return reader;
  }
  // Reads all 32 pairs of blocks at once; completions in order of arrival.
  std::vector<BlockCompletion> ReadAll(BlockReader* reader) {
    std::vector<BlockRead> reads;
    for (uint64_t i = 0; i < 32; ++i) {
      reads.push_back({file_, i * 2 * kBlock, arena_.data() + i * 2 * kBlock, 2 * kBlock, i});
    }
    reader->Submit(reads);
    std::vector<BlockCompletion> completions;
    while (reader->in_flight() > 0) reader->Reap(&completions, -1);
    EXPECT_EQ(completions.size(), reads.size());
    return completions;
  }
  static std::vector<std::pair<uint64_t, int32_t>> Pairs(const std::vector<BlockCompletion>& all) {
    std::vector<std::pair<uint64_t, int32_t>> pairs;
    for (const BlockCompletion& completion : all) {
      pairs.emplace_back(completion.tag, completion.result);
    }
    return pairs;
  }

  ManualClock clock_;
  std::vector<std::byte> contents_;
  HostArena arena_;
  FileId file_;
};

TEST_F(SimulatedReaderTest, TheSameSeedGivesTheSameRun) {
  SimulatedFaults faults;
  faults.error_probability = 0.2;
  faults.short_read_probability = 0.2;
  faults.max_latency_ns = 1000;
  const auto first = Pairs(ReadAll(Create(1, faults).get()));
  EXPECT_EQ(Pairs(ReadAll(Create(1, faults).get())), first);
  EXPECT_NE(Pairs(ReadAll(Create(2, faults).get())), first);
}

TEST_F(SimulatedReaderTest, WithoutFaultsItOnlyReorders) {
  const auto completions = ReadAll(Create(1, {}).get());
  EXPECT_EQ(std::memcmp(arena_.data(), contents_.data(), contents_.size()), 0);
  bool in_order = true;
  for (size_t i = 0; i < completions.size(); ++i) {
    EXPECT_EQ(completions[i].result, static_cast<int32_t>(2 * kBlock));
    in_order &= completions[i].tag == i;
  }
  EXPECT_FALSE(in_order);
  EXPECT_EQ(clock_.NowNs(), 0);
}

TEST_F(SimulatedReaderTest, FaultsAreWhatTheySay) {
  SimulatedFaults faults;
  faults.error_probability = 1;
  for (const auto& c : ReadAll(Create(1, faults).get())) EXPECT_EQ(c.result, -EIO);
  faults = {};
  faults.short_read_probability = 1;
  for (const auto& c : ReadAll(Create(1, faults).get())) {
    EXPECT_EQ(c.result, static_cast<int32_t>(kBlock));
  }
  faults = {};
  faults.corruption_probability = 1;
  ReadAll(Create(1, faults).get());
  for (size_t read = 0; read < 32; ++read) {
    int wrong_bits = 0;
    for (size_t i = read * 2 * kBlock; i < (read + 1) * 2 * kBlock; ++i) {
      wrong_bits += __builtin_popcount(std::to_integer<unsigned>(arena_.data()[i] ^ contents_[i]));
    }
    EXPECT_EQ(wrong_bits, 1);
  }
}

TEST_F(SimulatedReaderTest, LatencyIsOnTheInjectedClock) {
  SimulatedFaults faults;
  faults.min_latency_ns = faults.max_latency_ns = 500;
  auto reader = Create(1, faults);
  const BlockRead read = {file_, 0, arena_.data(), kBlock, 9};
  reader->Submit({&read, 1});
  std::vector<BlockCompletion> completions;
  EXPECT_EQ(reader->Reap(&completions, 0), 0u);
  EXPECT_EQ(reader->Reap(&completions, 200), 0u);
  EXPECT_EQ(clock_.NowNs(), 200);
  EXPECT_EQ(reader->Reap(&completions, -1), 1u);
  EXPECT_EQ(clock_.NowNs(), 500);
  EXPECT_EQ(completions[0].tag, 9u);
}

TEST_F(SimulatedReaderTest, RefusesWhatODirectWouldRefuse) {
  auto reader = Create(1, {});
  const BlockRead read = {file_, 100, arena_.data(), kBlock, 0};
  EXPECT_DEATH(reader->Submit({&read, 1}), "O_DIRECT");
  EXPECT_EQ(reader->OpenFile("/absent.pack").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace moraine
