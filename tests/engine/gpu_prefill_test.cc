// Prompts on a GPU and answers on the CPU, with a GPU that is played by the CPU's own kernels (fake_gpu.h): then
// whatever is computed where, each sequence gets to the bit what the CPU alone gives it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/random.h"
#include "engine/gpu_prefill.h"
#include "fake_gpu.h"
#include "test_store.h"

namespace moraine {
namespace {

using Logits = std::map<uint32_t, std::vector<float>>;  // by position

constexpr uint32_t kGpuChunk = 96, kCpuChunk = 32, kContext = 1024;

class GpuPrefillTest : public testing::Test {
 protected:
  GpuPrefillTest() : store_(GoldenPath("fixtures/qwen3_moe"), Encoding::kBf16) {}

  RunnerOptions CpuOptions(KvFormat kv = KvFormat::kF32) {
    RunnerOptions options = TestRunnerOptions(store_, "50%");
    options.max_context = kContext;
    options.max_sequences = 3;
    options.prefill_chunk = kCpuChunk;
    options.kv_format = kv;
    return options;
  }
  RunnerOptions GpuOptions(uint32_t least_tokens, KvFormat kv = KvFormat::kF32) {
    RunnerOptions options = CpuOptions(kv);
    options.gpu_prefill = true;
    options.gpu_prefill_tokens = least_tokens;
    options.gpu_model_factory = [this](const GpuModelOptions& model) {
      return Result<std::unique_ptr<GpuModel>>(
          std::make_unique<FakeGpu>(FakeGpuOptions{.store_directory = store_.directory(),
                                                   .chunk = kGpuChunk,
                                                   .seed = seed_,
                                                   .steps_until_failure = &steps_until_failure_},
                                    model));
    };
    return options;
  }
  static std::unique_ptr<Runner> Open(const RunnerOptions& options) {
    auto runner = Runner::Open(options);
    CHECK(runner.ok(), runner.status().message());
    return std::move(*runner);
  }
  static LogitsSink Keep(Logits* logits) {
    return [logits](uint32_t position, std::span<const float> row) {
      (*logits)[position].assign(row.begin(), row.end());
    };
  }
  static std::vector<int32_t> RandomTokens(Random* random, size_t count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random->Below(250));
    return tokens;
  }
  static Logits AllLogits(Runner& runner, std::span<const int32_t> tokens) {
    Logits logits;
    const LogitsSink keep = Keep(&logits);
    runner.ResetSequence();
    const Status status = runner.Forward(tokens, {.logits = LogitsMode::kAll, .sink = &keep});
    CHECK(status.ok(), status.message());
    return logits;
  }

  const TestStore store_;
  uint64_t seed_ = 1;
  int steps_until_failure_ = 0;
};

TEST_F(GpuPrefillTest, ChunksAndAnswersAreTheCpus) {
  for (const KvFormat kv : {KvFormat::kF32, KvFormat::kBf16}) {
    const auto cpu = Open(CpuOptions(kv)), gpu = Open(GpuOptions(20, kv));
    ASSERT_NE(gpu->gpu_prefill(), nullptr);
    EXPECT_EQ(gpu->prefill_chunk(), kGpuChunk);
    Random random(3);
    const std::vector<int32_t> tokens = RandomTokens(&random, 300);  // 96, 96, 96, 12 on the CPU
    EXPECT_EQ(AllLogits(*gpu, tokens), AllLogits(*cpu, tokens)) << KvFormatName(kv);
    EXPECT_EQ(gpu->gpu_prefill()->counts().tokens, 288u);
    EXPECT_EQ(gpu->Stats().prefill.tokens, 300u);
    Logits on_gpu, on_cpu;
    const LogitsSink keep_gpu = Keep(&on_gpu), keep_cpu = Keep(&on_cpu);
    for (const int32_t token : RandomTokens(&random, 8)) {
      ASSERT_TRUE(gpu->Forward({&token, 1}, {.sink = &keep_gpu}).ok());
      ASSERT_TRUE(cpu->Forward({&token, 1}, {.sink = &keep_cpu}).ok());
    }
    EXPECT_EQ(on_gpu, on_cpu);
    gpu->CheckInvariants();
  }
}

// Sequences that come, go, answer, share beginnings and take each other's blocks.
TEST_F(GpuPrefillTest, WhateverGoesWhereIsTheCpus) {
  for (seed_ = 1; seed_ <= 2; ++seed_) {
    SCOPED_TRACE(testing::Message() << "seed " << seed_);
    Random random(seed_);
    const auto cpu = Open(CpuOptions()), gpu = Open(GpuOptions(24));
    const std::vector<int32_t> shared = RandomTokens(&random, 160);
    struct Sequence {
      std::vector<int32_t> tokens;
      Logits expected, found;
      LogitsSink keep;
    };
    std::vector<Sequence> sequences(3);
    const auto begin = [&](size_t s) {
      Sequence& sequence = sequences[s];
      gpu->sequence(static_cast<uint32_t>(s)).Reset();
      sequence.tokens.assign(shared.begin(),
                             shared.begin() + static_cast<ptrdiff_t>(random.Below(160)));
      const auto own = RandomTokens(&random, 10 + random.Below(120));
      sequence.tokens.insert(sequence.tokens.end(), own.begin(), own.end());
      sequence.expected = AllLogits(*cpu, sequence.tokens);
      sequence.found.clear();
      sequence.keep = Keep(&sequence.found);
      gpu->sequence(static_cast<uint32_t>(s)).TakePrefix(sequence.tokens);
    };
    for (size_t s = 0; s < sequences.size(); ++s) begin(s);
    for (int step = 0; step < 60; ++step) {
      std::vector<BatchSegment> batch;
      uint32_t room = gpu->step_tokens();
      for (size_t s = 0; s < sequences.size(); ++s) {
        SequenceState& state = gpu->sequence(static_cast<uint32_t>(s));
        if (state.length() == sequences[s].tokens.size()) begin(s);
        if (random.Chance(0.2)) continue;
        const auto left = static_cast<uint32_t>(sequences[s].tokens.size()) - state.length();
        const uint32_t most = random.Chance(0.3) ? 1 : static_cast<uint32_t>(random.Below(90)) + 1;
        const uint32_t count = std::min({left, most, room});
        if (count == 0 || !state.Reserve(count)) continue;
        batch.push_back({.tokens = std::span(sequences[s].tokens).subspan(state.length(), count),
                         .state = &state,
                         .logits = LogitsMode::kAll,
                         .sink = &sequences[s].keep,
                         .decode = count == 1 && state.length() > 0});
        room -= count;
      }
      if (batch.empty()) continue;
      gpu->Step(batch);
      for (const BatchSegment& segment : batch) ASSERT_TRUE(segment.status.ok()) << segment.status.message();
      for (size_t s = 0; s < sequences.size(); ++s) {
        for (const auto& [position, row] : sequences[s].found) {
          ASSERT_EQ(row, sequences[s].expected[position]) << "sequence " << s << " at " << position;
        }
        if (random.Chance(0.5)) gpu->sequence(static_cast<uint32_t>(s)).Publish(sequences[s].tokens);
      }
      ASSERT_EQ(gpu->residency()->leases(), 0u);
      gpu->CheckInvariants();
    }
    EXPECT_GT(gpu->gpu_prefill()->counts().chunks, 5u);
  }
}

TEST_F(GpuPrefillTest, AfterAFailureTheCpuGoesOn) {
  const auto cpu = Open(CpuOptions());
  Random random(5);
  const std::vector<int32_t> tokens = RandomTokens(&random, 300);
  const Logits expected = AllLogits(*cpu, tokens);
  for (const int chunk : {1, 2, 3}) {
    steps_until_failure_ = chunk;
    const auto gpu = Open(GpuOptions(20));
    EXPECT_EQ(AllLogits(*gpu, tokens), expected) << "chunk " << chunk;
    EXPECT_EQ(gpu->gpu_prefill()->chunk(), 0u);
    EXPECT_EQ(gpu->prefill_chunk(), kCpuChunk);
    EXPECT_EQ(gpu->gpu_prefill()->counts().chunks, static_cast<uint64_t>(chunk - 1));
    EXPECT_EQ(gpu->Stats().gpu_prefill.failures, 1u);
    EXPECT_EQ(AllLogits(*gpu, tokens), expected) << "all on the CPU";
    gpu->CheckInvariants();
  }
}

TEST_F(GpuPrefillTest, WithoutAGpuAllIsOnTheCpu) {
  RunnerOptions options = GpuOptions(20);
  options.gpu_model_factory = [](const GpuModelOptions&) {
    return Result<std::unique_ptr<GpuModel>>(ResourceExhausted("no VRAM"));
  };
  const auto cpu = Open(CpuOptions()), gpu = Open(options);
  EXPECT_EQ(gpu->gpu_prefill(), nullptr);
  Random random(6);
  const std::vector<int32_t> tokens = RandomTokens(&random, 100);
  EXPECT_EQ(AllLogits(*gpu, tokens), AllLogits(*cpu, tokens));
  options.gpu = true;
  EXPECT_EQ(Runner::Open(options).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(GpuPrefillTest, CancelledPromptsLeaveTheSequenceAsItWas) {
  const auto gpu = Open(GpuOptions(20));
  Random random(7);
  const std::vector<int32_t> tokens = RandomTokens(&random, 200);
  const Logits expected = AllLogits(*gpu, tokens);
  gpu->ResetSequence();
  ASSERT_TRUE(gpu->Forward(std::span(tokens).first(100), {.logits = LogitsMode::kNone}).ok());
  const std::atomic<bool> cancelled{true};
  const Status status = gpu->Forward(std::span(tokens).last(50), {.cancelled = &cancelled});
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(gpu->position(), 100u);
  Logits rest;
  const LogitsSink keep = Keep(&rest);
  ASSERT_TRUE(gpu->Forward(std::span(tokens).subspan(100),
                           {.logits = LogitsMode::kAll, .sink = &keep}).ok());
  for (const auto& [position, row] : rest) EXPECT_EQ(row, expected.at(position)) << position;
}

// With chunks of one length on both sides the policy has learnt the same.
TEST_F(GpuPrefillTest, HeatIsHandedOver) {
  RunnerOptions cpu_options = CpuOptions(), gpu_options = GpuOptions(1);
  cpu_options.prefill_chunk = gpu_options.prefill_chunk = kGpuChunk;
  const auto cpu = Open(cpu_options), gpu = Open(gpu_options);
  Random random(8);
  const std::vector<int32_t> tokens = RandomTokens(&random, 250);
  AllLogits(*cpu, tokens);
  AllLogits(*gpu, tokens);
  const ProfileSnapshot a = cpu->Snapshot(), b = gpu->Snapshot();
  EXPECT_EQ(a.heat, b.heat);
  EXPECT_EQ(a.sections, b.sections) << "the token table";
  EXPECT_GT(*std::ranges::max_element(b.heat), 0);
}

// Where pieces go is found out, and changes no bit; both sides are tried.
TEST_F(GpuPrefillTest, BreakEvenIsFoundOut) {
  const auto cpu = Open(CpuOptions()), gpu = Open(GpuOptions(0));
  Random random(9);
  for (int i = 0; i < 3; ++i) {
    const std::vector<int32_t> tokens = RandomTokens(&random, 250);
    EXPECT_EQ(AllLogits(*gpu, tokens), AllLogits(*cpu, tokens));
  }
  EXPECT_GE(gpu->Stats().prefill.tokens, 750u);
  EXPECT_LT(gpu->gpu_prefill()->counts().tokens, 750u) << "nothing has been timed on the CPU";
}

}  // namespace
}  // namespace moraine
