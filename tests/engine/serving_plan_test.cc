// The bounds of `moraine plan` against arithmetic done by hand.
#include "engine/serving_plan.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "engine/fixed_memory.h"
#include "engine/published_models.h"
#include "engine/synthetic_model.h"

namespace moraine {
namespace {

// Two layers of 100 experts of 4096 bytes, top-2 of them, 8 columns in, 4 in between; a dense matrix.
struct SmallModel {
  Manifest manifest;
  ModelConfig config;

  SmallModel() {
    config.top_k = 2;
    config.expert_count = 100;
    const LayerManifest layer = {.expert_count = 100, .record_bytes = 4096, .gate_up_encoding = "q4",
                                 .down_encoding = "q4", .hidden = 8, .intermediate = 4};
    manifest.layers = {layer, layer};
    for (const auto& [name, bytes] : {std::pair("embedding", 320), std::pair("output", 160)}) {
      DenseTensor& tensor = manifest.dense.emplace_back();
      tensor.name = name;
      tensor.rows = 10;
      tensor.cols = 8;
      tensor.bytes = static_cast<uint64_t>(bytes);
    }
  }
};

TEST(TokenDemand, CountsTopKRecordsAndOneEmbeddingRow) {
  SmallModel model;
  const TokenDemand demand = DemandOfToken(model.manifest, model.config);
  EXPECT_EQ(demand.expert_bytes, 2u * 2 * 4096);
  EXPECT_EQ(demand.dense_bytes, 32u + 160);
  EXPECT_DOUBLE_EQ(demand.operations, 2.0 * 80 + 2 * 2 * 6.0 * 8 * 4);
  model.config.tied_embeddings = true;  // then the table is the output matrix, too
  model.manifest.dense.pop_back();
  EXPECT_EQ(DemandOfToken(model.manifest, model.config).dense_bytes, 320u);
}

TEST(EstimateServing, IsTheLongerOfMemoryAndDrive) {
  const SmallModel model;
  ServingPlanInput input = {.manifest = model.manifest, .config = model.config, .prefill_chunk = 4};
  input.rates = {.memory_bytes_per_s = 1e6, .drive_bytes_per_s = 1e5, .operations_per_s = 1e6};
  const MissCurve misses = MissCurve(std::vector<float>(200, 1.0f));
  const RamBudget half = {.kind = RamBudget::Kind::kExpertFraction, .fraction = 0.5};
  const auto estimate = EstimateServing(input, misses, half);
  ASSERT_TRUE(estimate.ok()) << estimate.status().message();
  EXPECT_EQ(estimate->slot_count, 100u);
  EXPECT_DOUBLE_EQ(estimate->hit_rate, 0.5);
  EXPECT_DOUBLE_EQ(estimate->read_bytes_per_token, 8192);
  EXPECT_DOUBLE_EQ(estimate->decode_tok_per_s, 1e5 / 8192);
  EXPECT_STREQ(estimate->decode_bound_by, "drive");
  // 4 tokens touch 100 (1 - 0.98^4) experts of a layer; half of them are absent.
  const double touched = 100 * (1 - 0.98 * 0.98 * 0.98 * 0.98);
  EXPECT_NEAR(estimate->prefill_tok_per_s, 4 / (2 * touched * 4096 * 0.5 / 1e5), 1e-9);
  EXPECT_STREQ(estimate->prefill_bound_by, "drive");

  const RamBudget all = {.kind = RamBudget::Kind::kExpertFraction, .fraction = 1};
  const auto resident = EstimateServing(input, misses, all);
  ASSERT_TRUE(resident.ok());
  EXPECT_DOUBLE_EQ(resident->decode_tok_per_s, 1e6 / (16384 + 192));
  EXPECT_STREQ(resident->decode_bound_by, "memory");
  EXPECT_STREQ(resident->prefill_bound_by, "arithmetic");
}

TEST(EstimateServing, DoesNotGuessARateThatIsNotKnown) {
  const SmallModel model;
  ServingPlanInput input = {.manifest = model.manifest, .config = model.config, .prefill_chunk = 4};
  input.rates = {.memory_bytes_per_s = 1e6, .operations_per_s = 1e6};
  const RamBudget half = {.kind = RamBudget::Kind::kExpertFraction, .fraction = 0.5};
  const auto estimate = EstimateServing(input, MissCurve::OfRecordedRouting(), half);
  ASSERT_TRUE(estimate.ok());
  EXPECT_EQ(estimate->decode_tok_per_s, 0);
  EXPECT_EQ(estimate->prefill_tok_per_s, 0);
  const RamBudget all = {.kind = RamBudget::Kind::kExpertFraction, .fraction = 1};
  EXPECT_GT(EstimateServing(input, MissCurve::OfRecordedRouting(), all)->decode_tok_per_s, 0);
}

TEST(EstimateOnGpu, IsTheSlowestOfItsParts) {
  const TokenDemand demand = {.dense_bytes = 1000, .expert_bytes = 4000, .operations = 1e4};
  VramPlan plan;
  plan.chunk = 100;
  plan.anchored_bytes = 30'000;
  plan.streamed_bytes = 90'000;
  const GpuRates rates = {.link_bytes_per_s = 1e5, .memory_bytes_per_s = 1e6, .operations_per_s = 1e7};
  // A chunk: 0.1 s of arithmetic, 0.9 s over the link; a token: 2 ms in VRAM, 30 ms over the link.
  const GpuEstimate linked = EstimateOnGpu(demand, plan, rates, 0, 1);
  EXPECT_DOUBLE_EQ(linked.prefill_tok_per_s, 100 / 0.9);
  EXPECT_STREQ(linked.prefill_bound_by, "link");
  EXPECT_DOUBLE_EQ(linked.decode_tok_per_s, 1 / 0.03);
  EXPECT_STREQ(linked.decode_bound_by, "link");
  // A third in DRAM, the others from a drive of a fifth of the link.
  EXPECT_EQ(EstimateOnGpu(demand, plan, rates, 0, 1.0 / 3).prefill_tok_per_s, 0) << "no rate";
  const GpuEstimate read = EstimateOnGpu(demand, plan, rates, 2e4, 1.0 / 3);
  EXPECT_DOUBLE_EQ(read.prefill_tok_per_s, 100 / 3.0);
  EXPECT_STREQ(read.prefill_bound_by, "drive");
  // All in VRAM.
  plan.anchored_bytes = 120'000;
  plan.streamed_bytes = 0;
  const GpuEstimate resident = EstimateOnGpu(demand, plan, rates, 0, 0);
  EXPECT_DOUBLE_EQ(resident.prefill_tok_per_s, 1000);
  EXPECT_STREQ(resident.prefill_bound_by, "arithmetic");
  EXPECT_DOUBLE_EQ(resident.decode_tok_per_s, 200);
  EXPECT_STREQ(resident.decode_bound_by, "VRAM");
}

// Every published model at its own dimensions, without a byte of weights.
TEST(EstimateServing, PlansEveryPublishedModel) {
  for (const PublishedModel& published : PublishedModels()) {
    SCOPED_TRACE(published.name);
    SyntheticModelOptions options;
    options.name = published.name;
    options.config = PublishedConfig(published, 0);
    const auto model = MakeSyntheticModel(options);
    ASSERT_TRUE(model.ok()) << model.status().message();
    const Manifest& manifest = model->plan->manifest();
    const auto config = ParseModelConfig(options.config, published.name);
    ASSERT_TRUE(config.ok()) << config.status().message();
    ServingPlanInput input = {.manifest = manifest, .config = *config, .prefill_chunk = 512};
    input.fixed = CountFixedMemory(manifest, *config, {.context = 4096, .step_tokens = 512});
    input.rates = {.memory_bytes_per_s = 50e9, .drive_bytes_per_s = 5e9, .operations_per_s = 1e12};
    double last = 0;
    for (const double share : {0.1, 0.25, 0.5, 1.0}) {
      const RamBudget budget = {.kind = RamBudget::Kind::kExpertFraction, .fraction = share};
      const auto estimate = EstimateServing(input, MissCurve::OfRecordedRouting(), budget);
      ASSERT_TRUE(estimate.ok()) << estimate.status().message();
      EXPECT_NEAR(estimate->resident_share, share, 0.01);
      EXPECT_GE(estimate->decode_tok_per_s, last);
      last = estimate->decode_tok_per_s;
    }
    EXPECT_GT(last, 0.1);
  }
}

}  // namespace
}  // namespace moraine
