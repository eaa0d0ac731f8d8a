// A model in stages: on two stages of one GPU, which have all but copies between GPUs, and on two GPUs where there
// are two. Against one GPU, to the bit. Skipped, saying so, where there is no GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "engine/gpu/gpu_model.h"
#include "model/batch_segment.h"
#include "model/sequence_state.h"
#include "model_measures.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;
using Gpus = std::vector<uint32_t>;

RunnerOptions GpuOptions(const TestStore& store, KvFormat kv, const Gpus& gpus,
                         uint32_t prefill_chunk = 128) {
  RunnerOptions options = TestRunnerOptions(store, "100%");
  options.gpu = true;
  options.gpus = gpus;
  options.kv_format = kv;
  options.prefill_chunk = prefill_chunk;
  return options;
}

// Two and three stages on the first GPU; one on each of two.
std::vector<Gpus> Divisions() {
  std::vector<Gpus> divisions = {{0, 0}, {0, 0, 0}};
  const auto count = CountGpus();
  if (count.ok() && *count > 1) divisions.push_back({0, 1});
  if (count.ok() && *count > 1) divisions.push_back({1, 0});
  return divisions;
}

std::string Name(const Gpus& gpus) { return testing::PrintToString(gpus); }

std::unique_ptr<Runner> Open(const RunnerOptions& options) {
  auto runner = Runner::Open(options);
  CHECK(runner.ok(), runner.status().message());
  return std::move(*runner);
}

// Logits of the prompt's last token and of ten that follow.
std::vector<float> PromptAndAnswer(Runner& runner, std::span<const int32_t> prompt) {
  std::vector<float> logits;
  const Runner::LogitsSink keep = [&](uint32_t, std::span<const float> row) {
    logits.insert(logits.end(), row.begin(), row.end());
  };
  runner.ResetSequence();
  CHECK(runner.Forward(prompt, {.sink = &keep}).ok(), "prompt");
  for (int32_t token = 100; token < 110; ++token) {
    CHECK(runner.Forward({&token, 1}, {.sink = &keep}).ok(), "answer");
  }
  return logits;
}

class GpuStagesTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto count = CountGpus();
    if (!count.ok()) GTEST_SKIP() << count.status().message();
    if (*count < 2) std::printf("one GPU: copies from GPU to GPU are not tested\n");
  }
};

TEST_F(GpuStagesTest, BitsAreThoseOfOneGpu) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const auto one = Open(GpuOptions(store, KvFormat::kBf16, {}));
  // Three pieces and a last one of 16, of 5 (few tokens), of one; less than a piece; few tokens.
  const std::vector<int32_t> tokens = Tokens(*one, 400);
  for (const Gpus& gpus : Divisions()) {
    const auto stages = Open(GpuOptions(store, KvFormat::kBf16, gpus));
    ASSERT_EQ(stages->gpu()->stages().size(), gpus.size());
    EXPECT_GT(stages->prefill_chunk(), 384u) << "several pieces a step";
    for (const size_t count : {400, 389, 385, 384, 100, 7}) {
      const auto part = std::span(tokens).first(count);
      EXPECT_EQ(AllLogits(*stages, part), AllLogits(*one, part)) << Name(gpus) << " " << count;
      EXPECT_EQ(PromptAndAnswer(*stages, part), PromptAndAnswer(*one, part))
          << Name(gpus) << " " << count << ", pieces that nothing waits between";
    }
  }
}

TEST_F(GpuStagesTest, FixturesInFloat32) {
  for (const char* name : {"qwen3_moe", "qwen3_moe_mixed"}) {
    const std::string fixture = GoldenPath(std::string("fixtures/") + name);
    const TestStore store(fixture, Encoding::kBf16);
    for (const Gpus& gpus : Divisions()) {
      RunnerOptions options = GpuOptions(store, KvFormat::kF32, gpus);
      const auto opened = Runner::Open(options);
      if (!opened.ok()) {
        EXPECT_THAT(opened.status().message(), HasSubstr("GPUs for")) << "fewer layers than stages";
        continue;
      }
      const EvaluationReport report = Evaluate(options, {.fixture = fixture});
      EXPECT_LT(*report.logits_max_abs_error, 2e-3) << name << Name(gpus);
      EXPECT_EQ(report.greedy->match, 1u) << name << Name(gpus);
      EXPECT_EQ(*report.prefill_decode_max_abs_difference, 0) << name << Name(gpus);
    }
  }
}

TEST_F(GpuStagesTest, DemoModelInFloat32IsTheReference) {
  const TestStore store(DemoModelPath(), Encoding::kBf16);
  for (const Gpus& gpus : Divisions()) {
    const EvaluationReport report =
        Evaluate(GpuOptions(store, KvFormat::kF32, gpus), {.reference = true});
    EXPECT_EQ(report.greedy->match, 14u) << Name(gpus);
    EXPECT_LT(*report.logits_max_abs_error, 5e-3) << Name(gpus);
  }
}

// Some layers of each stage in DRAM.
TEST_F(GpuStagesTest, StreamedInEveryStage) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const auto one = Open(GpuOptions(store, KvFormat::kBf16, {}));
  const std::vector<int32_t> tokens = Tokens(*one, 400);
  const std::vector<float> all = AllLogits(*one, tokens), answer = PromptAndAnswer(*one, tokens);
  for (const Gpus& gpus : Divisions()) {
    if (gpus.size() > 2) continue;  // too few layers for three rings
    RunnerOptions options = GpuOptions(store, KvFormat::kBf16, gpus);
    {
      const auto resident = Open(options);
      // Half a layer less than four of the eight: a ring of two, one that stays, three that are streamed.
      const VramPlan& plan = resident->gpu()->stages()[0].vram;
      options.vram_budget_bytes = UINT64_MAX;
      for (const StagePlan& stage : resident->gpu()->stages()) {
        ASSERT_EQ(stage.vram.streamed_layers, 0u);
        options.vram_budget_bytes =
            std::min(options.vram_budget_bytes, stage.vram.total_bytes() - plan.anchored_bytes / 8);
      }
    }
    const auto streamed = Open(options);
    for (const StagePlan& stage : streamed->gpu()->stages()) {
      std::printf("layers %u to %u: %s\n", stage.layers.begin, stage.layers.end - 1,
                  stage.vram.ToText().c_str());
      EXPECT_GE(stage.vram.streamed_layers, 1u) << Name(gpus);
    }
    for (int round = 0; round < 2; ++round) {
      EXPECT_EQ(AllLogits(*streamed, tokens), all) << Name(gpus);
      EXPECT_EQ(PromptAndAnswer(*streamed, tokens), answer) << Name(gpus);
    }
  }
}

// After the first piece, which has gone through all stages, while the others would follow.
TEST_F(GpuStagesTest, CancelledPromptsLeaveTheSequenceAsItWas) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  for (const Gpus& gpus : Divisions()) {
    const auto stages = Open(GpuOptions(store, KvFormat::kBf16, gpus));
    const std::vector<int32_t> tokens = Tokens(*stages, 400);
    const std::vector<float> expected = AllLogits(*stages, tokens);
    stages->ResetSequence();
    const auto begin = std::span(tokens).first(100);
    ASSERT_TRUE(stages->Forward(begin, {.logits = Runner::LogitsMode::kNone}).ok());
    std::atomic<bool> cancelled{false};
    uint32_t rows = 0;
    const Runner::LogitsSink cancel = [&](uint32_t, std::span<const float>) {
      ++rows;
      cancelled = true;
    };
    const Status status =
        stages->Forward(std::span(tokens).last(300), {.logits = Runner::LogitsMode::kAll,
                                                      .sink = &cancel,
                                                      .cancelled = &cancelled});
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << Name(gpus);
    EXPECT_EQ(rows, 128u) << "one piece";
    EXPECT_EQ(stages->position(), 100u);
    EXPECT_EQ(AllLogits(*stages, tokens), expected) << Name(gpus);
  }
}

TEST_F(GpuStagesTest, SequencesTogetherAreEachAlone) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const auto one = Open(GpuOptions(store, KvFormat::kBf16, {}));
  const std::vector<int32_t> tokens = Tokens(*one, 300);
  // More than are computed together: eleven.
  constexpr uint32_t kSequences = 11, kSteps = 5;
  std::vector<std::vector<float>> alone(kSequences);
  const auto prompt_of = [&](uint32_t s) { return std::span(tokens).subspan(10 * s, 20 + 3 * s); };
  for (uint32_t s = 0; s < kSequences; ++s) {
    const Runner::LogitsSink keep = [&](uint32_t, std::span<const float> row) {
      alone[s].insert(alone[s].end(), row.begin(), row.end());
    };
    one->ResetSequence();
    ASSERT_TRUE(one->Forward(prompt_of(s), {.logits = Runner::LogitsMode::kNone}).ok());
    for (uint32_t step = 0; step < kSteps; ++step) {
      ASSERT_TRUE(one->Forward({&tokens[200 + s + step], 1}, {.sink = &keep}).ok());
    }
  }
  for (const Gpus& gpus : Divisions()) {
    RunnerOptions options = GpuOptions(store, KvFormat::kBf16, gpus);
    options.max_sequences = kSequences;
    options.max_context = 2048;
    const auto stages = Open(options);
    std::vector<std::vector<float>> together(kSequences);
    std::vector<Runner::LogitsSink> sinks;
    for (uint32_t s = 0; s < kSequences; ++s) {
      sinks.push_back([&together, s](uint32_t, std::span<const float> row) {
        together[s].insert(together[s].end(), row.begin(), row.end());
      });
      BatchSegment prompt = {.tokens = prompt_of(s), .state = &stages->sequence(s),
                             .logits = LogitsMode::kNone};
      stages->Step({&prompt, 1});
      ASSERT_TRUE(prompt.status.ok()) << prompt.status.message();
    }
    for (uint32_t step = 0; step < kSteps; ++step) {
      std::vector<BatchSegment> batch;
      for (uint32_t s = 0; s < kSequences; ++s) {
        batch.push_back({.tokens = {&tokens[200 + s + step], 1},
                         .state = &stages->sequence(s),
                         .sink = &sinks[s],
                         .decode = true});
      }
      stages->Step(batch);
      for (const BatchSegment& segment : batch) {
        ASSERT_TRUE(segment.status.ok()) << segment.status.message();
      }
    }
    EXPECT_EQ(together, alone) << Name(gpus);
  }
}

TEST_F(GpuStagesTest, WhatCannotBeIsNamed) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const auto error = [&](const Gpus& gpus, uint64_t budget_bytes) {
    RunnerOptions options = GpuOptions(store, KvFormat::kBf16, gpus);
    options.vram_budget_bytes = budget_bytes;
    const auto runner = Runner::Open(options);
    return runner.ok() ? OkStatus() : runner.status();
  };
  EXPECT_EQ(error({99}, 0).code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(error({99}, 0).message(), HasSubstr("GPU 99: there is no such GPU"));
  const Status little = error({0, 0}, 1 << 20);
  EXPECT_EQ(little.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(little.message(), HasSubstr("GPU 0 ("));
  EXPECT_THAT(little.message(), HasSubstr("with layers 0 to"));
  EXPECT_THAT(little.message(), HasSubstr("dense weights"));
  // Free for one, not for two.
  const auto one = Open(GpuOptions(store, KvFormat::kBf16, {}));
  const uint64_t most = one->gpu()->plan().budget_bytes;
  const Status both = error({0, 0}, most - 512 * kMiB);
  EXPECT_EQ(both.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(both.message(), HasSubstr("VRAM budget 2 x "));
  EXPECT_EQ(error(Gpus(9, 0), 0).code(), StatusCode::kInvalidArgument);
  RunnerOptions prompts = TestRunnerOptions(store, "100%");
  prompts.gpu_prefill = true;
  prompts.gpus = {0, 0};
  EXPECT_EQ(Runner::Open(prompts).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moraine
