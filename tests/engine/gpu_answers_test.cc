// Answers on GPU and CPU together, with a GPU that is played by the CPU's own kernels (fake_gpu.h):
// wherever an expert is computed, an answer is the one that the CPU alone gives; sums over two
// devices are added in another order, so logits agree to float32's rounding and what is chosen by
// them agrees wholly.
#include "engine/gpu_answers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/random.h"
#include "engine/runner.h"
#include "fake_gpu.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"
#include "store/store.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

constexpr uint32_t kContext = 512, kSequences = 10;

struct Memory {
  const char* ram = "60%";
  uint32_t slots = 12;
  bool always = true;
};

class GpuAnswersTest : public testing::Test {
 protected:
  GpuAnswersTest() : store_(GoldenPath("fixtures/qwen3_moe"), Encoding::kBf16) {}

  RunnerOptions CpuOptions(const char* ram = "100%") {
    RunnerOptions options = TestRunnerOptions(store_, ram);
    options.max_context = kContext * 2;
    options.max_sequences = kSequences;
    options.prefill_chunk = 48;
    return options;
  }
  RunnerOptions Options(const Memory& memory) {
    RunnerOptions options = CpuOptions(memory.ram);
    options.gpu_hybrid = true;
    options.gpu_hybrid_always = memory.always;
    options.gpu_prefill_tokens = 20;
    options.gpu_model_factory = [this, memory](const GpuModelOptions& model) {
      return Result<std::unique_ptr<GpuModel>>(
          std::make_unique<FakeGpu>(FakeGpuOptions{.store_directory = store_.directory(),
                                                   .chunk = 48,
                                                   .slots = memory.slots,
                                                   .seed = seed_,
                                                   .steps_until_failure = &steps_until_failure_,
                                                   .layers_until_failure = &layers_until_failure_},
                                    model));
    };
    return options;
  }
  static std::unique_ptr<Runner> Open(const RunnerOptions& options) {
    auto runner = Runner::Open(options);
    CHECK(runner.ok(), runner.status().message());
    return std::move(*runner);
  }
  static std::vector<int32_t> RandomTokens(Random* random, size_t count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random->Below(250));
    return tokens;
  }

  // Sequences with an answer each.
  struct Stream {
    std::vector<int32_t> prompt, answer;
    std::vector<std::vector<float>> logits;
    LogitsSink keep;
    Status status;
    std::atomic<bool> cancelled{false};
  };
  // Greedy continuations of `count` prompts, computed together.
  std::vector<std::unique_ptr<Stream>> Answer(Runner& runner, size_t count, int tokens,
                                              const std::function<void(int)>& before_step = {}) {
    std::vector<std::unique_ptr<Stream>> streams;
    Random random(seed_ + 100);
    for (size_t s = 0; s < count; ++s) {
      auto stream = std::make_unique<Stream>();
      stream->prompt = RandomTokens(&random, 3 + random.Below(45));
      stream->keep = [to = stream.get()](uint32_t, std::span<const float> row) {
        to->logits.emplace_back(row.begin(), row.end());
      };
      streams.push_back(std::move(stream));
      runner.sequence(static_cast<uint32_t>(s)).Reset();
    }
    for (int step = 0; step <= tokens; ++step) {
      if (before_step) before_step(step);
      std::vector<BatchSegment> batch;
      std::vector<size_t> of;
      for (size_t s = 0; s < count; ++s) {
        Stream& stream = *streams[s];
        if (!stream.status.ok()) continue;
        if (step > 0) {
          const std::vector<float>& last = stream.logits.back();
          stream.answer.push_back(
              static_cast<int32_t>(std::ranges::max_element(last) - last.begin()));
        }
        batch.push_back({.tokens = step == 0 ? std::span<const int32_t>(stream.prompt)
                                             : std::span(stream.answer).last(1),
                         .state = &runner.sequence(static_cast<uint32_t>(s)),
                         .sink = &stream.keep,
                         .cancelled = &stream.cancelled,
                         .decode = step > 0});
        of.push_back(s);
      }
      // Prompts by themselves: together they may be more than a step takes.
      for (size_t i = 0; i < batch.size(); i += step == 0 ? 1 : batch.size()) {
        runner.Step(step == 0 ? std::span(batch).subspan(i, 1) : std::span(batch));
      }
      for (size_t i = 0; i < batch.size(); ++i) streams[of[i]]->status = batch[i].status;
      runner.CheckInvariants();
      if (batch.empty()) break;
    }
    return streams;
  }
  // The same answers, by nearly the same logits.
  static void ExpectAlike(const std::vector<std::unique_ptr<Stream>>& found,
                          const std::vector<std::unique_ptr<Stream>>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t s = 0; s < found.size(); ++s) {
      ASSERT_TRUE(found[s]->status.ok()) << found[s]->status.message();
      ASSERT_EQ(found[s]->answer, expected[s]->answer) << "sequence " << s;
      for (size_t i = 0; i < expected[s]->logits.size(); ++i) {
        for (size_t v = 0; v < expected[s]->logits[i].size(); ++v) {
          ASSERT_NEAR(found[s]->logits[i][v], expected[s]->logits[i][v], 2e-3)
              << "sequence " << s << " token " << i;
        }
      }
    }
  }

  const TestStore store_;
  uint64_t seed_ = 1;
  int steps_until_failure_ = 0, layers_until_failure_ = 0;
};

TEST_F(GpuAnswersTest, AreTheCpusWhateverIsInVram) {
  const auto cpu = Open(CpuOptions());
  const auto expected = Answer(*cpu, 2, 40);
  for (const Memory& memory : {Memory{"100%", 0}, Memory{"100%", 5}, Memory{"60%", 12},
                               Memory{"30%", 12}, Memory{"100%", 1000}}) {
    SCOPED_TRACE(testing::Message() << memory.ram << " in DRAM, " << memory.slots << " slots");
    const auto runner = Open(Options(memory));
    ASSERT_NE(runner->gpu_answers(), nullptr);
    ExpectAlike(Answer(*runner, 2, 40), expected);
    const GpuAnswersStats stats = runner->Stats().gpu_answers;
    EXPECT_EQ(stats.tokens, 80u);
    EXPECT_EQ(stats.failed_steps, 0u);
    EXPECT_EQ(stats.slots, memory.slots);
    EXPECT_EQ(stats.experts_in_vram > 0, memory.slots > 0);
    EXPECT_GT(stats.experts_on_cpu, 0u) << "until something was copied";
    EXPECT_EQ(runner->decode_stats().tokens, 80u);
    EXPECT_TRUE(runner->Settle(1'000'000'000).ok());
    EXPECT_EQ(runner->residency()->leases(), 0u);
  }
}

// Copies are late, and one at a time; but in the end the CPU is not asked any more.
TEST_F(GpuAnswersTest, WhatFitsIntoVramEndsUpThere) {
  const auto cpu = Open(CpuOptions());
  const auto expected = Answer(*cpu, 1, 30);
  const auto runner = Open(Options({"100%", 1000}));
  GpuAnswersStats before;
  for (int round = 0; round < 10; ++round) {
    before = runner->Stats().gpu_answers;
    ExpectAlike(Answer(*runner, 1, 30), expected);
  }
  const GpuAnswersStats after = runner->Stats().gpu_answers;
  EXPECT_LE(after.experts_on_cpu - before.experts_on_cpu + after.experts_over_link -
                before.experts_over_link,
            (after.experts_in_vram - before.experts_in_vram) / 20);
  EXPECT_EQ(after.demotions, 0u);
}

TEST_F(GpuAnswersTest, BatchesLargerThanTheGpusAreCut) {
  const auto cpu = Open(CpuOptions());
  const auto runner = Open(Options({}));
  ExpectAlike(Answer(*runner, kSequences, 12), Answer(*cpu, kSequences, 12));
  EXPECT_EQ(runner->Stats().gpu_answers.tokens, 12u * kSequences);
  EXPECT_EQ(runner->Stats().gpu_answers.steps, 24u) << "8 and 2 together";
  EXPECT_EQ(runner->decode_stats().steps, 12u);
}

// Where answers are computed is found out; both are tried, and sequences go to and fro between two
// caches.
TEST_F(GpuAnswersTest, TheFasterWayIsFoundOut) {
  const auto cpu = Open(CpuOptions());
  const auto runner = Open(Options({.always = false}));
  ExpectAlike(Answer(*runner, 3, 60), Answer(*cpu, 3, 60));
  const GpuAnswersStats stats = runner->Stats().gpu_answers;
  EXPECT_GE(stats.tokens, 3u * (DecodeChoice::kColdSteps + DecodeChoice::kSamples));
  EXPECT_LE(stats.tokens, 3u * (60 - DecodeChoice::kColdSteps - DecodeChoice::kSamples));
}

TEST_F(GpuAnswersTest, AfterAFailureTheCpuGoesOn) {
  const auto cpu = Open(CpuOptions());
  const auto expected = Answer(*cpu, 3, 20);
  for (const int layer : {1, 2, 15, 30}) {
    layers_until_failure_ = layer;
    const auto runner = Open(Options({}));
    ExpectAlike(Answer(*runner, 3, 20), expected);
    const EngineStats stats = runner->Stats();
    EXPECT_EQ(stats.gpu_answers.failed_steps, 1u);
    EXPECT_EQ(stats.gpu_prefill.failures, 1u);
    EXPECT_EQ(stats.gpu_answers.live, 0u);
    EXPECT_LT(stats.gpu_answers.tokens, 60u);
    EXPECT_EQ(stats.decode.tokens, 60u);
    EXPECT_EQ(runner->residency()->leases(), 0u);
    ExpectAlike(Answer(*runner, 3, 20), expected);
  }
}

TEST_F(GpuAnswersTest, ACancelledAnswerLeavesTheOthersAlone) {
  const auto cpu = Open(CpuOptions());
  const auto runner = Open(Options({}));
  const auto expected = Answer(*cpu, 3, 20);
  Stream cancelled;
  const int32_t token = 3;
  auto found = Answer(*runner, 3, 20, [&](int step) {
    if (step != 10) return;
    // Another sequence, whose first answer is cancelled before it begins.
    SequenceState& state = runner->sequence(5);
    state.Reset();
    BatchSegment prompt = {.tokens = {&token, 1}, .state = &state};
    runner->Step({&prompt, 1});
    ASSERT_TRUE(prompt.status.ok());
    cancelled.cancelled = true;
    BatchSegment answer = {
        .tokens = {&token, 1}, .state = &state, .cancelled = &cancelled.cancelled, .decode = true};
    runner->Step({&answer, 1});
    EXPECT_EQ(answer.status.code(), StatusCode::kCancelled);
    EXPECT_EQ(state.length(), 1u);
    cancelled.cancelled = false;
    answer.status = OkStatus();
    runner->Step({&answer, 1});
    EXPECT_TRUE(answer.status.ok());
    EXPECT_EQ(state.length(), 2u);
  });
  ExpectAlike(found, expected);
  EXPECT_EQ(runner->Stats().gpu_answers.failed_steps, 0u);
}

// A damaged record meets those who want it, as on the CPU, and the GPU goes on for the others.
TEST_F(GpuAnswersTest, ADamagedRecordMeetsThoseWhoWantIt) {
  std::vector<std::string> errors[2];
  std::vector<std::vector<int32_t>> answers[2];
  uint64_t offset = 0;
  {
    const auto store = Store::Open(store_.directory(), StoreMode::kReadOnly);
    ASSERT_TRUE(store.ok());
    offset = (*store)->Locate({LayerId(1), ExpertId(3)}).offset;
  }
  std::fstream pack(store_.pack_path(), std::ios::in | std::ios::out | std::ios::binary);
  pack.seekp(static_cast<std::streamoff>(offset) + 100);
  pack.put('\x5a');
  pack.put('\x5b');
  pack.close();
  for (const bool together : {false, true}) {
    RunnerOptions options = together ? Options({"60%", 12}) : CpuOptions("60%");
    options.gpu_prefill_tokens = 1000;  // prompts on the CPU
    const auto runner = Open(options);
    for (const auto& stream : Answer(*runner, 4, 30)) {
      errors[together].emplace_back(stream->status.message());
      answers[together].push_back(stream->answer);
    }
    EXPECT_TRUE(runner->Settle(1'000'000'000).ok());
    if (!together) continue;
    EXPECT_EQ(runner->Stats().gpu_prefill.failures, 0u);
  }
  EXPECT_EQ(errors[1], errors[0]);
  EXPECT_EQ(answers[1], answers[0]);
  EXPECT_THAT(errors[0], testing::Contains(HasSubstr("expert 3"))) << "nobody wanted it";
}

TEST_F(GpuAnswersTest, ABudgetMayChangeMeanwhile) {
  RunnerOptions options = Options({"50%", 10});
  options.ram_budget_max = *ParseRamBudget("100%");
  const auto cpu = Open(CpuOptions());
  const auto runner = Open(options);
  const auto found = Answer(*runner, 3, 60, [&](int step) {
    if (step % 10 != 9) return;
    const char* const budget = step % 20 == 9 ? "100%" : "25%";
    const Status status = runner->SetRamBudget(*ParseRamBudget(budget));
    ASSERT_TRUE(status.ok()) << status.message();
  });
  ExpectAlike(found, Answer(*cpu, 3, 60));
  EXPECT_EQ(runner->Stats().gpu_answers.failed_steps, 0u);
  EXPECT_TRUE(runner->Settle(1'000'000'000).ok());
}

// What is computed in VRAM stays hot in what is saved.
TEST_F(GpuAnswersTest, HeatOutlivesTheRun) {
  const auto cpu = Open(CpuOptions());
  const auto runner = Open(Options({"100%", 1000}));
  Answer(*cpu, 2, 40);
  Answer(*runner, 2, 40);
  const ProfileSnapshot a = cpu->Snapshot(), b = runner->Snapshot();
  ASSERT_EQ(a.heat.size(), b.heat.size());
  for (size_t i = 0; i < a.heat.size(); ++i)
    EXPECT_NEAR(a.heat[i], b.heat[i], 0.35f + 0.05f * a.heat[i]) << i;
  EXPECT_EQ(a.sections, b.sections) << "the token table";
}

TEST_F(GpuAnswersTest, LossyModesAreTheCpus) {
  RunnerOptions options = Options({});
  options.defer_experts = 1;
  const auto runner = Open(options);
  EXPECT_EQ(runner->gpu_answers(), nullptr);
  EXPECT_NE(runner->gpu_prefill(), nullptr);
}

}  // namespace
}  // namespace moraine
