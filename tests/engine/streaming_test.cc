// Streaming changes nothing: whatever the budget, the policy, the reader and the order in which reads
// land, every logit has the same bits as with all experts resident.
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/evaluation.h"
#include "test_store.h"

namespace moraine {
namespace {

// A prompt long enough for two chunks, then decode steps; a digest of all logits.
std::string Digest(const TestStore& store, const std::string& budget, const std::string& policy,
                   const std::string& io, uint64_t seed) {
  RunnerOptions options = TestRunnerOptions(store, budget);
  options.policy = policy;
  options.io.kind = io;
  options.io.simulation_seed = seed;
  options.prefill_chunk = 48;
  const auto runner = Runner::Open(options);
  CHECK(runner.ok(), runner.status().message());
  const auto evaluation = Evaluation::Create(**runner);
  CHECK(evaluation.ok());
  const Status status =
      (*evaluation)->AddFixture(GoldenPath("fixtures/qwen3_moe"));  // prefill and 120 decode steps
  CHECK(status.ok(), status.message());
  (*runner)->CheckInvariants();
  return (*evaluation)->Finish().digest;
}

class StreamingTest : public testing::TestWithParam<Encoding> {};

TEST_P(StreamingTest, BitsDoNotDependOnBudgetPolicyReaderOrOrder) {
  const TestStore store(GoldenPath("fixtures/qwen3_moe"), GetParam());
  const std::string resident = Digest(store, "100%", "heat", "io_uring", 1);
  ASSERT_FALSE(resident.empty());
  const std::string smallest = "12.5%";  // 4 of 32: top-2 and two ring slots
  for (const std::string& budget : {std::string("50%"), std::string("25%"), smallest}) {
    for (const char* policy : {"heat", "sieve", "lru"}) {
      EXPECT_EQ(Digest(store, budget, policy, "io_uring", 1), resident) << budget << " " << policy;
    }
    EXPECT_EQ(Digest(store, budget, "heat", "pread", 1), resident) << budget;
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      EXPECT_EQ(Digest(store, budget, "heat", "simulated", seed), resident) << budget << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Encodings, StreamingTest,
                         testing::Values(Encoding::kBf16, Encoding::kQ8, Encoding::kQ4),
                         [](const auto& test) { return EncodingName(test.param); });

TEST(Streaming, DemoModelAtEveryBudgetOfTheReadme) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  std::string resident;
  for (const char* budget : {"100%", "25%", "10%", "2.4%"}) {
    RunnerOptions options = TestRunnerOptions(store, budget);
    const auto runner = Runner::Open(options);
    ASSERT_TRUE(runner.ok()) << runner.status().message();
    const auto evaluation = Evaluation::Create(**runner);
    ASSERT_TRUE((*evaluation)->AddReference(GoldenPath("demo/reference.json")).ok());
    const std::string digest = (*evaluation)->Finish().digest;
    if (resident.empty()) resident = digest;
    EXPECT_EQ(digest, resident) << budget;
    const EngineStats stats = (*runner)->Stats();
    EXPECT_EQ(stats.residency.evictions > 0, std::string(budget) != "100%") << budget;
  }
}

TEST(Streaming, ChunkSizeAndThreadCountDoNotChangeABit) {
  const TestStore store(GoldenPath("fixtures/qwen3_moe_mixed"), Encoding::kQ8);
  std::string first;
  for (const uint32_t chunk : {1u, 7u, 512u, 0u}) {
    for (const int threads : {1, 3}) {
      RunnerOptions options = TestRunnerOptions(store, "50%");
      options.prefill_chunk = chunk;
      options.threads = threads;
      const auto runner = Runner::Open(options);
      ASSERT_TRUE(runner.ok()) << runner.status().message();
      const auto evaluation = Evaluation::Create(**runner);
      ASSERT_TRUE((*evaluation)->AddFixture(GoldenPath("fixtures/qwen3_moe_mixed")).ok());
      const std::string digest = (*evaluation)->Finish().digest;
      if (first.empty()) first = digest;
      EXPECT_EQ(digest, first) << "chunk " << chunk << ", threads " << threads;
    }
  }
}

TEST(Streaming, AWarmedCacheAnswersTheSame) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const std::vector<int32_t> prompt = {685, 531, 258, 519};
  const auto last_logits = [&](Runner& runner) {
    std::vector<float> copy;
    const Runner::LogitsSink sink = [&](uint32_t, std::span<const float> logits) {
      copy.assign(logits.begin(), logits.end());
    };
    runner.ResetSequence();
    EXPECT_TRUE(runner.Forward(prompt, {.sink = &sink}).ok());
    return copy;
  };
  RunnerOptions options = TestRunnerOptions(store, "25%");
  options.store_mode = StoreMode::kReadWrite;
  std::vector<float> cold;
  {
    const auto runner = Runner::Open(options);
    ASSERT_TRUE(runner.ok());
    EXPECT_EQ((*runner)->Warm(WarmOrder::kProfile, nullptr).code(), StatusCode::kNotFound);
    cold = last_logits(**runner);
    ASSERT_TRUE((*runner)->SaveProfile().ok());
  }
  const auto runner = Runner::Open(options);
  ASSERT_TRUE(runner.ok());
  ASSERT_TRUE((*runner)->Warm(WarmOrder::kProfile, nullptr).ok());
  EXPECT_GT((*runner)->Stats().residency.resident, 20u);
  EXPECT_EQ(last_logits(**runner), cold);
  EXPECT_GT((*runner)->Stats().residency.prefill.prefetch_hit, 0u);
}

}  // namespace
}  // namespace moraine
