// Answers that GPU and CPU compute together, without an engine: the experts' owner is SplitExperts,
// who puts each of them where a test says. Skipped, saying so, where there is no GPU.
//
// In float32 the reference holds wherever experts are computed: 16 bits of activations on the GPU,
// all on the CPU. Bits depend on where, so tests of bits keep a split that depends on layer and
// expert only.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/random.h"
#include "split_experts.h"

namespace moraine {
namespace {

using testing::HasSubstr;
using Part = SplitModel::Part;
using Sequence = SplitModel::Sequence;

Split Everything(Where where) {
  return [where](uint32_t, uint32_t) { return where; };
}
// Each expert somewhere, for good.
Split Mixed(uint64_t seed) {
  return [seed](uint32_t layer, uint32_t expert) {
    Random random(seed * 1'000'003 + layer * 1009 + expert);
    return static_cast<Where>(random.Below(3));
  };
}

class GpuHostExpertsTest : public testing::Test {
 protected:
  void SetUp() override {
    const Status gpu = FindGpu();
    if (!gpu.ok()) GTEST_SKIP() << gpu.message();
  }
  static const TestStore& Exact() {
    static const TestStore store(DemoModelPath(), Encoding::kBf16);
    return store;
  }
};

std::vector<int32_t> SomeTokens(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random.Below(4000));
  return tokens;
}

size_t Argmax(std::span<const float> row) {
  return static_cast<size_t>(std::ranges::max_element(row) - row.begin());
}

struct ReferenceRun {
  uint32_t same = 0, all = 0;
  double worst = 0;  // of the prompts' last logits
};
ReferenceRun RunReference(SplitModel& model) {
  ReferenceRun run;
  std::ifstream file(GoldenPath("demo/reference.json"));
  for (const auto& item : nlohmann::json::parse(file)) {
    const auto prompt = item.at("ids").get<std::vector<int32_t>>();
    const auto expected = item.at("greedy_fp32").get<std::vector<int32_t>>();
    Sequence sequence;
    std::vector<float> logits = model.Run(sequence, prompt, 8);
    const size_t vocab = model.config().vocab_size;
    std::span<const float> last = std::span(logits).last(vocab);
    for (const auto& top : item.at("last_logits_top")) {
      const double off = last[top[0].get<size_t>()] - top[1].get<double>();
      run.worst = std::max(run.worst, std::abs(off));
    }
    bool same = true;
    for (const int32_t token : expected) {
      const auto next = static_cast<int32_t>(Argmax(last));
      same &= next == token;
      if (!same) break;
      logits = model.Run(sequence, {&next, 1}, 1);
      last = std::span(logits).last(vocab);
    }
    run.same += same;
    ++run.all;
    model.Free(sequence);
  }
  return run;
}

TEST_F(GpuHostExpertsTest, ContinuationsAreTheReferencesAtEverySplit) {
  SplitModel model(Exact(), {});
  std::printf("%s\n", model.model().plan().ToText().c_str());
  ASSERT_GT(model.experts().slots_used(), 0u);
  const std::pair<const char*, Split> splits[] = {
      {"slots", Everything(Where::kVram)}, {"link", Everything(Where::kLink)},
      {"CPU", Everything(Where::kCpu)},    {"mixed 1", Mixed(1)},
      {"mixed 2", Mixed(2)}};
  for (const auto& [name, split] : splits) {
    model.experts().set_split(split);
    const ReferenceRun run = RunReference(model);
    std::printf("%s: %u of %u continuations, logits off by %.2e\n", name, run.same, run.all,
                run.worst);
    EXPECT_EQ(run.same, 14u) << name;
    EXPECT_EQ(run.all, 14u) << name;
    EXPECT_LT(run.worst, 5e-3) << name;
    EXPECT_TRUE(model.experts().Balanced()) << name;
  }
  EXPECT_GT(model.experts().places(), 1000u);
}

// Twice, in pieces of any length, alone or with others, with the host's pool locked or not: the
// same bits.
TEST_F(GpuHostExpertsTest, BitsDependOnTheSplitAlone) {
  const TestStore quantised(DemoModelPath(), Encoding::kQ4);
  const std::vector<int32_t> tokens = SomeTokens(70, 3);
  for (const KvFormat kv : {KvFormat::kF32, KvFormat::kBf16}) {
    SplitModel model(quantised, {.kv = kv});
    model.experts().set_split(Mixed(7));
    Sequence sequence;
    const std::vector<float> expected = model.Run(sequence, tokens, 1);
    for (const size_t step : {size_t{1}, size_t{3}, size_t{8}}) {
      model.Free(sequence);
      EXPECT_EQ(model.Run(sequence, tokens, step), expected) << step << " tokens at a time";
    }
    SplitModel unlocked(quantised, {.kv = kv, .lock_pool = false});
    unlocked.experts().set_split(Mixed(7));
    Sequence other;
    EXPECT_EQ(unlocked.Run(other, tokens, 5), expected) << "rows as copies of pages";

    // Three sequences at different positions, in one step and one by one.
    std::vector<Sequence> alone(3), together(3);
    std::vector<Part> parts;
    std::vector<std::vector<float>> single;
    for (uint32_t i = 0; i < 3; ++i) {
      const std::vector<int32_t> past = SomeTokens(20 + 50 * i, 10 + i);
      const std::vector<int32_t> next = SomeTokens(1 + i, i);
      model.Run(alone[i], past, 8);
      single.push_back(model.Run(alone[i], next, 8));
      model.Run(together[i], past, 8);
      parts.push_back({&together[i], next});
    }
    model.Step(parts);
    for (uint32_t i = 0; i < 3; ++i) {
      ASSERT_TRUE(parts[i].status.ok()) << parts[i].status.message();
      EXPECT_EQ(parts[i].logits, single[i]) << "sequence " << i << " of 3 together";
    }
    EXPECT_TRUE(model.experts().Balanced());
  }
}

// What the CPU would go on from: the pool's blocks, brought back under other numbers.
TEST_F(GpuHostExpertsTest, KeysAndValuesAreInThePool) {
  const std::vector<int32_t> tokens = SomeTokens(150, 5), next = SomeTokens(6, 6);
  for (const KvFormat kv : {KvFormat::kF32, KvFormat::kBf16}) {
    for (const bool lock_pool : {true, false}) {
      SplitModel model(Exact(), {.kv = kv, .lock_pool = lock_pool});
      model.experts().set_split(Mixed(11));
      Sequence first, second;
      model.Run(first, tokens, 7);
      second.length = first.length;
      for (const uint32_t page : first.pages) {
        const uint32_t copy = model.pool().Take();
        for (uint32_t layer = 0; layer < model.config().layers.size(); ++layer) {
          const uint64_t bytes = model.pool().block_bytes(layer);
          std::memcpy(model.pool().layer(layer) + copy * bytes,
                      model.pool().layer(layer) + page * bytes, bytes);
        }
        second.pages.push_back(copy);
      }
      second.stale = second.pages;
      EXPECT_EQ(model.Run(second, next, 6), model.Run(first, next, 6)) << lock_pool;
    }
  }
}

TEST_F(GpuHostExpertsTest, AnErrorInALayerLeavesTheModelUsable) {
  SplitModel model(Exact(), {});
  model.experts().set_split(Mixed(13));
  const std::vector<int32_t> tokens = SomeTokens(40, 7), next = SomeTokens(2, 8);
  Sequence sequence;
  model.Run(sequence, tokens, 8);
  Sequence again = sequence;
  const std::vector<float> expected = model.Run(again, next, 2);
  for (const bool place : {true, false}) {
    for (const uint32_t layer : {0u, 3u, 7u}) {
      place ? model.experts().FailPlace(layer) : model.experts().FailCompute(layer);
      const uint64_t before = model.experts().places();
      std::vector<Part> parts = {{&sequence, next}};
      model.Step(parts);
      EXPECT_EQ(parts[0].status.message(), place ? "Place fails" : "Compute fails");
      EXPECT_TRUE(parts[0].logits.empty());
      EXPECT_EQ(model.experts().places() - before, layer + 1);
      EXPECT_TRUE(model.experts().Balanced()) << layer;
      parts[0].status = OkStatus();
      model.Step(parts);
      ASSERT_TRUE(parts[0].status.ok()) << parts[0].status.message();
      EXPECT_EQ(parts[0].logits, expected) << layer;
      sequence.length -= 2;
    }
  }
}

// A prompt on tensor cores takes from the slots what is there, and copies the rest: the bits of one
// that copies everything.
TEST_F(GpuHostExpertsTest, PromptsSkipWhatIsInASlot) {
  const TestStore quantised(DemoModelPath(), Encoding::kQ4);
  SplitModel model(quantised, {.kv = KvFormat::kBf16, .chunk = 64});
  const std::vector<int32_t> tokens = SomeTokens(200, 21);
  const uint32_t all = static_cast<uint32_t>(model.config().layers.size()) *
                       model.config().expert_count;
  ASSERT_GT(model.experts().slots_used(), 0u);
  Sequence sequence;
  model.experts().set_skip_slots(false);
  const std::vector<float> expected = model.Run(sequence, tokens, 64);
  const uint64_t copied = model.experts().copied();
  EXPECT_EQ(copied, 3u * all) << "the fourth piece is of 8 tokens, and is an answer's way";
  model.Free(sequence);
  model.experts().set_skip_slots(true);
  EXPECT_EQ(model.Run(sequence, tokens, 64), expected);
  EXPECT_EQ(model.experts().copied() - copied, 3u * (all - model.experts().slots_used()));
}

// Where everything fits nobody is asked, and the pool has the rows all the same.
TEST_F(GpuHostExpertsTest, WhatFitsAsAWholeMeetsNobody) {
  SplitModel model(Exact(), {.everything_fits = true});
  EXPECT_EQ(model.model().plan().streamed_layers, 0u);
  EXPECT_EQ(model.model().vram_slots().count, 0u);
  const ReferenceRun run = RunReference(model);
  EXPECT_EQ(run.same, 14u);
  EXPECT_EQ(model.experts().places(), 0u);
}

double MsAStep(SplitModel& model, std::span<const int32_t> tokens) {
  Sequence sequence;
  model.Run(sequence, tokens.first(20), 1);
  std::vector<double> ms;
  for (const int32_t& token : tokens.subspan(20)) {
    const int64_t begin = RealClock().NowNs();
    model.Run(sequence, {&token, 1}, 1);
    ms.push_back(static_cast<double>(RealClock().NowNs() - begin) * 1e-6);
  }
  std::ranges::nth_element(ms, ms.begin() + static_cast<std::ptrdiff_t>(ms.size() / 2));
  model.Free(sequence);
  return ms[ms.size() / 2];
}

TEST_F(GpuHostExpertsTest, WhatMeetingCosts) {
  const std::vector<int32_t> tokens = SomeTokens(300, 9);
  SplitModel whole(Exact(), {.everything_fits = true});
  std::printf("all in VRAM, no meeting: %.3f ms a step\n", MsAStep(whole, tokens));
  SplitModel model(Exact(), {});
  for (const auto& [name, where] : {std::pair("slots, the rest over the link", Where::kVram),
                                    std::pair("all over the link", Where::kLink),
                                    std::pair("all on the CPU (scalar)", Where::kCpu)}) {
    model.experts().set_split(Everything(where));
    std::printf("%s: %.3f ms a step of %zu layers\n", name, MsAStep(model, tokens),
                model.config().layers.size());
  }
}

}  // namespace
}  // namespace moraine
