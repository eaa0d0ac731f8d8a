#include "model/gguf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/config.h"

namespace moraine {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// Of a published Qwen3-30B-A3B file, but for a vocabulary of three.
json Metadata() {
  return {{"general.architecture", "qwen3moe"},
          {"general.name", "Qwen3"},
          {"qwen3moe.block_count", 48},
          {"qwen3moe.context_length", 40960},
          {"qwen3moe.embedding_length", 2048},
          {"qwen3moe.feed_forward_length", 6144},
          {"qwen3moe.attention.head_count", 32},
          {"qwen3moe.attention.head_count_kv", 4},
          {"qwen3moe.attention.key_length", 128},
          {"qwen3moe.attention.value_length", 128},
          {"qwen3moe.attention.layer_norm_rms_epsilon", static_cast<double>(1e-6f)},
          {"qwen3moe.rope.freq_base", 1000000.0},
          {"qwen3moe.expert_count", 128},
          {"qwen3moe.expert_used_count", 8},
          {"qwen3moe.expert_feed_forward_length", 768},
          {"tokenizer.ggml.tokens", {"a", "b", "c"}},
          {"tokenizer.ggml.eos_token_id", 2}};
}

Result<ModelConfig> Parse(const json& metadata, bool has_output = true) {
  ASSIGN_OR_RETURN(const std::string config, ConfigFromGguf(metadata.dump(), has_output, "a.gguf"));
  return ParseModelConfig(config, "config.json");
}

TEST(GgufConfig, IsThePublishedConfig) {
  const Result<ModelConfig> config = Parse(Metadata());
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->model_type, "qwen3_moe");
  EXPECT_EQ(config->hidden, 2048u);
  EXPECT_EQ(config->vocab_size, 3u);
  EXPECT_EQ(config->query_heads, 32u);
  EXPECT_EQ(config->kv_heads, 4u);
  EXPECT_EQ(config->head_dim, 128u);
  EXPECT_EQ(config->rope_theta, 1e6f);
  EXPECT_EQ(config->rms_norm_epsilon, 1e-6f);
  EXPECT_EQ(config->max_position, 40960u);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->expert_count, 128u);
  EXPECT_EQ(config->top_k, 8u);
  EXPECT_TRUE(config->normalize_top_k);
  EXPECT_EQ(config->layers.size(), 48u);
  EXPECT_EQ(config->layers[0].intermediate, 768u);
  EXPECT_THAT(config->eos_tokens, ElementsAre(2));
  EXPECT_TRUE(Parse(Metadata(), /*has_output=*/false)->tied_embeddings);
}

TEST(GgufConfig, DefaultsAreLlamaCpps) {
  json metadata = Metadata();
  for (const char* key : {"expert_feed_forward_length", "rope.freq_base", "attention.key_length",
                          "attention.value_length", "attention.head_count_kv"}) {
    metadata.erase(std::string("qwen3moe.") + key);
  }
  const Result<ModelConfig> config = Parse(metadata);
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->layers[0].intermediate, 6144u / 8);
  EXPECT_EQ(config->rope_theta, 10000.0f);
  EXPECT_EQ(config->head_dim, 64u);
  EXPECT_EQ(config->kv_heads, 32u);
}

TEST(GgufConfig, ErrorsNameFileKeyFoundAndExpected) {
  const auto expect = [](const char* key, const json& value, StatusCode code,
                         const char* message) {
    json metadata = Metadata();
    if (value.is_null()) {
      metadata.erase(key);
    } else {
      metadata[key] = value;
    }
    const Status status = Parse(metadata).status();
    EXPECT_EQ(status.code(), code) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr(std::string("a.gguf: metadata key '") + key));
    EXPECT_THAT(status.message(), HasSubstr(message));
  };
  constexpr auto kUnsupported = StatusCode::kUnsupported;
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  expect("general.architecture", nullptr, kInvalid, "is missing, expected \"qwen3moe\"");
  expect("general.architecture", "llama", kUnsupported, "is \"llama\", supported: \"qwen3moe\"");
  expect("qwen3moe.block_count", nullptr, kInvalid, "is missing, expected an unsigned integer");
  expect("qwen3moe.attention.head_count", json::array({1, 2}), kInvalid, "is an array of 2");
  expect("qwen3moe.embedding_length", uint64_t{1} << 40, kInvalid, "is 1099511627776");
  expect("qwen3moe.rope.freq_base", "x", kInvalid, "is \"x\", expected a number");
  expect("qwen3moe.rope.scaling.type", "yarn", kUnsupported, "is \"yarn\", supported: \"none\"");
  expect("qwen3moe.rope.dimension_count", 64, kUnsupported, "is 64, supported: 128");
  expect("qwen3moe.attention.value_length", 64, kUnsupported, "is 64, supported: 128");
  expect("qwen3moe.attention.sliding_window", 4096, kUnsupported, "supported: 0");
  expect("qwen3moe.expert_shared_count", 1, kUnsupported, "supported: 0");
  expect("qwen3moe.expert_weights_scale", 2.5, kUnsupported, "is 2.5, supported: 1.0 or 0.0");
  expect("qwen3moe.expert_gating_func", 2, kUnsupported, "supported: 1");
}

}  // namespace
}  // namespace moraine
