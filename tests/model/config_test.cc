// ParseModelConfig: both dialects, every refusal with file, field, found and expected, and no
// exception or crash whatever the file holds.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/random.h"

namespace moraine {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::string ReadSourceFile(const std::string& path) {
  std::ifstream stream(MORAINE_SOURCE_DIR "/" + path);
  EXPECT_TRUE(stream.good()) << path;
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

json DemoJson() { return json::parse(ReadSourceFile("models/demo/config.json")); }
json FixtureJson(const std::string& name = "qwen3_moe") {
  return json::parse(ReadSourceFile("tests/golden/fixtures/" + name + "/config.json"));
}

ModelConfig ParseValid(const json& value) {
  const auto config = ParseModelConfig(value.dump(), "config.json");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : ModelConfig();
}

const GqaConfig& Attention(const ModelConfig& config) {
  return std::get<GqaConfig>(config.layers[0].mixer);
}

// 'M' or 'D' by layer.
std::string LayerPattern(const ModelConfig& config) {
  std::string pattern;
  for (const LayerConfig& layer : config.layers) {
    pattern += layer.feed_forward == FeedForwardKind::kMoe ? 'M' : 'D';
  }
  return pattern;
}

TEST(ModelConfigTest, DemoModel) {
  const ModelConfig c = ParseValid(DemoJson());
  EXPECT_EQ(c.model_type, "qwen3_moe");
  EXPECT_EQ(c.hidden, 256u);
  EXPECT_EQ(c.vocab_size, 4096u);
  EXPECT_EQ(Attention(c).query_heads, 4u);
  EXPECT_EQ(Attention(c).kv_heads, 2u);
  EXPECT_EQ(Attention(c).head_dim, 64u);
  EXPECT_EQ(Attention(c).rope.theta, 10000.0f);
  EXPECT_EQ(c.rms_norm_epsilon, 1e-6f);
  EXPECT_EQ(c.max_position, 2048u);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_FALSE(Attention(c).qkv_bias);
  EXPECT_FALSE(Attention(c).output_bias);
  EXPECT_EQ(Attention(c).qk_norm, QkNorm::kPerHead);
  EXPECT_EQ(c.expert_count, 32u);
  EXPECT_EQ(c.top_k, 4u);
  EXPECT_TRUE(c.router.normalize);
  EXPECT_EQ(LayerPattern(c), "MMMMMMMM");
  EXPECT_EQ(c.layers[0].intermediate, 64u);
  EXPECT_THAT(c.eos_tokens, ElementsAre(4095));
  EXPECT_THAT(c.experts_per_layer(), ElementsAre(32, 32, 32, 32, 32, 32, 32, 32));
}

TEST(ModelConfigTest, FixtureInTheNewDialect) {
  const ModelConfig c = ParseValid(FixtureJson());
  EXPECT_EQ(c.hidden, 128u);
  EXPECT_EQ(c.vocab_size, 320u);
  EXPECT_EQ(Attention(c).query_heads, 4u);
  EXPECT_EQ(Attention(c).kv_heads, 2u);
  EXPECT_EQ(Attention(c).head_dim, 32u);
  EXPECT_EQ(Attention(c).rope.theta, 1e6f);
  EXPECT_EQ(c.max_position, 4096u);
  EXPECT_FALSE(c.tied_embeddings);
  EXPECT_EQ(c.expert_count, 8u);
  EXPECT_EQ(c.top_k, 2u);
  EXPECT_TRUE(c.router.normalize);
  EXPECT_EQ(LayerPattern(c), "MMMM");
  EXPECT_THAT(c.eos_tokens, ElementsAre(2));
}

TEST(ModelConfigTest, MixedFixture) {
  const ModelConfig c = ParseValid(
      json::parse(ReadSourceFile("tests/golden/fixtures/qwen3_moe_mixed/config.json")));
  EXPECT_EQ(Attention(c).kv_heads, 1u);
  EXPECT_EQ(Attention(c).head_dim, 64u);
  EXPECT_EQ(Attention(c).rope.theta, 1e4f);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_FALSE(c.router.normalize);
  // Sparse would be layers 1 and 3; 3 is listed as dense.
  EXPECT_EQ(LayerPattern(c), "DMDD");
  EXPECT_EQ(c.layers[0].intermediate, 256u);
  EXPECT_EQ(c.layers[1].intermediate, 64u);
  EXPECT_THAT(c.experts_per_layer(), ElementsAre(0, 8, 0, 0));
}

TEST(ModelConfigTest, Glm4Moe) {
  const ModelConfig c = ParseValid(FixtureJson("glm4_moe"));
  const GqaConfig& a = Attention(c);
  EXPECT_EQ(a.qk_norm, QkNorm::kPerHead);
  EXPECT_TRUE(a.qkv_bias);
  EXPECT_FALSE(a.output_bias);
  EXPECT_EQ(a.rope.rotary_dim, 16u);
  EXPECT_FALSE(a.rope.interleaved);
  EXPECT_EQ(LayerPattern(c), "DMMM");
  EXPECT_EQ(c.layers[0].intermediate, 256u);
  EXPECT_EQ(c.layers[1].intermediate, 64u);
  EXPECT_EQ(c.shared_expert.intermediate, 64u);
  EXPECT_FALSE(c.shared_expert.gated);
  EXPECT_EQ(c.router.scoring, Scoring::kSigmoid);
  EXPECT_TRUE(c.router.correction_bias);
  EXPECT_TRUE(c.router.normalize);
  EXPECT_EQ(c.router.scale, 2.5f);
  json odd = FixtureJson("glm4_moe");
  odd["head_dim"] = 22;
  EXPECT_EQ(Attention(ParseValid(odd)).rope.rotary_dim, 12u);
  EXPECT_EQ(Attention(ParseValid(odd)).rope.frequency_dim, 11u);
  odd["rope_parameters"]["partial_rotary_factor"] = 0.01;
  EXPECT_THAT(ParseModelConfig(odd.dump(), "f").status().message(),
              HasSubstr("'partial_rotary_factor' is 0.01"));
  json groups = FixtureJson("glm4_moe");
  groups["n_group"] = 4;
  groups["topk_group"] = 2;
  EXPECT_EQ(ParseValid(groups).router.chosen_groups, 2u);
  groups["n_group"] = 3;
  EXPECT_THAT(ParseModelConfig(groups.dump(), "f").status().message(),
              HasSubstr("field 'n_group' is 3, expected a divisor of the 8 experts"));
  groups["n_group"] = 8;
  groups["topk_group"] = 1;
  EXPECT_THAT(ParseModelConfig(groups.dump(), "f").status().message(),
              HasSubstr("field 'topk_group' is 1"));
}

TEST(ModelConfigTest, MiniMaxM2RotatesWhatItsDialectSays) {
  json value = FixtureJson("minimax_m2");
  const ModelConfig c = ParseValid(value);
  EXPECT_EQ(Attention(c).qk_norm, QkNorm::kWholeRow);
  EXPECT_EQ(c.router.scoring, Scoring::kSigmoid);
  EXPECT_TRUE(c.router.correction_bias);
  EXPECT_EQ(Attention(c).rope.rotary_dim, 32u) << "as transformers 5, which ignores rotary_dim";
  value["rope_parameters"]["partial_rotary_factor"] = 0.5;
  EXPECT_EQ(Attention(ParseValid(value)).rope.rotary_dim, 16u);
  value.erase("rope_parameters");
  value["rope_theta"] = 5000000;
  const GqaConfig published = Attention(ParseValid(value));
  EXPECT_EQ(published.rope.rotary_dim, 16u);
  EXPECT_EQ(published.rope.theta, 5e6f);
  value["rotary_dim"] = 15;
  EXPECT_THAT(ParseModelConfig(value.dump(), "f").status().message(),
              HasSubstr("field 'rotary_dim' is 15, expected an even number"));
  value["rotary_dim"] = 16;
  value["attn_type_list"] = {1, 0, 1, 1};
  EXPECT_EQ(ParseModelConfig(value.dump(), "f").status().code(), StatusCode::kUnsupported);
}

TEST(ModelConfigTest, GptOssInBothDialects) {
  json value = FixtureJson("gpt_oss");
  const ModelConfig c = ParseValid(value);
  const auto windows = [](const ModelConfig& config) {
    std::vector<uint32_t> result;
    for (const LayerConfig& layer : config.layers) {
      result.push_back(std::get<GqaConfig>(layer.mixer).sliding_window);
    }
    return result;
  };
  EXPECT_THAT(windows(c), ElementsAre(16, 0, 16, 0));
  EXPECT_TRUE(Attention(c).sinks);
  EXPECT_TRUE(Attention(c).output_bias);
  EXPECT_EQ(Attention(c).qk_norm, QkNorm::kNone);
  EXPECT_TRUE(c.expert_bias);
  EXPECT_TRUE(c.router.bias);
  EXPECT_EQ(c.router.scoring, Scoring::kSoftmaxOfChosen);
  EXPECT_EQ(c.activation, (ExpertActivation{ActivationKind::kClampedSwiGlu, 7.0f}));
  ASSERT_TRUE(Attention(c).rope.yarn);
  EXPECT_EQ(Attention(c).rope.yarn->factor, 32);
  EXPECT_FALSE(Attention(c).rope.yarn->truncate);
  EXPECT_FLOAT_EQ(Attention(c).rope.yarn->attention_factor, 0.1f * std::log(32.0f) + 1);

  json old_dialect = value;
  json rope = old_dialect["rope_parameters"];
  old_dialect.erase("rope_parameters");
  old_dialect["rope_theta"] = rope["rope_theta"];
  rope.erase("rope_theta");
  old_dialect["rope_scaling"] = rope;
  old_dialect.erase("layer_types");  // the default alternates in the same way
  old_dialect["num_experts"] = old_dialect["num_local_experts"];
  old_dialect.erase("num_local_experts");
  EXPECT_EQ(Attention(ParseValid(old_dialect)).rope, Attention(c).rope);
  EXPECT_EQ(windows(ParseValid(old_dialect)), windows(c));

  value["layer_types"] = {"full_attention", "full_attention", "sliding_attention", "x"};
  EXPECT_THAT(ParseModelConfig(value.dump(), "f").status().message(),
              HasSubstr("field 'layer_types' holds \"x\", expected \"sliding_attention\""));
  value["layer_types"] = {"full_attention"};
  EXPECT_THAT(ParseModelConfig(value.dump(), "f").status().message(),
              HasSubstr("field 'layer_types' is a list of 1, expected a list of 4"));
}

// A model of several modalities keeps the language model's config inside.
TEST(ModelConfigTest, ATextConfigInsideAnother) {
  json value = {{"model_type", "something_vl"}, {"vision_config", {{"hidden_size", 9}}},
                {"text_config", FixtureJson()}, {"tie_word_embeddings", true},
                {"hidden_size", 5}};
  value["text_config"].erase("tie_word_embeddings");
  const ModelConfig c = ParseValid(value);
  EXPECT_EQ(c.model_type, "qwen3_moe");
  EXPECT_EQ(c.hidden, 128u);
  EXPECT_TRUE(c.tied_embeddings) << "of the whole";
  EXPECT_THAT(c.eos_tokens, ElementsAre(2));
}

TEST(ModelConfigTest, BothDialectsMeanTheSame) {
  json old_dialect = FixtureJson(), new_dialect = FixtureJson();
  old_dialect.erase("rope_parameters");
  old_dialect.erase("num_local_experts");
  old_dialect.erase("dtype");
  old_dialect["rope_theta"] = 1000000.0;
  old_dialect["rope_scaling"] = nullptr;
  old_dialect["num_experts"] = 8;
  old_dialect["torch_dtype"] = "float16";
  const ModelConfig a = ParseValid(old_dialect), b = ParseValid(new_dialect);
  EXPECT_EQ(Attention(a).rope, Attention(b).rope);
  EXPECT_EQ(a.expert_count, b.expert_count);
  EXPECT_EQ(LayerPattern(a), LayerPattern(b));
  // An explicit 'default' is what both dialects may write, under either name of the type.
  for (const char* type : {"rope_type", "type"}) {
    old_dialect["rope_scaling"] = {{type, "default"}};
    EXPECT_EQ(Attention(ParseValid(old_dialect)).rope, Attention(b).rope);
  }
}

TEST(ModelConfigTest, SparseStepAndDenseLayers) {
  const auto pattern = [](uint32_t step, std::vector<uint32_t> dense) {
    json value = DemoJson();
    value["decoder_sparse_step"] = step;
    value["mlp_only_layers"] = dense;
    return LayerPattern(ParseValid(value));
  };
  EXPECT_EQ(pattern(1, {}), "MMMMMMMM");
  EXPECT_EQ(pattern(1, {0, 7}), "DMMMMMMD");
  EXPECT_EQ(pattern(2, {}), "DMDMDMDM");
  EXPECT_EQ(pattern(2, {1, 2}), "DDDMDMDM");
  EXPECT_EQ(pattern(3, {}), "DDMDDMDD");
  EXPECT_EQ(pattern(9, {}), "DDDDDDDD");
  json none = DemoJson();
  none["num_experts"] = 0;
  EXPECT_EQ(LayerPattern(ParseValid(none)), "DDDDDDDD");
}

TEST(ModelConfigTest, AbsentOptionalFieldsHaveTheirDefaults) {
  json value = DemoJson();
  for (const char* field :
       {"attention_bias", "decoder_sparse_step", "eos_token_id", "head_dim", "hidden_act",
        "max_position_embeddings", "mlp_only_layers", "norm_topk_prob", "num_key_value_heads",
        "rms_norm_eps", "rope_scaling", "rope_theta", "tie_word_embeddings",
        "use_sliding_window"}) {
    ASSERT_EQ(value.erase(field), 1u) << field;
  }
  const ModelConfig c = ParseValid(value);
  EXPECT_EQ(Attention(c).head_dim, 64u);  // hidden / heads
  EXPECT_EQ(Attention(c).kv_heads, 4u);
  EXPECT_EQ(Attention(c).rope.theta, 10000.0f);
  EXPECT_EQ(c.rms_norm_epsilon, 1e-6f);
  EXPECT_FALSE(c.tied_embeddings);
  EXPECT_FALSE(c.router.normalize);
  EXPECT_EQ(LayerPattern(c), "MMMMMMMM");
  EXPECT_TRUE(c.eos_tokens.empty());
  value["head_dim"] = nullptr;  // null is absent
  EXPECT_EQ(Attention(ParseValid(value)).head_dim, 64u);
}

TEST(ModelConfigTest, EosMayBeAList) {
  json value = DemoJson();
  value["eos_token_id"] = {7, 9};
  EXPECT_THAT(ParseValid(value).eos_tokens, ElementsAre(7, 9));
}

struct BadField {
  const char* field;
  json value;
  const char* found;
  const char* expected;
  StatusCode code = StatusCode::kInvalidArgument;
};

TEST(ModelConfigTest, ErrorsNameFileFieldFoundAndExpected) {
  const char* const kInteger = "expected an integer";
  const BadField cases[] = {
      {"hidden_size", -1, "-1", kInteger},
      {"hidden_size", 0, "0", "integer from 1 to"},
      {"hidden_size", 4294967552u, "4294967552", kInteger},  // 2^32 + 256
      {"hidden_size", 18446744073709551615ull, "18446744073709551615", kInteger},
      {"hidden_size", 256.0, "256.0", kInteger},
      {"hidden_size", "256", "\"256\"", kInteger},
      {"hidden_size", true, "true", kInteger},
      {"hidden_size", json::array({256}), "a list of 1", kInteger},
      {"hidden_size", {{"a", 1}}, "an object", kInteger},
      {"vocab_size", 1u << 30, "1073741824", kInteger},
      {"vocab_size", -5, "-5", kInteger},
      {"num_attention_heads", 0, "0", kInteger},
      {"num_attention_heads", 3, "3", "a multiple of 'num_key_value_heads' (2)"},
      {"num_key_value_heads", 8, "4", "a multiple of 'num_key_value_heads' (8)"},
      {"head_dim", 63, "63", "an even number"},
      {"head_dim", 1 << 20, "1048576", kInteger},
      {"num_hidden_layers", 1e9, "1000000000.0", kInteger},
      {"num_hidden_layers", 1000000000, "1000000000", kInteger},
      {"num_experts", -1, "-1", kInteger},
      {"num_experts", 3, "4", "at most 'num_experts' (3)"},
      {"num_experts_per_tok", 33, "33", "at most 'num_experts' (32)"},
      {"num_experts_per_tok", 0, "0", kInteger},
      {"moe_intermediate_size", 0, "0", kInteger},
      {"intermediate_size", "x", "\"x\"", kInteger},
      {"decoder_sparse_step", 0, "0", kInteger},
      {"max_position_embeddings", -1, "-1", kInteger},
      {"mlp_only_layers", 3, "3", "expected a list"},
      {"mlp_only_layers", {1, -1}, "-1", "layer numbers from 0 to 7"},
      {"mlp_only_layers", {8}, "8", "layer numbers from 0 to 7"},
      {"mlp_only_layers", {4294967296ull}, "4294967296", "layer numbers from 0 to 7"},
      {"mlp_only_layers", json::array({"0"}), "\"0\"", "layer numbers"},
      {"rms_norm_eps", 0, "0", "expected a positive number"},
      {"rms_norm_eps", -1e-6, "-1e-06", "expected a positive number"},
      {"rms_norm_eps", 1e-60, "1e-60", "fits float32"},
      {"rope_theta", 1e300, "1e+300", "fits float32"},
      {"rope_theta", "10000", "\"10000\"", "expected a positive number"},
      {"rope_theta", false, "false", "expected a positive number"},
      {"rope_scaling", 4, "4", "expected an object"},
      {"tie_word_embeddings", 1, "1", "expected true or false"},
      {"attention_bias", "no", "\"no\"", "expected true or false"},
      {"norm_topk_prob", json::array(), "a list of 0", "expected true or false"},
      {"eos_token_id", -1, "-1", "expected token ids"},
      {"eos_token_id", {5, "x"}, "\"x\"", "expected token ids"},
      {"eos_token_id", 1e9, "1000000000.0", "expected token ids"},
      {"model_type", 5, "5", "expected a string"},
      {"model_type", "llama", "llama", "'qwen3_moe'", StatusCode::kUnsupported},
      {"hidden_act", "gelu", "gelu", "supported: 'silu'", StatusCode::kUnsupported},
      {"use_sliding_window", true, "true", "supported: false", StatusCode::kUnsupported},
  };
  for (const BadField& bad : cases) {
    json value = DemoJson();
    value[bad.field] = bad.value;
    const auto config = ParseModelConfig(value.dump(), "some/config.json");
    ASSERT_FALSE(config.ok()) << bad.field << " = " << bad.value;
    const std::string& message = config.status().message();
    EXPECT_EQ(config.status().code(), bad.code) << message;
    EXPECT_THAT(message, StartsWith("some/config.json: "));
    if (message.find("num_key_value_heads' (8)") == std::string::npos &&
        message.find("'num_experts' (3)") == std::string::npos) {
      EXPECT_THAT(message, HasSubstr(std::string("'") + bad.field));
    }
    EXPECT_THAT(message, HasSubstr(bad.found)) << bad.field;
    EXPECT_THAT(message, HasSubstr(bad.expected)) << bad.field;
  }
}

TEST(ModelConfigTest, RopeErrorsNameTheInnerField) {
  const auto message = [](const char* outer, const json& rope, StatusCode code) {
    json value = DemoJson();
    value.erase("rope_scaling");
    value[outer] = rope;
    const auto config = ParseModelConfig(value.dump(), "config.json");
    EXPECT_EQ(config.status().code(), code) << rope;
    return config.status().message();
  };
  for (const char* outer : {"rope_parameters", "rope_scaling"}) {
    EXPECT_THAT(message(outer, {{"rope_type", "llama3"}, {"factor", 4}}, StatusCode::kUnsupported),
                HasSubstr(std::string("'") + outer + ".rope_type' is \"llama3\""));
    EXPECT_THAT(message(outer, {{"rope_type", "yarn"}}, StatusCode::kInvalidArgument),
                HasSubstr(std::string("'") + outer + "': field 'factor' is missing"));
    EXPECT_THAT(message(outer, {{"rope_type", 5}}, StatusCode::kInvalidArgument),
                HasSubstr("rope_type' is 5, expected a string"));
    EXPECT_THAT(message(outer, {{"rope_theta", -1}}, StatusCode::kInvalidArgument),
                HasSubstr(std::string("'") + outer + "': field 'rope_theta' is -1"));
  }
}

TEST(ModelConfigTest, MissingFieldsAreNamed) {
  for (const char* field :
       {"hidden_size", "vocab_size", "num_attention_heads", "num_hidden_layers", "num_experts",
        "num_experts_per_tok", "intermediate_size", "moe_intermediate_size"}) {
    for (const bool null : {false, true}) {
      json value = DemoJson();
      value.erase(field);
      if (null) value[field] = nullptr;
      const auto config = ParseModelConfig(value.dump(), "config.json");
      EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument) << field;
      EXPECT_EQ(config.status().message(),
                std::string("config.json: field '") + field + "' is missing, expected an integer");
    }
  }
  json value = DemoJson();
  value.erase("model_type");
  EXPECT_THAT(ParseModelConfig(value.dump(), "config.json").status().message(),
              HasSubstr("'model_type'"));
}

TEST(ModelConfigTest, WhatIsNoJsonObjectIsRefused) {
  for (const char* text : {"", "{", "[]", "3", "null", "{\"a\":}", "\xff\xfe", "{} {}"}) {
    const auto config = ParseModelConfig(text, "config.json");
    EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(config.status().message(), StartsWith("config.json: "));
  }
}

// A message that showed the value, or a copy of it, would recurse as deep as the file says.
TEST(ModelConfigTest, DeepNestingDoesNotOverflowTheStack) {
  constexpr size_t kDepth = 500000;
  const std::string deep = std::string(kDepth, '[') + std::string(kDepth, ']');
  for (const char* field : {"hidden_size", "eos_token_id", "mlp_only_layers", "rope_scaling",
                            "model_type", "rms_norm_eps", "attention_bias", "unknown"}) {
    std::string text = DemoJson().dump();
    const std::string quoted = std::string("\"") + field + "\":";
    text.insert(text.size() - 1, "," + quoted + deep);  // the last of two keys wins
    EXPECT_EQ(ParseModelConfig(text, "config.json").ok(), std::string(field) == "unknown") << field;
  }
}

TEST(ModelConfigTest, LongValuesAreShortenedInMessages) {
  json value = DemoJson();
  std::string long_text;
  for (int i = 0; i < 100000; ++i) long_text += "\xc3\xa9";
  value["hidden_size"] = long_text;
  const auto config = ParseModelConfig(value.dump(), "config.json");
  ASSERT_FALSE(config.ok());
  EXPECT_LT(config.status().message().size(), 300u);
  // Cut between characters: still valid UTF-8, or dump would throw.
  EXPECT_NO_THROW(json(config.status().message()).dump());
}

json RandomValue(Random& random, int depth) {
  switch (random.Below(depth > 0 ? 12 : 9)) {
    case 0: return nullptr;
    case 1: return random.Chance(0.5);
    case 2: return static_cast<int64_t>(random.Next());
    case 3: return random.Next();
    case 4: return static_cast<int64_t>(random.Below(10)) - 2;
    case 5: return std::ldexp(random.Normal(), static_cast<int>(random.Below(2000)) - 1000);
    case 6: return "\xc3\xa9\n\"";
    case 7: return "default";
    case 8: return random.Below(70000);
    case 9: return json::array({RandomValue(random, depth - 1), RandomValue(random, depth - 1)});
    case 10: return json::object({{"rope_theta", RandomValue(random, depth - 1)},
                                  {"rope_type", RandomValue(random, depth - 1)}});
    default: return json::array();
  }
}

// What a parsed config promises to the code behind it, which divides by and allocates these.
void CheckUsable(const ModelConfig& c) {
  ASSERT_GT(c.hidden, 0u);
  ASSERT_GT(c.vocab_size, 0u);
  ASSERT_GT(c.rms_norm_epsilon, 0.0f);
  ASSERT_FALSE(c.layers.empty());
  for (const LayerConfig& layer : c.layers) {
    ASSERT_GT(layer.intermediate, 0u);
    const GqaConfig& a = std::get<GqaConfig>(layer.mixer);
    ASSERT_GT(a.kv_heads, 0u);
    ASSERT_EQ(a.query_heads % a.kv_heads, 0u);
    ASSERT_GT(a.head_dim, 0u);
    ASSERT_GT(a.rope.rotary_dim, 0u);
    ASSERT_LE(a.rope.rotary_dim, a.head_dim);
    ASSERT_EQ(a.rope.rotary_dim % 2, 0u);
    ASSERT_GT(a.rope.theta, 0.0f);
    ASSERT_TRUE(std::isfinite(a.rope.theta));
    if (layer.feed_forward == FeedForwardKind::kMoe) {
      ASSERT_LE(c.top_k, c.expert_count);
    }
  }
}

TEST(ModelConfigTest, ArbitraryFieldsNeitherThrowNorGiveAnUnusableConfig) {
  constexpr uint64_t kSeed = 4711;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  const json bases[] = {DemoJson(), FixtureJson(), FixtureJson("glm4_moe"),
                        FixtureJson("gpt_oss"), FixtureJson("minimax_m2"), FixtureJson("olmoe")};
  int accepted = 0, refused = 0;
  for (int round = 0; round < 5000; ++round) {
    json value = bases[random.Below(std::size(bases))];
    std::vector<std::string> keys;
    for (const auto& [key, ignored] : value.items()) keys.push_back(key);
    const uint64_t changes = 1 + random.Below(3);
    for (uint64_t i = 0; i < changes; ++i) {
      const std::string& key = keys[random.Below(keys.size())];
      if (random.Chance(0.2)) {
        value.erase(key);
      } else {
        value[key] = RandomValue(random, 3);
      }
    }
    SCOPED_TRACE(value.dump());
    const auto config = ParseModelConfig(value.dump(), "config.json");
    if (config.ok()) {
      ++accepted;
      CheckUsable(*config);
    } else {
      ++refused;
      ASSERT_THAT(config.status().message(), StartsWith("config.json: field '"));
    }
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(accepted, 500);
  EXPECT_GT(refused, 500);
}

TEST(ModelConfigTest, ArbitraryBytesDoNotThrow) {
  constexpr uint64_t kSeed = 815;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  const std::string valid = DemoJson().dump();
  int refused = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string text = valid;
    const uint64_t changes = 1 + random.Below(4);
    for (uint64_t i = 0; i < changes; ++i) {
      text[random.Below(text.size())] = static_cast<char>(random.Below(256));
    }
    if (random.Chance(0.2)) text.resize(random.Below(text.size()));
    const auto config = ParseModelConfig(text, "config.json");
    if (config.ok()) {
      CheckUsable(*config);
    } else {
      ++refused;
    }
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace moraine
