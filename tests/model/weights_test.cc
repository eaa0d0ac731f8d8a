// DenseRoles and TensorNaming against real checkpoints: every tensor of a checkpoint is wanted
// exactly once, with the shape it has.
#include "model/weights.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

namespace moraine {
namespace {

using nlohmann::json;
using Shape = std::vector<uint64_t>;

std::string ReadFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << path;
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

// Name -> shape of all tensors of a safetensors file.
void AddTensors(const std::string& path, std::map<std::string, Shape>* tensors) {
  std::ifstream stream(path, std::ios::binary);
  ASSERT_TRUE(stream.good()) << path;
  uint64_t bytes = 0;
  stream.read(reinterpret_cast<char*>(&bytes), sizeof(bytes));
  std::string header(bytes, '\0');
  stream.read(header.data(), static_cast<std::streamsize>(bytes));
  const json parsed = json::parse(header);
  for (const auto& [name, entry] : parsed.items()) {
    if (name == "__metadata__") continue;
    EXPECT_TRUE(tensors->emplace(name, entry.at("shape").get<Shape>()).second) << name;
  }
}

struct Checkpoint {
  const char* directory;
  std::vector<const char*> files;
};

class CheckpointTest : public testing::TestWithParam<Checkpoint> {};

TEST_P(CheckpointTest, EveryTensorIsWantedOnceWithItsShape) {
  const std::string directory = std::string(MORAINE_SOURCE_DIR "/") + GetParam().directory + "/";
  const auto config = ParseModelConfig(ReadFile(directory + "config.json"), "config.json");
  ASSERT_TRUE(config.ok()) << config.status().message();
  std::map<std::string, Shape> tensors;
  for (const char* file : GetParam().files) AddTensors(directory + file, &tensors);
  ASSERT_GT(tensors.size(), 20u);

  const auto take = [&](const std::string& name, const Shape& shape) {
    const auto it = tensors.find(name);
    ASSERT_NE(it, tensors.end()) << name;
    EXPECT_EQ(it->second, shape) << name;
    tensors.erase(it);
  };
  const TensorNaming naming(*config,
                            [&](const std::string& name) { return tensors.contains(name); });
  std::set<std::string> names;
  std::set<std::string> shared;  // taken for another role already
  for (const DenseRole& role : DenseRoles(*config, naming)) {
    EXPECT_TRUE(names.insert(role.name).second) << role.name;
    if (role.part_rows != 0 && !shared.insert(role.source).second) continue;
    take(role.source, role.source_shape);
  }
  const std::vector<uint32_t> experts = config->experts_per_layer();
  std::set<std::string> stacked;  // taken for another expert already
  for (uint32_t layer = 0; layer < experts.size(); ++layer) {
    for (uint32_t e = 0; e < experts[layer]; ++e) {
      const ExpertSources expert = naming.SourcesOf(*config, {LayerId(layer), ExpertId(e)});
      for (const ExpertSource* source : {&expert.gate, &expert.up, &expert.down, &expert.gate_bias,
                                         &expert.up_bias, &expert.down_bias}) {
        if (source->tensor.empty()) continue;
        if (source->stacked && !stacked.insert(source->tensor).second) continue;
        take(source->tensor, source->shape);
      }
    }
  }
  for (const auto& [name, shape] : tensors) {
    if (!naming.Ignores(name)) ADD_FAILURE() << "not wanted: " << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Checkpoints, CheckpointTest,
    testing::Values(Checkpoint{"tests/golden/fixtures/qwen3_moe", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/qwen3_moe_mixed", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/glm4_moe", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/gpt_oss", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/minimax_m2", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/olmoe", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/deepseek_v2", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/deepseek_v2_lite", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/deepseek_v3", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/kimi_k2", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/qwen3_next", {"model.safetensors"}},
                    Checkpoint{"tests/golden/fixtures/qwen3_5_moe", {"model.safetensors"}},
                    Checkpoint{"models/demo", {"model-00001-of-00002.safetensors",
                                               "model-00002-of-00002.safetensors"}}));

ModelConfig BiasedConfig() {
  ModelConfig config;
  config.model_type = "qwen3_moe";
  config.hidden = 48;
  config.vocab_size = 70;
  config.expert_count = 6;
  config.top_k = 2;
  const GqaConfig attention{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .rope = {},
                            .qkv_bias = true, .output_bias = true};
  config.layers = {{FeedForwardKind::kMoe, 20, attention}};
  return config;
}

const DenseRole* Find(const std::vector<DenseRole>& roles, const std::string& name) {
  for (const DenseRole& role : roles) {
    if (role.name == name) return &role;
  }
  return nullptr;
}

// No checkpoint at hand has attention biases.
TEST(DenseRolesTest, AttentionBiasesAreVectors) {
  ModelConfig config = BiasedConfig();
  const std::vector<DenseRole> roles = DenseRoles(config);
  const std::pair<const char*, uint32_t> expected[] = {{"q", 64}, {"k", 32}, {"v", 32}, {"o", 48}};
  for (const auto& [letter, cols] : expected) {
    const DenseRole* role = Find(roles, std::string("layers.0.attention.") + letter + "_bias");
    ASSERT_NE(role, nullptr) << letter;
    EXPECT_EQ(role->source, std::string("model.layers.0.self_attn.") + letter + "_proj.bias");
    EXPECT_EQ(role->kind, DenseRole::Kind::kVector);
    EXPECT_EQ(role->rows, 1u);
    EXPECT_EQ(role->cols, cols);
  }
  auto& attention = std::get<GqaConfig>(config.layers[0].mixer);
  attention.qkv_bias = attention.output_bias = false;
  EXPECT_EQ(DenseRoles(config).size() + 4, roles.size());
}

TEST(DenseRolesTest, TheRouterIsExactAndTheRestIsNot) {
  for (const DenseRole& role : DenseRoles(BiasedConfig())) {
    const bool router = role.name == "layers.0.mlp.router";
    EXPECT_EQ(role.kind == DenseRole::Kind::kExactMatrix, router) << role.name;
  }
}

TEST(DenseRolesTest, TiedEmbeddingsHaveNoOutput) {
  ModelConfig config = BiasedConfig();
  EXPECT_NE(Find(DenseRoles(config), "output"), nullptr);
  config.tied_embeddings = true;
  EXPECT_EQ(Find(DenseRoles(config), "output"), nullptr);
}

TEST(TensorNamingTest, WhatTheForwardPassDoesNotNeedIsIgnored) {
  const TensorNaming naming(BiasedConfig());  // one layer
  EXPECT_TRUE(naming.Ignores("model.layers.0.self_attn.rotary_emb.inv_freq"));
  EXPECT_TRUE(naming.Ignores("model.layers.1.eh_proj.weight")) << "predicts further tokens";
  EXPECT_TRUE(naming.Ignores("mtp.fc.weight"));
  EXPECT_FALSE(naming.Ignores("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(naming.Ignores("model.layers.x.weight"));
  EXPECT_FALSE(naming.Ignores("model.visual.blocks.0.weight")) << "this model has no such part";
  EXPECT_FALSE(naming.Ignores(""));
}

TEST(TensorNamingTest, ALanguageModelInsideAnother) {
  const std::pair<const char*, const char*> cases[] = {
      {"model.language_model.", "lm_head.weight"},
      {"language_model.model.", "language_model.lm_head.weight"}};
  for (const auto& [root, head] : cases) {
    const std::string embedding = std::string(root) + "embed_tokens.weight";
    const TensorNaming naming(BiasedConfig(),
                              [&](const std::string& name) { return name == embedding; });
    EXPECT_EQ(naming.NameOf("embedding"), embedding);
    EXPECT_EQ(naming.NameOf("layers.0.attention.q"),
              std::string(root) + "layers.0.self_attn.q_proj.weight");
    EXPECT_EQ(naming.NameOf("output"), head);
    EXPECT_TRUE(naming.Ignores("model.visual.blocks.0.weight"));
  }
}

TEST(TensorNamingTest, StackedExpertsAreFoundByWhatTheCheckpointHas) {
  const ModelConfig config = BiasedConfig();
  const ExpertKey key{LayerId(0), ExpertId(3)};
  const ExpertSources apart = TensorNaming(config).SourcesOf(config, key);
  EXPECT_EQ(apart.up.tensor, "model.layers.0.mlp.experts.3.up_proj.weight");
  EXPECT_EQ(apart.up.shape, (std::vector<uint64_t>{20, 48}));
  const TensorNaming naming(config, [](const std::string& name) {
    return name == "model.layers.0.mlp.experts.gate_up_proj";
  });
  const ExpertSources stacked = naming.SourcesOf(config, key);
  EXPECT_EQ(stacked.gate.tensor, "model.layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(stacked.up.tensor, stacked.gate.tensor);
  EXPECT_EQ(stacked.gate.shape, (std::vector<uint64_t>{6, 40, 48}));
  EXPECT_EQ(stacked.gate.first_row, 0u);
  EXPECT_EQ(stacked.up.first_row, 20u);
  EXPECT_EQ(stacked.down.shape, (std::vector<uint64_t>{6, 48, 20}));
}

}  // namespace
}  // namespace moraine
