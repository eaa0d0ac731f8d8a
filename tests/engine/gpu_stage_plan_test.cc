// Which layers go to which GPU: decided without one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/random.h"
#include "engine/gpu/stage_plan.h"

namespace moraine {
namespace {

using testing::HasSubstr;

constexpr uint64_t kExperts = 10'000, kDense = 100, kKv = 50, kVocabulary = 3'000;
constexpr uint32_t kChunk = 256, kContext = 32'768;

// Layers alike; the embedding comes with the first, the output with the last.
StageNeeds Layers(uint32_t count) {
  StageNeeds needs;
  needs.vram = [count](LayerRange layers) {
    VramNeeds vram;
    vram.dense_bytes = layers.count() * kDense + (layers.begin == 0 ? kVocabulary : 0) +
                       (layers.end == count ? kVocabulary : 0);
    vram.kv_bytes = layers.count() * kKv;
    vram.scratch_bytes = [](uint32_t chunk) { return uint64_t{chunk}; };
    vram.layer_bytes.assign(count, 0);
    for (uint32_t i = layers.begin; i < layers.end; ++i) vram.layer_bytes[i] = kExperts;
    vram.max_context = kContext;
    return vram;
  };
  needs.layer_operations.assign(count, 1e6);
  needs.row_operations = 1e6;
  needs.piece = kChunk;
  needs.max_context = kContext;
  return needs;
}

// A layer that stays, but for what comes with the first and the last.
constexpr uint64_t kLayer = kExperts + kDense + kKv;

StageDevice Device(const std::string& name, uint64_t budget_bytes, double speed = 1e12) {
  return {.name = name, .budget_bytes = budget_bytes, .operations_per_s = speed,
          .link_bytes_per_s = 1e6};
}

std::vector<uint32_t> Counts(const std::vector<StagePlan>& stages) {
  std::vector<uint32_t> counts;
  for (const StagePlan& stage : stages) counts.push_back(stage.layers.count());
  return counts;
}

TEST(StagePlan, OneGpuHasAll) {
  const StageNeeds needs = Layers(10);
  const StageDevice device = Device("a", 1'000'000);
  const auto stages = *PlanStages(needs, {&device, 1});
  ASSERT_EQ(stages.size(), 1u);
  EXPECT_EQ(stages[0].layers.count(), 10u);
  EXPECT_EQ(stages[0].vram.total_bytes(),
            10 * kLayer + 2 * kVocabulary + kChunk);
}

TEST(StagePlan, EqualCardsGetEqualLayers) {
  for (const uint32_t count : {2u, 3u, 4u}) {
    const std::vector<StageDevice> devices(count, Device("a", 1'000'000));
    const auto stages = *PlanStages(Layers(12), devices);
    EXPECT_EQ(Counts(stages), std::vector<uint32_t>(count, 12 / count));
    EXPECT_EQ(SumOf(stages).streamed_bytes, 0u);
    EXPECT_EQ(SumOf(stages).anchored_layers, 12u);
  }
}

TEST(StagePlan, WhoHasTheVocabularyGetsTheOddLayerLess) {
  const std::vector<StageDevice> devices(2, Device("a", 1'000'000));
  EXPECT_EQ(Counts(*PlanStages(Layers(11), devices)), (std::vector<uint32_t>{6, 5}));
}

TEST(StagePlan, FasterCardsGetMoreLayers) {
  const std::vector<StageDevice> devices = {Device("a", 1'000'000, 1e12),
                                            Device("b", 1'000'000, 3e12)};
  EXPECT_EQ(Counts(*PlanStages(Layers(12), devices)), (std::vector<uint32_t>{3, 9}));
}

// A layer that is streamed costs more than one that waits for a slow card.
TEST(StagePlan, MemoryGoesBeforeSpeed) {
  const std::vector<StageDevice> devices = {
      Device("a", 3 * kLayer + kVocabulary + kChunk, 9e12), Device("b", 1'000'000, 1e12)};
  const auto stages = *PlanStages(Layers(12), devices);
  EXPECT_EQ(Counts(stages), (std::vector<uint32_t>{3, 9}));
  EXPECT_EQ(SumOf(stages).streamed_bytes, 0u);
}

TEST(StagePlan, WhatDoesNotFitIsStreamedByBoth) {
  // Each has room for a ring and some layers; together for less than all.
  const std::vector<StageDevice> devices(
      2, Device("a", 2 * kExperts + 3 * kExperts + 6 * (kDense + kKv) + kVocabulary + kChunk));
  const auto stages = *PlanStages(Layers(12), devices);
  EXPECT_EQ(Counts(stages), (std::vector<uint32_t>{6, 6}));
  for (const StagePlan& stage : stages) {
    EXPECT_EQ(stage.vram.anchored_layers, 3u);
    EXPECT_EQ(stage.vram.streamed_layers, 3u);
    EXPECT_LE(stage.vram.total_bytes(), stage.vram.budget_bytes);
  }
  const VramPlan sum = SumOf(stages);
  EXPECT_EQ(sum.anchored_bytes + sum.streamed_bytes, 12 * kExperts);
  EXPECT_EQ(std::ranges::count(sum.anchored, false), 6);
}

TEST(StagePlan, TooLittleEverywhereNamesThePartsOfEach) {
  const std::vector<StageDevice> devices = {Device("GPU 0 (big)", 1'000'000),
                                            Device("GPU 1 (small)", 500)};
  const auto stages = PlanStages(Layers(12), devices);
  ASSERT_FALSE(stages.ok());
  EXPECT_EQ(stages.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(stages.status().message(), HasSubstr("GPU 0 (big) with layers 0 to 5: enough"));
  EXPECT_THAT(stages.status().message(),
              HasSubstr("GPU 1 (small) with layers 6 to 11: VRAM budget 500 B: at least"));
  EXPECT_THAT(stages.status().message(), HasSubstr("dense weights"));
  EXPECT_THAT(stages.status().message(), HasSubstr("KV cache"));
}

TEST(StagePlan, MoreGpusThanLayersIsRefused) {
  const std::vector<StageDevice> devices(3, Device("a", 1'000'000));
  const auto stages = PlanStages(Layers(2), devices);
  ASSERT_FALSE(stages.ok());
  EXPECT_EQ(stages.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(stages.status().message(), HasSubstr("3 GPUs for 2 layers"));
}

TEST(StagePlan, PiecesAreShorterUnlessLayersAreStreamed) {
  StageNeeds needs = Layers(12);
  needs.piece = 0;
  std::vector<StageDevice> devices(2, Device("a", 1'000'000));
  EXPECT_EQ(SumOf(*PlanStages(needs, devices)).chunk, 2048u);
  devices.assign(2, Device("a", 65'700));  // 248 too few for all
  const VramPlan streamed = SumOf(*PlanStages(needs, devices));
  EXPECT_GT(streamed.streamed_bytes, 0u);
  EXPECT_EQ(streamed.chunk, 8192u);
  devices.assign(2, Device("a", 8 * 2047 + 30'000));
  EXPECT_EQ(SumOf(*PlanStages(needs, devices)).chunk, 4096u) << "an eighth of the budget";
}

TEST(StagePlan, PromptsAreSeveralPieces) {
  EXPECT_EQ(PromptTokens(1, 8192, 100'000), 8192u);
  EXPECT_EQ(PromptTokens(2, 2048, 100'000), 16'384u);
  EXPECT_EQ(PromptTokens(2, 8192, 100'000), 32'768u);
  EXPECT_EQ(PromptTokens(2, 2048, 9000), 9000u) << "no longer than the context";
  EXPECT_EQ(PromptTokens(2, 8, 9000), 8u) << "what few tokens are";
}

// Against all divisions there are.
TEST(StagePlan, NoDivisionIsBetter) {
  const uint64_t seed = 20'261'122;
  Random random(seed);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << " round " << round);
    const auto layers = static_cast<uint32_t>(3 + random.Below(7));
    StageNeeds needs = Layers(layers);
    for (double& operations : needs.layer_operations) operations *= 1 + random.Below(3);
    std::vector<StageDevice> devices;
    for (int d = 0; d < 3; ++d) {
      devices.push_back(Device("a", 20'000 + random.Below(60'000), 1e12 * (1 + random.Below(4))));
    }
    // Whether something is streamed, and the slowest stage's time.
    using Cost = std::pair<bool, double>;
    const auto cost_of = [&](uint32_t first, uint32_t second) -> std::optional<Cost> {
      Cost cost = {false, 0};
      const uint32_t ends[] = {0, first, second, layers};
      for (int d = 0; d < 3; ++d) {
        const LayerRange range = {ends[d], ends[d + 1]};
        VramNeeds vram = needs.vram(range);
        vram.chunk = kChunk;
        const auto plan = PlanVram(vram, devices[d].budget_bytes);
        if (!plan.ok()) return std::nullopt;
        double operations = range.end == layers ? needs.row_operations : 0;
        for (uint32_t i = range.begin; i < range.end; ++i) {
          operations += kChunk * needs.layer_operations[i];
        }
        cost.first |= plan->streamed_bytes > 0;
        cost.second = std::max({cost.second, operations / devices[d].operations_per_s,
                                static_cast<double>(plan->streamed_bytes) / 1e6});
      }
      return cost;
    };
    std::optional<Cost> best;
    for (uint32_t first = 1; first + 1 < layers; ++first) {
      for (uint32_t second = first + 1; second < layers; ++second) {
        const auto cost = cost_of(first, second);
        if (cost && (!best || *cost < *best)) best = cost;
      }
    }
    const auto stages = PlanStages(needs, devices);
    ASSERT_EQ(stages.ok(), best.has_value());
    if (!best) continue;
    EXPECT_EQ(*cost_of((*stages)[0].layers.end, (*stages)[1].layers.end), *best);
  }
}

}  // namespace
}  // namespace moraine
