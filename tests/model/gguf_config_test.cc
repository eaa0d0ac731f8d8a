#include "model/gguf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

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

Result<std::string> Convert(const json& metadata, const std::set<std::string>& tensors) {
  return ConfigFromGguf(
      metadata.dump(), [&](const std::string& name) { return tensors.contains(name); }, "a.gguf");
}

Result<ModelConfig> Parse(const json& metadata, bool has_output = true) {
  std::set<std::string> tensors;
  if (has_output) tensors.insert("output.weight");
  ASSIGN_OR_RETURN(const std::string config, Convert(metadata, tensors));
  return ParseModelConfig(config, "config.json");
}

const GqaConfig& AttentionOf(const ModelConfig& config) {
  return std::get<GqaConfig>(config.layers[0].mixer);
}

TEST(GgufConfig, IsThePublishedConfig) {
  const Result<ModelConfig> config = Parse(Metadata());
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->model_type, "qwen3_moe");
  EXPECT_EQ(config->hidden, 2048u);
  EXPECT_EQ(config->vocab_size, 3u);
  EXPECT_EQ(AttentionOf(*config).query_heads, 32u);
  EXPECT_EQ(AttentionOf(*config).kv_heads, 4u);
  EXPECT_EQ(AttentionOf(*config).head_dim, 128u);
  EXPECT_EQ(AttentionOf(*config).rope.theta, 1e6f);
  EXPECT_EQ(config->rms_norm_epsilon, 1e-6f);
  EXPECT_EQ(config->max_position, 40960u);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->expert_count, 128u);
  EXPECT_EQ(config->top_k, 8u);
  EXPECT_TRUE(config->router.normalize);
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
  EXPECT_EQ(AttentionOf(*config).rope.theta, 10000.0f);
  EXPECT_EQ(AttentionOf(*config).head_dim, 64u);
  EXPECT_EQ(AttentionOf(*config).kv_heads, 32u);
}

// The keys of qwen3moe under another architecture's name, and some of its own.
json MetadataOf(const std::string& architecture, const json& more) {
  json metadata = {{"general.architecture", architecture},
                   {"tokenizer.ggml.tokens", {"a", "b", "c"}}};
  const std::string from = "qwen3moe.";
  const json qwen = Metadata();
  for (const auto& [key, value] : qwen.items()) {
    if (key.starts_with(from)) metadata[architecture + "." + key.substr(from.size())] = value;
  }
  for (const auto& [key, value] : more.items()) metadata[architecture + "." + key] = value;
  return metadata;
}

// What other architectures' keys become: fields of the published configs.
TEST(GgufConfig, OtherArchitectures) {
  const auto expect = [](const std::string& architecture, const json& keys,
                         const std::set<std::string>& tensors, const json& fields) {
    const auto converted = Convert(MetadataOf(architecture, keys), tensors);
    ASSERT_TRUE(converted.ok()) << converted.status().ToString();
    const json config = json::parse(*converted);
    for (const auto& [field, value] : fields.items()) {
      ASSERT_TRUE(config.contains(field)) << architecture << " " << field;
      EXPECT_EQ(config[field], value) << architecture << " " << field;
    }
  };
  expect("olmoe", {{"feed_forward_length", 1024}, {"expert_feed_forward_length", 1024}}, {},
         {{"model_type", "olmoe"}, {"num_experts", 128}, {"intermediate_size", 1024},
          {"norm_topk_prob", false}, {"tie_word_embeddings", true}});
  expect("glm4moe",
         {{"block_count", 47}, {"nextn_predict_layers", 1}, {"rope.dimension_count", 64},
          {"leading_dense_block_count", 1}, {"expert_shared_count", 1},
          {"expert_gating_func", 2}, {"expert_weights_scale", 2.5}, {"expert_weights_norm", true}},
         {"output.weight", "blk.0.attn_q.bias"},
         {{"model_type", "glm4_moe"}, {"num_hidden_layers", 46}, {"partial_rotary_factor", 0.5},
          {"first_k_dense_replace", 1}, {"n_shared_experts", 1}, {"n_routed_experts", 128},
          {"routed_scaling_factor", 2.5}, {"norm_topk_prob", true}, {"attention_bias", true},
          {"use_qk_norm", false}, {"intermediate_size", 6144}, {"moe_intermediate_size", 768}});
  expect("gpt-oss",
         {{"block_count", 3}, {"attention.sliding_window", 128}, {"rope.scaling.type", "yarn"},
          {"rope.scaling.factor", 32.0}, {"rope.scaling.original_context_length", 4096}},
         {"output.weight"},
         {{"model_type", "gpt_oss"}, {"sliding_window", 128}, {"num_local_experts", 128},
          {"intermediate_size", 768},
          {"layer_types", {"sliding_attention", "full_attention", "sliding_attention"}},
          {"rope_scaling",
           {{"rope_type", "yarn"}, {"factor", 32.0}, {"original_max_position_embeddings", 4096},
            {"beta_fast", 32.0}, {"beta_slow", 1.0}, {"truncate", false}}}});
  const json latent = {
      {"attention.q_lora_rank", 1536}, {"attention.kv_lora_rank", 512},
      {"attention.head_count_kv", 1}, {"attention.key_length", 576},
      {"attention.value_length", 512}, {"attention.key_length_mla", 192},
      {"attention.value_length_mla", 128}, {"rope.dimension_count", 64},
      {"rope.scaling.type", "yarn"}, {"rope.scaling.factor", 40.0},
      {"rope.scaling.original_context_length", 4096},
      {"rope.scaling.yarn_log_multiplier", 0.1}, {"leading_dense_block_count", 3},
      {"expert_shared_count", 1}, {"expert_weights_scale", 2.5}, {"expert_weights_norm", true},
      {"expert_gating_func", 2}, {"expert_group_count", 8}, {"expert_group_used_count", 4}};
  expect("deepseek2", latent, {"output.weight"},
         {{"model_type", "deepseek_v3"}, {"q_lora_rank", 1536}, {"kv_lora_rank", 512},
          {"qk_rope_head_dim", 64}, {"qk_nope_head_dim", 128}, {"v_head_dim", 128},
          {"num_key_value_heads", 32}, {"n_group", 8}, {"topk_group", 4},
          {"topk_method", "noaux_tc"}, {"first_k_dense_replace", 3},
          {"rope_scaling",
           {{"rope_type", "yarn"}, {"factor", 40.0}, {"original_max_position_embeddings", 4096},
            {"beta_fast", 32.0}, {"beta_slow", 1.0}, {"mscale", 1.0}, {"mscale_all_dim", 1.0}}}});
  expect("qwen3next",
         {{"rope.dimension_count", 32}, {"ssm.conv_kernel", 4}, {"ssm.state_size", 128},
          {"ssm.group_count", 16}, {"ssm.time_step_rank", 32}, {"ssm.inner_size", 4096},
          {"full_attention_interval", 4}, {"expert_shared_feed_forward_length", 512}},
         {"output.weight"},
         {{"model_type", "qwen3_next"}, {"partial_rotary_factor", 0.25},
          {"linear_num_key_heads", 16}, {"linear_num_value_heads", 32},
          {"linear_key_head_dim", 128}, {"linear_value_head_dim", 128},
          {"linear_conv_kernel_dim", 4}, {"shared_expert_intermediate_size", 512}});
  // Of a published Qwen3.5-35B-A3B file; the layer that predicts further tokens is none of the model's.
  json gated = {{"block_count", 41}, {"nextn_predict_layers", 1}, {"rope.dimension_count", 32},
                {"rope.dimension_sections", {11, 11, 10, 0}}, {"ssm.conv_kernel", 4},
                {"ssm.state_size", 128}, {"ssm.group_count", 16}, {"ssm.time_step_rank", 32},
                {"ssm.inner_size", 4096}, {"full_attention_interval", 4},
                {"expert_shared_feed_forward_length", 512}};
  expect("qwen35moe", gated, {"output.weight"},
         {{"model_type", "qwen3_5_moe_text"}, {"num_hidden_layers", 40},
          {"full_attention_interval", 4}, {"partial_rotary_factor", 0.25},
          {"linear_num_key_heads", 16}, {"linear_num_value_heads", 32},
          {"linear_value_head_dim", 128}, {"num_experts", 128}, {"moe_intermediate_size", 768},
          {"shared_expert_intermediate_size", 512}});
  gated["block_count"] = 4;
  gated["attention.recurrent_layers"] = {true, false, 1, 0};
  expect("qwen35moe", gated, {"output.weight"},
         {{"num_hidden_layers", 3},
          {"layer_types", {"linear_attention", "full_attention", "linear_attention"}}});
  gated["attention.recurrent_layers"] = {true, false};
  EXPECT_THAT(Convert(MetadataOf("qwen35moe", gated), {}).status().message(),
              HasSubstr("'qwen35moe.attention.recurrent_layers' is an array of 2, expected a list of"));
  // Before the split of keys and values, without a rank of the queries.
  expect("deepseek2",
         {{"attention.kv_lora_rank", 512}, {"attention.key_length", 192},
          {"attention.value_length", 128}, {"rope.dimension_count", 64}},
         {},
         {{"model_type", "deepseek_v2"}, {"qk_nope_head_dim", 128}, {"v_head_dim", 128},
          {"topk_method", "greedy"}, {"norm_topk_prob", false}});
  expect("minimax-m2", {{"rope.dimension_count", 64}, {"expert_gating_func", 2}}, {"output.weight"},
         {{"model_type", "minimax_m2"}, {"rotary_dim", 64}, {"head_dim", 128},
          {"num_local_experts", 128}, {"intermediate_size", 768}, {"tie_word_embeddings", false}});
}

TEST(GgufConfig, OlmoeParses) {
  const Result<ModelConfig> config = Parse(MetadataOf("olmoe", {{"feed_forward_length", 768}}));
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->layers[0].intermediate, 768u);
  EXPECT_EQ(AttentionOf(*config).qk_norm, QkNorm::kWholeRow);
  EXPECT_FALSE(config->router.normalize);
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
  expect("general.architecture", nullptr, kInvalid, "is missing, expected the name of an");
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
