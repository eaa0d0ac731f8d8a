// The fp8 cache on a GPU through whole models: beside the CPU with the same cache, beside bf16, from chunk to chunk and
// from the GPU to the CPU. Kernels are tested by themselves (tests/compute/cuda/fp8_cache_test.cc). Skipped, saying so,
// where there is no GPU. Fixtures of random weights are no measure of it: their routers are full of near ties.
#include <gtest/gtest.h>

#include "engine/gpu/gpu_model.h"
#include "engine/gpu_prefill.h"
#include "model_measures.h"
#include "test_store.h"

namespace moraine {
namespace {

RunnerOptions GpuOptions(const TestStore& store, KvFormat kv) {
  RunnerOptions options = TestRunnerOptions(store, "100%");
  options.gpu = true;
  options.kv_format = kv;
  options.prefill_chunk = 0;
  return options;
}

RunnerOptions CpuOptions(const TestStore& store, KvFormat kv) {
  RunnerOptions options = TestRunnerOptions(store, "100%");
  options.kv_format = kv;
  return options;
}

class GpuKvTest : public testing::Test {
 protected:
  void SetUp() override {
    const Status gpu = FindGpu();
    if (!gpu.ok()) GTEST_SKIP() << gpu.message();
  }
};

// On the way of few tokens all else is float32 on both sides: what is left are values that fall to the other side
// of a rounding.
TEST_F(GpuKvTest, FewTokensAreTheCpus) {
  const TestStore store(DemoModelPath(), Encoding::kBf16);
  const std::vector<float> exact = Logits(CpuOptions(store, KvFormat::kF32), 200);
  const std::vector<float> cpu = Logits(CpuOptions(store, KvFormat::kFp8), 200);
  RunnerOptions options = GpuOptions(store, KvFormat::kFp8);
  options.prefill_chunk = 8;
  const std::vector<float> gpu = Logits(options, 200);
  const double format = Distance(cpu, exact), path = Distance(gpu, cpu);
  std::printf("fp8 on the CPU %.2e from float32, on the GPU %.2e from the CPU's\n", format, path);
  EXPECT_GT(format, 1e-4) << "the format made no difference";
  EXPECT_LT(path, format / 3);
}

TEST_F(GpuKvTest, DemoModelOnTensorCores) {
  const TestStore store(DemoModelPath(), Encoding::kBf16);
  const EvaluationReport report =
      Evaluate(GpuOptions(store, KvFormat::kFp8), {.texts = true, .chat = true});
  ExpectNll(report, 0.01);  // as Golden.KeysAndValuesInFp8
  EXPECT_GE(report.chat->match, 198u);
}

TEST_F(GpuKvTest, RunsAndChunks) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  RunnerOptions options = GpuOptions(store, KvFormat::kFp8);
  const auto runner = Runner::Open(options);
  ASSERT_TRUE(runner.ok()) << runner.status().message();
  const std::vector<int32_t> tokens = Tokens(**runner, 500);
  const std::vector<float> first = AllLogits(**runner, tokens);
  EXPECT_EQ(AllLogits(**runner, tokens), first) << "the second time";
  const double format = Distance(Logits(GpuOptions(store, KvFormat::kBf16), 500), first);
  options.prefill_chunk = 96;  // and a last one of 20
  const double chunks = Distance(Logits(options, 500), first);
  std::printf("fp8 %.2e from bf16; in chunks %.2e\n", format, chunks);
  EXPECT_GT(format, 1e-4);
  EXPECT_LT(format, 5e-2);
  EXPECT_LT(chunks, 3e-2);
}

// Chunks that a GPU computes beside the CPU are those of a GPU alone, though all of the past but the chunk has been on the
// CPU; and answers on the CPU read what the GPU has written.
TEST_F(GpuKvTest, BlocksAreTheCpus) {
  const TestStore store(DemoModelPath(), Encoding::kBf16);
  RunnerOptions options = GpuOptions(store, KvFormat::kFp8);
  options.prefill_chunk = 128;
  const auto gpu = Runner::Open(options);
  ASSERT_TRUE(gpu.ok()) << gpu.status().message();
  const std::vector<int32_t> tokens = Tokens(**gpu, 400);
  const std::vector<float> expected = AllLogits(**gpu, tokens);
  options.gpu = false;
  options.gpu_prefill = true;
  options.gpu_prefill_tokens = 1;
  const auto hybrid = Runner::Open(options);
  ASSERT_TRUE(hybrid.ok()) << hybrid.status().message();
  ASSERT_NE((*hybrid)->gpu_prefill(), nullptr);
  EXPECT_EQ(AllLogits(**hybrid, tokens), expected);

  const auto answer = [&](Runner& runner) {
    std::vector<float> logits;
    const Runner::LogitsSink keep = [&](uint32_t, std::span<const float> row) {
      logits.insert(logits.end(), row.begin(), row.end());
    };
    runner.ResetSequence();
    CHECK(runner.Forward(std::span(tokens).first(380), {.sink = &keep}).ok(), "prompt");
    for (const int32_t& token : std::span(tokens).last(20)) {
      CHECK(runner.Forward({&token, 1}, {.sink = &keep}).ok(), "answer");
    }
    return logits;
  };
  const double distance = Distance(answer(**hybrid), answer(**gpu));
  std::printf("answers on the CPU %.2e from the GPU's\n", distance);
  EXPECT_LT(distance, 2e-2);
  EXPECT_EQ((*hybrid)->Stats().gpu_prefill.failures, 0u);
}

}  // namespace
}  // namespace moraine
