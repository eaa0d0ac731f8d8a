// What needs no GPU to be decided: what lies in VRAM under a budget, and what the GPU cannot compute.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <sstream>

#include "compute/cuda/gated_delta.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/gpu_support.h"
#include "engine/gpu/recurrent_slots.h"
#include "engine/gpu/vram_needs.h"
#include "engine/gpu/vram_plan.h"
#include "engine/runner.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

VramNeeds TenLayers() {
  VramNeeds needs;
  needs.dense_bytes = 1000;
  needs.kv_bytes = 500;
  needs.scratch_bytes = [](uint32_t chunk) { return uint64_t{chunk}; };
  needs.layer_bytes = {0, 10'000, 10'000, 10'000, 10'000, 10'000,
                       10'000, 10'000, 10'000, 10'000, 10'000};
  needs.chunk = 256;
  needs.max_context = 4096;
  return needs;
}

TEST(VramPlan, EverythingStaysWhereItFits) {
  const VramPlan plan = *PlanVram(TenLayers(), 101'756);
  EXPECT_EQ(plan.anchored_layers, 10u);
  EXPECT_EQ(plan.streamed_layers, 0u);
  EXPECT_EQ(plan.ring_bytes, 0u);
  EXPECT_EQ(plan.total_bytes(), 101'756u);
}

TEST(VramPlan, OneByteLessStreams) {
  const VramPlan plan = *PlanVram(TenLayers(), 101'755);
  EXPECT_EQ(plan.ring_bytes, 20'000u);
  EXPECT_EQ(plan.anchored_layers, 7u);
  EXPECT_EQ(plan.streamed_layers, 3u);
  EXPECT_EQ(plan.anchored_bytes + plan.streamed_bytes, 100'000u);
  EXPECT_LE(plan.total_bytes(), 101'755u);
}

TEST(VramPlan, AnchoredLayersLieAmongStreamedOnes) {
  const VramPlan plan = *PlanVram(TenLayers(), 1756 + 20'000 + 50'000);
  ASSERT_EQ(plan.anchored_layers, 5u);
  for (uint32_t layer = 1; layer + 1 < plan.anchored.size(); layer += 2) {
    EXPECT_NE(plan.anchored[layer], plan.anchored[layer + 1]) << layer;
  }
  EXPECT_TRUE(plan.anchored[0]) << "a layer without experts";
}

TEST(VramPlan, TooLittleForTheRingSaysWhatIsNeeded) {
  const auto plan = PlanVram(TenLayers(), 21'755);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(plan.status().message(), HasSubstr("21.2 KiB"));  // 21,755 and 21,756
  EXPECT_TRUE(PlanVram(TenLayers(), 21'756).ok());
}

TEST(VramPlan, ChunkTakesAnEighthAtMost) {
  VramNeeds needs = TenLayers();
  needs.chunk = 0;
  EXPECT_EQ(PlanVram(needs, 1'000'000)->chunk, 4096u) << "the context's length";
  EXPECT_EQ(PlanVram(needs, 8 * 4096)->chunk, 4096u);
  EXPECT_EQ(PlanVram(needs, 8 * 4095)->chunk, 2048u);
}

VramNeeds WithHotExperts() {
  VramNeeds needs = TenLayers();
  needs.hot_experts = true;
  needs.largest_record_bytes = 1000;  // 1024 in a slot
  return needs;
}

TEST(VramPlan, HotSlotsTakeTheRoomThatIsLeft) {
  const VramPlan plan = *PlanVram(WithHotExperts(), 1756 + 20'000 + 31 * 1024 + 1023);
  EXPECT_EQ(plan.hot_slot_bytes, 1024u);
  EXPECT_EQ(plan.hot_slots, 31u);
  EXPECT_EQ(plan.hot_bytes, 31u * 1024);
  EXPECT_EQ(plan.ring_bytes, 20'000u) << "prompts stream";
  EXPECT_EQ(plan.anchored_layers, 0u);
  EXPECT_EQ(plan.anchored_bytes, 0u);
  EXPECT_EQ(plan.streamed_layers, 10u);
  EXPECT_EQ(plan.streamed_bytes, 100'000u);
  EXPECT_EQ(plan.total_bytes(), 1756u + 20'000 + 31 * 1024);
  EXPECT_TRUE(plan.anchored[0]) << "a layer without experts";
  EXPECT_EQ(std::count(plan.anchored.begin(), plan.anchored.end(), true), 1);
  EXPECT_THAT(plan.ToText(), HasSubstr("31.0 KiB for 31 single experts (1.00 KiB each)"));
}

TEST(VramPlan, HotSlotsAreForWhatDoesNotFit) {
  const VramPlan plan = *PlanVram(WithHotExperts(), 101'756);
  EXPECT_EQ(plan.anchored_layers, 10u);
  EXPECT_EQ(plan.hot_slots, 0u);
  EXPECT_EQ(plan.hot_slot_bytes, 0u);
  EXPECT_THAT(plan.ToText(), testing::Not(HasSubstr("single")));
}

TEST(VramPlan, NoRoomForASlotIsNoError) {
  const VramPlan plan = *PlanVram(WithHotExperts(), 21'756 + 1023);
  EXPECT_EQ(plan.hot_slots, 0u);
  EXPECT_EQ(plan.hot_bytes, 0u);
  EXPECT_EQ(plan.hot_slot_bytes, 1024u);
  EXPECT_FALSE(PlanVram(WithHotExperts(), 21'755).ok());
}

TEST(VramPlan, NeedsNameTheLargestRecord) {
  const TestStore store(GoldenPath("fixtures/qwen3_moe"), Encoding::kBf16);
  const auto opened = Store::Open(store.directory(), StoreMode::kReadOnly);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const Manifest& manifest = (*opened)->manifest();
  const ModelConfig config = *ParseModelConfig(manifest.model_config, "config.json");
  const VramNeeds plain = CountVramNeeds(manifest, config, {.max_context = 64});
  EXPECT_FALSE(plain.hot_experts);
  const VramNeeds needs =
      CountVramNeeds(manifest, config, {.max_context = 64, .hot_experts = true});
  EXPECT_TRUE(needs.hot_experts);
  EXPECT_EQ(needs.largest_record_bytes, manifest.max_record_bytes());
  EXPECT_GT(needs.largest_record_bytes, 0u);
}

// A position of a layer has one latent and one rotated key for all heads; prompts on tensor cores want keys of
// each head, and k_up transposed for them.
TEST(VramPlan, NeedsOfLatentAttention) {
  const TestStore store(GoldenPath("fixtures/deepseek_v3"), Encoding::kBf16);
  const auto opened = Store::Open(store.directory(), StoreMode::kReadOnly);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const Manifest& manifest = (*opened)->manifest();
  const ModelConfig config = *ParseModelConfig(manifest.model_config, "config.json");
  const auto needs = [&](uint32_t context, KvFormat format) {
    return CountVramNeeds(manifest, config,
                          {.max_context = context, .prefill_chunk = 64, .kv_format = format});
  };
  constexpr uint64_t kLayers = 4, kHeads = 4, kRank = 64, kRope = 16, kNope = 32, kValue = 32;
  const VramNeeds bf16 = needs(100, KvFormat::kBf16), f32 = needs(100, KvFormat::kF32);
  EXPECT_EQ(bf16.kv_bytes, kLayers * 128 * (kRank + kRope) * 2);
  EXPECT_EQ(f32.kv_bytes, 2 * bf16.kv_bytes);
  EXPECT_EQ(bf16.dense_bytes - f32.dense_bytes, kLayers * kHeads * kNope * kRank * 2);
  // Latents of all positions as an operand, and keys and values of all heads, which fit.
  const uint64_t position = (kRank + kHeads * (kNope + kValue)) * 2;
  EXPECT_GE(needs(1 << 16, KvFormat::kBf16).scratch_bytes(64) -
                needs(1 << 15, KvFormat::kBf16).scratch_bytes(64),
            position << 15);
  EXPECT_LT(needs(1 << 24, KvFormat::kBf16).scratch_bytes(64),
            (uint64_t{1} << 24) * (kRank * 2 + (kNope + kValue) * 2 + 64))
      << "keys and values of more heads than fit";
}

// Two layers of 2 KV heads of 16 dimensions; 3 pages.
TEST(VramPlan, CacheByItsFormat) {
  ModelConfig config;
  LayerConfig layer;
  layer.mixer = GqaConfig{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .rope = {}};
  config.layers.assign(2, layer);
  constexpr uint64_t kHeads = 2 * 2 * 2 * 3 * 64;  // of all positions, keys and values
  const auto bytes = [&](KvFormat format, LayerRange layers) {
    return GpuKvBytes(config, layers, 3, /*sequences=*/1, format);
  };
  EXPECT_EQ(bytes(KvFormat::kF32, {0, 2}), kHeads * 64);
  EXPECT_EQ(bytes(KvFormat::kBf16, {0, 2}), kHeads * 32);
  // A layer's in bf16 and a block table beside it.
  EXPECT_EQ(bytes(KvFormat::kFp8, {0, 2}), kHeads * 17 + kHeads / 2 * 32 + 256);
  EXPECT_EQ(bytes(KvFormat::kFp8, {1, 2}), kHeads / 2 * (17 + 32) + 256);
}

// State instead of keys and values: of each sequence twice, of as many positions as there may be.
TEST(VramPlan, LinearAttentionKeepsAStateASequence) {
  ModelConfig config;
  LayerConfig layer;
  layer.mixer = GatedDeltaConfig{.key_heads = 2, .value_heads = 4, .key_dim = 16, .value_dim = 32,
                                 .taps = 4};
  config.layers.assign(3, layer);
  constexpr uint64_t kWindow = 3 * (2 * 2 * 16 + 4 * 32), kMemory = 4 * 16 * 32;
  const auto bytes = [&](uint32_t pages, uint32_t sequences) {
    return GpuKvBytes(config, LayerRange::All(config), pages, sequences, KvFormat::kBf16);
  };
  EXPECT_EQ(bytes(1, 1), 3 * 2 * (kWindow + kMemory) * sizeof(float));
  EXPECT_EQ(bytes(1, 5), 5 * bytes(1, 1));
  EXPECT_EQ(bytes(1000, 5), bytes(1, 5));
}

TEST(RecurrentSlots, AStepThatIsNotCommittedHasChangedNothing) {
  RecurrentSlots slots(2);
  const auto begin = slots.Begin(1, 0);
  EXPECT_EQ(begin.from, gpu::kZeroState);
  slots.Commit(1, 5);
  const auto next = slots.Begin(1, 5);
  EXPECT_EQ(next.from, begin.to);
  EXPECT_NE(next.to, next.from);
  const auto again = slots.Begin(1, 5);  // `next` has failed
  EXPECT_EQ(again.from, next.from);
  EXPECT_EQ(again.to, next.to);
  slots.Commit(1, 6);
  EXPECT_EQ(slots.Begin(1, 6).from, next.to);
  EXPECT_EQ(slots.Begin(1, 0).from, gpu::kZeroState) << "begins anew";
  const auto other = slots.Begin(0, 0);
  for (const uint32_t used : {begin.to, next.to}) EXPECT_NE(other.to, used) << "another sequence's";
  EXPECT_LT(std::max({other.to, begin.to, next.to}), RecurrentSlots::SlotCount(2));
}

TEST(VramPlan, Budgets) {
  EXPECT_EQ(*ParseVramBudget("auto"), 0u);
  EXPECT_EQ(*ParseVramBudget("16GiB"), uint64_t{16} << 30);
  EXPECT_THAT(ParseVramBudget("50%").status().message(), HasSubstr("expected a size"));
}

struct Refusal {
  const char *fixture, *feature;
};

class GpuSupportTest : public testing::TestWithParam<Refusal> {};

TEST_P(GpuSupportTest, NamesWhatIsMissing) {
  const std::string path = GoldenPath(std::string("fixtures/") + GetParam().fixture + "/config.json");
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  const ModelConfig config = *ParseModelConfig(text.str(), path);
  const std::vector<ExpertLayout> layouts(config.layers.size());
  const Status status = CheckGpuSupport(config, layouts, Manifest(), KvFormat::kBf16);
  if (GetParam().feature == nullptr) {
    EXPECT_TRUE(status.ok()) << status.message();
    return;
  }
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_THAT(status.message(), HasSubstr(config.model_type));
  EXPECT_THAT(status.message(), HasSubstr(GetParam().feature));
}

INSTANTIATE_TEST_SUITE_P(
    Families, GpuSupportTest,
    testing::Values(Refusal{"qwen3_moe", nullptr}, Refusal{"qwen3_moe_mixed", nullptr},
                    Refusal{"deepseek_v2", nullptr}, Refusal{"deepseek_v2_lite", nullptr},
                    Refusal{"deepseek_v3", nullptr}, Refusal{"kimi_k2", nullptr},
                    Refusal{"olmoe", nullptr}, Refusal{"glm4_moe", nullptr},
                    Refusal{"minimax_m2", nullptr}, Refusal{"qwen3_next", "as Qwen3-Next has it"},
                    Refusal{"qwen3_5_moe", nullptr},
                    Refusal{"gpt_oss", "sliding window"}),
    [](const auto& refusal) { return std::string(refusal.param.fixture); });

TEST(GpuSupport, NamesEncodings) {
  ModelConfig config;
  config.model_type = "qwen3_moe";
  config.layers.push_back({FeedForwardKind::kMoe, 64, GqaConfig{.query_heads = 1, .kv_heads = 1,
                                                                .head_dim = 64}});
  std::vector<ExpertLayout> layouts(1);
  layouts[0].gate_up = Encoding::kMxfp4;
  EXPECT_THAT(CheckGpuSupport(config, layouts, Manifest(), KvFormat::kBf16).message(),
              HasSubstr("mxfp4 experts (layer 0)"));
  layouts[0].gate_up = Encoding::kQ4;
  Manifest manifest;
  manifest.dense.push_back({.name = "output", .encoding = "iq4_nl"});
  EXPECT_THAT(CheckGpuSupport(config, layouts, manifest, KvFormat::kBf16).message(),
              HasSubstr("iq4_nl (output)"));
  EXPECT_THAT(CheckGpuSupport(config, layouts, Manifest(), KvFormat::kQ8).message(),
              HasSubstr("--kv q8"));
}

TEST(Gpu, WhoeverHasNoneIsTold) {
  const TestStore store(GoldenPath("fixtures/qwen3_moe"), Encoding::kBf16);
  RunnerOptions options = TestRunnerOptions(store, "100%");
  options.gpu = true;
  options.kv_format = KvFormat::kBf16;
  const auto runner = Runner::Open(options);
  if (runner.ok()) GTEST_SKIP() << "there is a GPU: " << (*runner)->gpu()->gpu_name();
  EXPECT_EQ(runner.status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(runner.status().message(), HasSubstr("no CUDA"));
}

}  // namespace
}  // namespace moraine
