// Configs of DeepSeek, Kimi and Qwen3-Next: as published (transformers 4) and as transformers 5 writes
// them; what they mean as blocks; what is refused, by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "model/config.h"
#include "model/tensor_naming.h"

namespace moraine {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

json DeepSeekV3() {
  return {{"model_type", "deepseek_v3"}, {"hidden_size", 7168}, {"vocab_size", 129280},
          {"num_hidden_layers", 61}, {"num_attention_heads", 128}, {"num_key_value_heads", 128},
          {"q_lora_rank", 1536}, {"kv_lora_rank", 512}, {"qk_nope_head_dim", 128},
          {"qk_rope_head_dim", 64}, {"v_head_dim", 128}, {"intermediate_size", 18432},
          {"moe_intermediate_size", 2048}, {"n_routed_experts", 256}, {"num_experts_per_tok", 8},
          {"n_shared_experts", 1}, {"first_k_dense_replace", 3}, {"moe_layer_freq", 1},
          {"n_group", 8}, {"topk_group", 4}, {"topk_method", "noaux_tc"},
          {"scoring_func", "sigmoid"}, {"norm_topk_prob", true}, {"routed_scaling_factor", 2.5},
          {"num_nextn_predict_layers", 1}, {"rms_norm_eps", 1e-6},
          {"max_position_embeddings", 163840}, {"rope_theta", 10000},
          {"rope_scaling", {{"type", "yarn"}, {"factor", 40}, {"beta_fast", 32}, {"beta_slow", 1},
                            {"mscale", 1.0}, {"mscale_all_dim", 1.0},
                            {"original_max_position_embeddings", 4096}}}};
}

json DeepSeekV2Lite() {
  json config = DeepSeekV3();
  config.update({{"model_type", "deepseek_v2"}, {"q_lora_rank", nullptr},
                 {"scoring_func", "softmax"}, {"topk_method", "greedy"}, {"n_group", 1},
                 {"topk_group", 1}, {"norm_topk_prob", false}, {"routed_scaling_factor", 1.0},
                 {"n_routed_experts", 64}, {"num_experts_per_tok", 6}, {"n_shared_experts", 2},
                 {"moe_intermediate_size", 1408}});
  config["rope_scaling"]["mscale"] = config["rope_scaling"]["mscale_all_dim"] = 0.707;
  return config;
}

json Qwen3Next() {
  return {{"model_type", "qwen3_next"}, {"hidden_size", 2048}, {"vocab_size", 151936},
          {"num_hidden_layers", 48}, {"num_attention_heads", 16}, {"num_key_value_heads", 2},
          {"head_dim", 256}, {"full_attention_interval", 4}, {"linear_num_key_heads", 16},
          {"linear_num_value_heads", 32}, {"linear_key_head_dim", 128},
          {"linear_value_head_dim", 128}, {"linear_conv_kernel_dim", 4},
          {"intermediate_size", 5120}, {"moe_intermediate_size", 512},
          {"shared_expert_intermediate_size", 512}, {"num_experts", 512},
          {"num_experts_per_tok", 10}, {"norm_topk_prob", true}, {"decoder_sparse_step", 1},
          {"mlp_only_layers", json::array()}, {"partial_rotary_factor", 0.25},
          {"rope_theta", 10000000}, {"rope_scaling", nullptr}};
}

ModelConfig Parse(const json& config) {
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  CHECK(parsed.ok(), parsed.status().message());
  return *parsed;
}
std::string ErrorOf(json config, const char* field, json value) {
  config[field] = std::move(value);
  return ParseModelConfig(config.dump(), "config.json").status().message();
}

TEST(DeepSeekConfig, V3AsPublished) {
  const ModelConfig config = Parse(DeepSeekV3());
  ASSERT_EQ(config.layers.size(), 61u);
  EXPECT_EQ(config.layers[2].feed_forward, FeedForwardKind::kDense);
  EXPECT_EQ(config.layers[2].intermediate, 18432u);
  EXPECT_EQ(config.layers[3].feed_forward, FeedForwardKind::kMoe);
  EXPECT_EQ(config.shared_expert.intermediate, 2048u);
  EXPECT_FALSE(config.shared_expert.gated);
  EXPECT_EQ(config.router.scoring, Scoring::kSigmoid);
  EXPECT_TRUE(config.router.correction_bias);
  EXPECT_TRUE(config.router.normalize);
  EXPECT_EQ(config.router.group_count, 8u);
  EXPECT_EQ(config.router.chosen_groups, 4u);
  EXPECT_EQ(config.router.group_score, GroupScore::kTwoBest);
  EXPECT_EQ(config.router.scale, 2.5f);
  const MlaConfig& mla = std::get<MlaConfig>(config.layers[0].mixer);
  EXPECT_EQ(mla.heads, 128u);
  EXPECT_EQ(mla.q_rank, 1536u);
  EXPECT_EQ(mla.kv_rank, 512u);
  EXPECT_TRUE(mla.rope.interleaved);
  EXPECT_EQ(mla.rope.rotary_dim, 64u);
  EXPECT_EQ(mla.norm_epsilon, 1e-6f);
  // modeling_deepseek.py: q_head_dim^-0.5 x (0.1 x mscale_all_dim x ln(factor) + 1)^2; cos and sin by
  // the ratio of both mscales, 1.
  const double mscale = 0.1 * std::log(40.0) + 1;
  EXPECT_NEAR(mla.scale, mscale * mscale / std::sqrt(192.0), 1e-7);
  EXPECT_EQ(mla.rope.yarn->attention_factor, 1.0f);
}

TEST(DeepSeekConfig, V2LiteAsPublished) {
  const ModelConfig config = Parse(DeepSeekV2Lite());
  const MlaConfig& mla = std::get<MlaConfig>(config.layers[0].mixer);
  EXPECT_EQ(mla.q_rank, 0u);
  const double mscale = 0.1 * 0.707 * std::log(40.0) + 1;
  EXPECT_NEAR(mla.scale, mscale * mscale / std::sqrt(192.0), 1e-7);
  EXPECT_EQ(config.router.scoring, Scoring::kSoftmax);
  EXPECT_EQ(config.router.group_count, 1u);
  EXPECT_FALSE(config.router.correction_bias);
  EXPECT_EQ(config.shared_expert.intermediate, 2816u);
}

TEST(DeepSeekConfig, GroupsOfV2AreOnlyForTheGroupedMethod) {
  json config = DeepSeekV2Lite();
  config.update({{"n_group", 8}, {"topk_group", 3}});
  EXPECT_EQ(Parse(config).router.group_count, 1u);
  config["topk_method"] = "group_limited_greedy";
  EXPECT_EQ(Parse(config).router.group_count, 8u);
  EXPECT_EQ(Parse(config).router.chosen_groups, 3u);
  EXPECT_EQ(Parse(config).router.group_score, GroupScore::kBest);
}

TEST(DeepSeekConfig, BothDialectsMeanTheSame) {
  json other = DeepSeekV3();
  json rope = other["rope_scaling"];
  other.erase("rope_scaling");
  other.erase("rope_theta");
  rope.erase("type");
  rope.update({{"rope_type", "yarn"}, {"rope_theta", 10000.0}});
  other["rope_parameters"] = rope;
  other["rope_interleave"] = true;
  other.erase("topk_method");
  other.erase("scoring_func");
  const ModelConfig a = Parse(DeepSeekV3()), b = Parse(other);
  const MlaConfig &x = std::get<MlaConfig>(a.layers[0].mixer),
                  &y = std::get<MlaConfig>(b.layers[0].mixer);
  EXPECT_EQ(x.rope, y.rope);
  EXPECT_EQ(x.scale, y.scale);
  EXPECT_EQ(a.router.scoring, b.router.scoring);
}

TEST(DeepSeekConfig, TheLanguageModelOfKimiK25) {
  json text = DeepSeekV3();
  text.update({{"model_type", "kimi_k2"}, {"rms_norm_eps", 1e-5}});
  const ModelConfig config =
      Parse({{"model_type", "kimi_k25"}, {"text_config", text}, {"eos_token_id", 163586}});
  EXPECT_EQ(config.model_type, "kimi_k2");
  EXPECT_EQ(config.rms_norm_epsilon, 1e-5f);
  EXPECT_EQ(std::get<MlaConfig>(config.layers[0].mixer).norm_epsilon, 1e-6f);
  const std::set<std::string> names = {"language_model.model.embed_tokens.weight",
                                       "language_model.model.layers.3.mlp.experts.0.gate_proj.weight"};
  const TensorNaming naming(config, [&](const std::string& name) { return names.contains(name); });
  EXPECT_EQ(naming.NameOf("layers.0.attention.q_a"),
            "language_model.model.layers.0.self_attn.q_a_proj.weight");
  EXPECT_EQ(naming.NameOf("output"), "language_model.lm_head.weight");
  EXPECT_TRUE(naming.Ignores("vision_tower.encoder.blocks.0.norm0.weight"));
  EXPECT_TRUE(naming.Ignores("mm_projector.proj.0.weight"));
  EXPECT_FALSE(naming.Ignores("language_model.model.layers.0.self_attn.strange.weight"));
}

TEST(DeepSeekConfig, PredictorsOfFurtherTokensAreIgnored) {
  const TensorNaming naming(Parse(DeepSeekV3()));
  EXPECT_TRUE(naming.Ignores("model.layers.61.eh_proj.weight"));
  EXPECT_TRUE(naming.Ignores("model.layers.61.mlp.experts.0.gate_proj.weight"));
  EXPECT_FALSE(naming.Ignores("model.layers.60.mlp.experts.0.strange.weight"));
}

TEST(DeepSeekConfig, ErrorsNameFileFieldFoundAndExpected) {
  const auto error = [](const char* field, json value) {
    return ErrorOf(DeepSeekV3(), field, std::move(value));
  };
  EXPECT_THAT(error("kv_lora_rank", 0),
              AllOf(HasSubstr("config.json"), HasSubstr("field 'kv_lora_rank' is 0, expected an "
                                                        "integer from 1 to")));
  EXPECT_THAT(error("kv_lora_rank", 4090), HasSubstr("'qk_rope_head_dim' (64)"));
  EXPECT_THAT(error("num_key_value_heads", 8), HasSubstr("'num_key_value_heads'"));
  EXPECT_THAT(error("attention_bias", true), HasSubstr("field 'attention_bias' is true"));
  EXPECT_THAT(error("scoring_func", "softmax"), HasSubstr("field 'scoring_func' is 'softmax'"));
  EXPECT_THAT(error("topk_method", "greedy"), HasSubstr("field 'topk_method' is 'greedy'"));
  EXPECT_THAT(error("topk_group", 9), HasSubstr("field 'topk_group' is 9"));
  EXPECT_THAT(error("n_group", 7), HasSubstr("field 'n_group' is 7"));
  EXPECT_THAT(error("moe_layer_freq", 2), HasSubstr("field 'moe_layer_freq'"));
  EXPECT_THAT(error("qk_nope_head_dim", nullptr),
              HasSubstr("field 'qk_nope_head_dim' is missing"));
  EXPECT_THAT(error("qk_rope_head_dim", 63), HasSubstr("63"));
  EXPECT_THAT(ErrorOf(DeepSeekV2Lite(), "norm_topk_prob", true),
              HasSubstr("field 'norm_topk_prob' is true, supported: false"));
}

TEST(QwenNextConfig, AsPublished) {
  const ModelConfig config = Parse(Qwen3Next());
  ASSERT_EQ(config.layers.size(), 48u);
  for (uint32_t i = 0; i < 48; ++i) {
    EXPECT_EQ(std::holds_alternative<GqaConfig>(config.layers[i].mixer), i % 4 == 3) << i;
    EXPECT_EQ(config.layers[i].feed_forward, FeedForwardKind::kMoe);
  }
  const GqaConfig& gqa = std::get<GqaConfig>(config.layers[3].mixer);
  EXPECT_TRUE(gqa.output_gate);
  EXPECT_EQ(gqa.rope.rotary_dim, 64u);
  EXPECT_FALSE(gqa.rope.interleaved);
  const GatedDeltaConfig& delta = std::get<GatedDeltaConfig>(config.layers[0].mixer);
  EXPECT_EQ(delta.value_heads, 32u);
  EXPECT_EQ(delta.taps, 4u);
  EXPECT_TRUE(delta.by_key_head);
  EXPECT_TRUE(config.shared_expert.gated);
  EXPECT_EQ(config.shared_expert.intermediate, 512u);
  EXPECT_TRUE(config.router.normalize);
}

TEST(QwenNextConfig, LayerTypesComeBeforeTheInterval) {
  json config = Qwen3Next();
  config["num_hidden_layers"] = 2;
  config["layer_types"] = {"full_attention", "linear_attention"};
  EXPECT_TRUE(std::holds_alternative<GqaConfig>(Parse(config).layers[0].mixer));
  EXPECT_TRUE(std::holds_alternative<GatedDeltaConfig>(Parse(config).layers[1].mixer));
}

TEST(QwenNextConfig, TheLanguageModelOfQwen35) {
  json text = Qwen3Next();
  for (const char* field : {"partial_rotary_factor", "rope_theta", "rope_scaling", "norm_topk_prob",
                            "intermediate_size", "decoder_sparse_step", "mlp_only_layers"}) {
    text.erase(field);
  }
  text.update({{"model_type", "qwen3_5_moe_text"}, {"attn_output_gate", true},
               {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000000},
                                    {"mrope_interleaved", true}, {"mrope_section", {11, 11, 10}},
                                    {"partial_rotary_factor", 0.25}}}});
  const ModelConfig config = Parse({{"model_type", "qwen3_5_moe"}, {"text_config", text},
                                    {"tie_word_embeddings", false}});
  EXPECT_EQ(std::get<GqaConfig>(config.layers[3].mixer).rope.rotary_dim, 64u);
  EXPECT_EQ(std::get<GqaConfig>(config.layers[3].mixer).rope.theta, 1e7f);
  EXPECT_FALSE(std::get<GatedDeltaConfig>(config.layers[0].mixer).by_key_head);
  EXPECT_TRUE(config.router.normalize);
  const std::set<std::string> names = {"model.language_model.embed_tokens.weight",
                                       "model.language_model.layers.0.mlp.experts.gate_up_proj"};
  const TensorNaming naming(config, [&](const std::string& name) { return names.contains(name); });
  EXPECT_EQ(naming.NameOf("layers.0.attention.delta_z"),
            "model.language_model.layers.0.linear_attn.in_proj_z.weight");
  EXPECT_EQ(naming.NameOf("output"), "lm_head.weight");
  EXPECT_TRUE(naming.Ignores("model.visual.blocks.0.attn.qkv.weight"));
  EXPECT_TRUE(naming.Ignores("mtp.layers.0.mlp.experts.gate_up_proj"));
  EXPECT_EQ(naming.norm_offset(), 1.0f);
  EXPECT_TRUE(naming.SourcesOf(config, {LayerId(0), ExpertId(0)}).gate.stacked);
}

TEST(QwenNextConfig, ErrorsNameFileFieldFoundAndExpected) {
  const auto error = [](const char* field, json value) {
    return ErrorOf(Qwen3Next(), field, std::move(value));
  };
  EXPECT_THAT(error("layer_types", {"full_attention"}),
              AllOf(HasSubstr("config.json"),
                    HasSubstr("field 'layer_types' is a list of 1, expected a list of 48")));
  json types = json::array();
  for (int i = 0; i < 48; ++i) types.push_back("sliding_attention");
  EXPECT_THAT(error("layer_types", types), HasSubstr("\"sliding_attention\""));
  EXPECT_THAT(error("linear_num_value_heads", 24),
              HasSubstr("field 'linear_num_value_heads' is 24, expected a multiple of"));
  EXPECT_THAT(error("linear_conv_kernel_dim", 17), HasSubstr("field 'linear_conv_kernel_dim' is 17"));
  EXPECT_THAT(error("attn_output_gate", false), HasSubstr("field 'attn_output_gate' is false"));
  EXPECT_THAT(error("shared_expert_intermediate_size", nullptr),
              HasSubstr("field 'shared_expert_intermediate_size' is missing"));
  json many = Qwen3Next();
  many.update({{"linear_num_key_heads", 65536}, {"linear_num_value_heads", 65536}});
  EXPECT_THAT(ErrorOf(many, "linear_key_head_dim", 4096), HasSubstr("field 'linear_key_head_dim'"));
}

}  // namespace
}  // namespace moraine
