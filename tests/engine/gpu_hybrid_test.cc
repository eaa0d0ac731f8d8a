// Prompts on a real GPU and answers on the CPU. What does not need one is tested without
// (gpu_prefill_test.cc); here it is that keys, values, records and routing come over as they are, on the way of
// float32, where the CPU's own references hold, and on tensor cores, where the GPU's bits must not depend
// on where its experts come from. Skipped, saying so, where there is no GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "engine/gpu_prefill.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"
#include "model_measures.h"
#include "store/store.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

RunnerOptions HybridOptions(const TestStore& store, KvFormat kv, const std::string& ram = "50%") {
  RunnerOptions options = TestRunnerOptions(store, ram);
  options.gpu_prefill = true;
  options.gpu_prefill_tokens = 1;
  options.kv_format = kv;
  options.prefill_chunk = 0;
  return options;
}

std::unique_ptr<Runner> Open(const RunnerOptions& options) {
  auto runner = Runner::Open(options);
  CHECK(runner.ok(), runner.status().message());
  return std::move(*runner);
}

class GpuHybridTest : public testing::Test {
 protected:
  void SetUp() override {
    const Status gpu = FindGpu();
    if (!gpu.ok()) GTEST_SKIP() << gpu.message();
  }
};

// The prompt's logits, then those of `answer` tokens one by one on the CPU.
std::vector<float> PromptAndAnswer(Runner& runner, std::span<const int32_t> tokens, size_t answer) {
  std::vector<float> logits;
  const Runner::LogitsSink keep = [&](uint32_t, std::span<const float> row) {
    logits.insert(logits.end(), row.begin(), row.end());
  };
  runner.ResetSequence();
  CHECK(runner.Forward(tokens.first(tokens.size() - answer), {.sink = &keep}).ok(), "prompt");
  for (const int32_t& token : tokens.last(answer)) {
    CHECK(runner.Forward({&token, 1}, {.sink = &keep}).ok(), "answer");
  }
  return logits;
}

TEST_F(GpuHybridTest, InFloat32ItIsTheReference) {
  const TestStore store(DemoModelPath(), Encoding::kBf16);
  uint64_t vram_budget_bytes = 0;
  for (const char* ram : {"100%", "15%"}) {
    RunnerOptions options = HybridOptions(store, KvFormat::kF32, ram);
    options.vram_budget_bytes = vram_budget_bytes;
    const auto runner = Open(options);
    ASSERT_NE(runner->gpu_prefill(), nullptr);
    const VramPlan& plan = runner->gpu_prefill()->plan();
    std::printf("%s\n", plan.ToText().c_str());
    EXPECT_EQ(plan.streamed_layers > 0, vram_budget_bytes > 0);
    vram_budget_bytes = plan.total_bytes() - plan.anchored_bytes / 2;
    const auto evaluation = Evaluation::Create(*runner);
    ASSERT_TRUE(evaluation.ok());
    ASSERT_TRUE((*evaluation)->AddReference(GoldenPath("demo/reference.json")).ok());
    const EvaluationReport& report = (*evaluation)->Finish();
    std::printf("%s resident: %s", ram, report.ToText().c_str());
    EXPECT_EQ(report.greedy->match, 14u);
    EXPECT_LT(*report.logits_max_abs_error, 5e-3);
    EXPECT_EQ(runner->Stats().gpu_prefill.failures, 0u);
    EXPECT_GT(runner->gpu_prefill()->counts().tokens, 100u);
    EXPECT_GT(runner->decode_stats().tokens, 100u);
    runner->CheckInvariants();
  }
}

// Several chunks through the ring of layers, from slots or from the drive: the bits of a GPU that has all.
TEST_F(GpuHybridTest, ChunksAreThoseOfAGpuThatHasEverything) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  RunnerOptions whole = TestRunnerOptions(store, "100%");
  whole.gpu = true;
  whole.kv_format = KvFormat::kBf16;
  whole.prefill_chunk = 128;
  const auto gpu = Open(whole);
  const std::vector<int32_t> tokens = Tokens(*gpu, 400);
  const std::vector<float> expected = AllLogits(*gpu, tokens);
  const VramPlan& all = gpu->gpu()->plan();
  for (const char* ram : {"100%", "12%"}) {
    for (const uint64_t left_out : {uint64_t{0}, all.anchored_bytes / 4, all.anchored_bytes * 2 / 3}) {
      RunnerOptions options = HybridOptions(store, KvFormat::kBf16, ram);
      options.prefill_chunk = 128;
      options.vram_budget_bytes = all.total_bytes() - left_out;
      const auto hybrid = Open(options);
      ASSERT_NE(hybrid->gpu_prefill(), nullptr);
      std::printf("%s resident, %s\n", ram, hybrid->gpu_prefill()->plan().ToText().c_str());
      EXPECT_EQ(hybrid->gpu_prefill()->plan().streamed_layers > 0, left_out > 0);
      for (int round = 0; round < 2; ++round) {
        EXPECT_EQ(AllLogits(*hybrid, tokens), expected) << ram << " less " << left_out;
      }
      EXPECT_EQ(hybrid->Stats().gpu_prefill.failures, 0u);
      EXPECT_EQ(hybrid->gpu_prefill()->counts().chunks, 8u);
      EXPECT_EQ(hybrid->residency()->leases(), 0u);
      hybrid->CheckInvariants();
    }
  }
}

// Turns of a chat: prompts on the GPU over keys and values that it and the CPU have written in turn, and
// blocks that another sequence has left. Against the CPU alone, in float32.
TEST_F(GpuHybridTest, TurnsAndSharedBeginnings) {
  const TestStore store(DemoModelPath(), Encoding::kBf16);
  RunnerOptions cpu_options = TestRunnerOptions(store, "100%");
  const auto cpu = Open(cpu_options);
  RunnerOptions options = HybridOptions(store, KvFormat::kF32);
  options.max_sequences = 2;
  const auto hybrid = Open(options);
  const std::vector<int32_t> tokens = Tokens(*cpu, 330);
  const std::vector<float> expected = AllLogits(*cpu, tokens);
  std::vector<float> found(expected.size());
  const size_t vocab = expected.size() / tokens.size();
  const Runner::LogitsSink keep = [&](uint32_t position, std::span<const float> row) {
    std::ranges::copy(row, found.begin() + static_cast<ptrdiff_t>(position * vocab));
  };
  const auto compute = [&](SequenceState& state, uint32_t until, bool decode) {
    while (state.length() < until) {
      BatchSegment segment = {
          .tokens = std::span(tokens).subspan(state.length(), decode ? 1 : until - state.length()),
          .state = &state,
          .logits = LogitsMode::kAll,
          .sink = &keep,
          .decode = decode};
      hybrid->Step({&segment, 1});
      ASSERT_TRUE(segment.status.ok()) << segment.status.message();
    }
  };
  SequenceState& first = hybrid->sequence(0);
  compute(first, 100, false);
  compute(first, 130, true);
  compute(first, 203, false);
  compute(first, 210, true);
  compute(first, 330, false);
  EXPECT_LT(Distance(found, expected), 5e-3);
  first.Publish(tokens);
  SequenceState& second = hybrid->sequence(1);
  EXPECT_EQ(second.TakePrefix(tokens), 320u);
  compute(second, 330, false);
  EXPECT_LT(Distance(found, expected), 5e-3);
  first.Reset();
  second.Reset();
  hybrid->kv_pool().DropCached();
  compute(second, 330, false);  // blocks in another order
  EXPECT_LT(Distance(found, expected), 5e-3);
  EXPECT_EQ(hybrid->Stats().gpu_prefill.failures, 0u);
}

// On tensor cores, answers on the CPU: as near to float32 as the GPU by itself.
TEST_F(GpuHybridTest, OnTensorCores) {
  const TestStore store(DemoModelPath(), Encoding::kBf16);
  const auto cpu = Open(TestRunnerOptions(store, "100%"));
  const auto hybrid = Open(HybridOptions(store, KvFormat::kBf16, "25%"));
  const std::vector<int32_t> tokens = Tokens(*cpu, 300);
  const double distance =
      Distance(PromptAndAnswer(*hybrid, tokens, 20), PromptAndAnswer(*cpu, tokens, 20));
  std::printf("prompt on tensor cores, answer on the CPU: %.2e from float32\n", distance);
  EXPECT_LT(distance, 2e-2);
  EXPECT_EQ(hybrid->gpu_prefill()->counts().tokens, 280u);
}

TEST_F(GpuHybridTest, TooLittleVramIsTheCpu) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  RunnerOptions options = HybridOptions(store, KvFormat::kF32);
  options.vram_budget_bytes = 1 << 20;
  const auto hybrid = Open(options), cpu = Open(TestRunnerOptions(store, "100%"));
  EXPECT_EQ(hybrid->gpu_prefill(), nullptr);
  const std::vector<int32_t> tokens = Tokens(*cpu, 100);
  EXPECT_EQ(AllLogits(*hybrid, tokens), AllLogits(*cpu, tokens));
}

// A record that is damaged takes the GPU out; who does not want the expert is served by the CPU.
TEST_F(GpuHybridTest, ADamagedRecordIsTheCpus) {
  const TestStore store(GoldenPath("fixtures/qwen3_moe"), Encoding::kBf16);
  RunnerOptions options = HybridOptions(store, KvFormat::kF32);
  {
    const auto healthy = Open(options);
    ASSERT_NE(healthy->gpu_prefill(), nullptr);
    const VramPlan& plan = healthy->gpu_prefill()->plan();
    options.vram_budget_bytes = plan.total_bytes() - plan.anchored_bytes / 2;  // none stays in VRAM
  }
  {
    const auto opened = Store::Open(store.directory(), StoreMode::kReadOnly);
    ASSERT_TRUE(opened.ok());
    const RecordLocation& place = (*opened)->Locate({LayerId(1), ExpertId(0)});
    const auto offset = static_cast<std::streamoff>(place.offset + 1000);
    std::fstream pack(store.pack_path(), std::ios::in | std::ios::out | std::ios::binary);
    pack.seekg(offset);
    const char byte = static_cast<char>(pack.get() ^ 0x10);
    pack.seekp(offset);
    pack.put(byte);
  }
  const std::vector<int32_t> tokens = {109, 277, 235, 177, 125, 58, 215, 213, 1, 2, 3, 4};
  RunnerOptions cpu_options = TestRunnerOptions(store, "100%");
  const auto cpu = Open(cpu_options), hybrid = Open(options);
  ASSERT_NE(hybrid->gpu_prefill(), nullptr);
  const Status expected = cpu->Forward(tokens, {}), found = hybrid->Forward(tokens, {});
  EXPECT_EQ(found.code(), expected.code()) << found.message();
  EXPECT_EQ(hybrid->Stats().gpu_prefill.failures, 1u);
  hybrid->CheckInvariants();
}

}  // namespace
}  // namespace moraine
