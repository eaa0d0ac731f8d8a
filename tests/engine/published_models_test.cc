// Published models: their configs parse to what they are known for, and synthetic stores of their own
// architecture verify and decode the same whatever the budget. (At their full number of experts and
// vocabulary the stores are gigabytes: `moraine bench make-store --exact --layers 2`.)
#include "engine/published_models.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/runner.h"
#include "engine/synthetic_model.h"
#include "model/weights.h"
#include "store/importer.h"
#include "test_store.h"

namespace moraine {
namespace {

ModelConfig Parse(const std::string& config, const char* name) {
  const auto parsed = ParseModelConfig(config, name);
  CHECK(parsed.ok(), parsed.status().message());
  return *parsed;
}

// Weights in all, and those that one token multiplies.
std::pair<double, double> CountWeights(const ModelConfig& config) {
  double dense = 0, experts = 0, used = 0;
  double looked_up = 0;
  for (const DenseRole& role : DenseRoles(config)) {
    const double count = double{1} * role.rows * role.cols;
    dense += count;
    if (role.name == "embedding" && !config.tied_embeddings) looked_up = count;
  }
  for (const LayerConfig& layer : config.layers) {
    if (layer.feed_forward != FeedForwardKind::kMoe) continue;
    const double expert = 3.0 * config.hidden * layer.intermediate;
    experts += expert * config.expert_count;
    used += expert * config.top_k;
  }
  return {dense + experts, dense - looked_up + used};
}

struct Known {
  const char* name;
  double billions, active_billions;  // as the authors round them
};

TEST(PublishedModels, HaveTheWeightsTheyAreKnownFor) {
  const Known known[] = {{"qwen3-30b-a3b", 30.5, 3.3}, {"qwen3-coder-30b-a3b", 30.5, 3.3},
                         {"qwen3-235b", 235, 22},      {"glm-4.5", 355, 32},
                         {"qwen3-next", 80, 3},        {"qwen3-coder-next", 80, 3},
                         {"deepseek-v2-lite", 15.7, 2.4}, {"deepseek-v2", 236, 21},
                         {"deepseek-v3", 671, 37},     {"kimi-k2", 1026, 32},
                         {"qwen3.5-35b-a3b", 35, 3},
                         {"glm-4.5-air", 106, 12},     {"minimax-m2", 230, 10},
                         {"gpt-oss-20b", 20.9, 3.6},   {"gpt-oss-120b", 116.8, 5.1},
                         {"olmoe", 6.9, 1.3}};
  for (const Known& k : known) {
    const PublishedModel* model = FindPublishedModel(k.name);
    ASSERT_NE(model, nullptr) << k.name;
    const auto [all, active] = CountWeights(Parse(PublishedConfig(*model, 0), k.name));
    EXPECT_NEAR(all * 1e-9 / k.billions, 1, 0.02) << k.name;
    // Authors count embeddings and output or do not.
    EXPECT_NEAR(active * 1e-9 / k.active_billions, 1, 0.25) << k.name;
  }
}

TEST(PublishedModels, FewerLayersAndOverrides) {
  const PublishedModel& model = *FindPublishedModel("glm-4.5");
  const ModelConfig config = Parse(PublishedConfig(model, 2, R"({"vocab_size": 77})"), "");
  EXPECT_EQ(config.vocab_size, 77u);
  ASSERT_EQ(config.layers.size(), 2u);
  EXPECT_EQ(config.layers[0].feed_forward, FeedForwardKind::kDense);
  EXPECT_EQ(config.layers[1].feed_forward, FeedForwardKind::kMoe);
  EXPECT_EQ(FindPublishedModel("no such model"), nullptr);
}

class PublishedModelTest : public testing::TestWithParam<const char*> {
 protected:
  ~PublishedModelTest() override { std::filesystem::remove_all(scratch_); }

  // All logits of a short prompt and of some steps after it.
  std::vector<float> Decode(const std::string& budget) const {
    RunnerOptions options;
    options.store_directory = scratch_ + "/s";
    options.ram_budget = *ParseRamBudget(budget);
    options.max_context = 64;
    options.threads = 2;
    const auto runner = Runner::Open(options);
    CHECK(runner.ok(), runner.status().message());
    std::vector<float> all;
    const Runner::LogitsSink sink = [&](uint32_t, std::span<const float> logits) {
      all.insert(all.end(), logits.begin(), logits.end());
    };
    const int32_t prompt[] = {72, 105, 33, 10, 7}, next[] = {3};
    for (const auto& tokens : {std::span<const int32_t>(prompt), std::span<const int32_t>(next)}) {
      const Status status =
          (*runner)->Forward(tokens, {.logits = Runner::LogitsMode::kAll, .sink = &sink});
      CHECK(status.ok(), status.message());
    }
    return all;
  }

  const std::string scratch_ = MakeScratchDirectory("published");
};

// Two layers with every dimension of the model but the number of experts and of tokens.
TEST_P(PublishedModelTest, TwoLayersDecodeTheSameWhateverTheBudget) {
  const PublishedModel& model = *FindPublishedModel(GetParam());
  SyntheticModelOptions options;
  options.name = model.name;
  options.config = PublishedConfig(
      model, 2,
      R"({"vocab_size": 512, "num_experts": 16, "num_local_experts": 16, "n_routed_experts": 16,
          "first_k_dense_replace": 1, "full_attention_interval": 2, "n_group": 2,
          "topk_group": 1})");
  const auto synthetic = MakeSyntheticModel(options);
  ASSERT_TRUE(synthetic.ok()) << synthetic.status().message();
  ImportOptions import;
  import.store_directory = scratch_ + "/s";
  const Status status = Import(*synthetic->checkpoint, *synthetic->plan, import);
  ASSERT_TRUE(status.ok()) << status.message();
  const auto report = VerifyStore(import.store_directory, nullptr);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_TRUE(report->problems.empty()) << report->problems.front();
  const std::vector<float> resident = Decode("100%");
  ASSERT_EQ(resident.size(), 6u * 512);
  for (const float logit : resident) ASSERT_TRUE(std::isfinite(logit));
  EXPECT_NE(*std::ranges::min_element(resident), *std::ranges::max_element(resident));
  EXPECT_TRUE(Decode("75%") == resident) << "streaming changes a bit";
}

std::vector<const char*> Names() {
  std::vector<const char*> names;
  for (const PublishedModel& model : PublishedModels()) names.push_back(model.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Models, PublishedModelTest, testing::ValuesIn(Names()),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::ranges::replace_if(
                               name, [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace moraine
