#include "model/gguf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace moraine {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string Show(const json& value) {
  if (value.is_array()) return fmt::format("an array of {}", value.size());
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

// Keys of one architecture, remembering the first thing that was wrong.
class MetadataReader {
 public:
  MetadataReader(const json& metadata, const std::string& file)
      : metadata_(metadata), file_(file) {}

  const json* Find(const std::string& key) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? nullptr : &*found;
  }
  bool Has(const std::string& key) const { return Find(key) != nullptr; }
  // 32 bits: what is too much for the model is config.cc's to say.
  uint32_t Count(const std::string& key, std::optional<uint32_t> fallback = std::nullopt) {
    const json* value = Find(key);
    if (value == nullptr && fallback) return *fallback;
    if (value != nullptr && value->is_number_unsigned() && value->get<uint64_t>() <= UINT32_MAX) {
      return value->get<uint32_t>();
    }
    Fail(key, "an unsigned integer of 32 bits");
    return 0;
  }
  bool Flag(const std::string& key, bool fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (value->is_boolean()) return value->get<bool>();
    Fail(key, "true or false");
    return false;
  }
  double Real(const std::string& key, std::optional<double> fallback = std::nullopt) {
    const json* value = Find(key);
    if (value == nullptr && fallback) return *fallback;
    if (value != nullptr && value->is_number()) return value->get<double>();
    Fail(key, "a number");
    return 0;
  }
  // A key whose other values would change the computation.
  void Require(const std::string& key, const std::vector<json>& supported) {
    const json* value = Find(key);
    if (value == nullptr || !status_.ok()) return;
    std::string list;
    for (const json& one : supported) {
      if (*value == one) return;
      list += (list.empty() ? "" : " or ") + Show(one);
    }
    status_ = Unsupported(
        fmt::format("{}: metadata key '{}' is {}, supported: {}", file_, key, Show(*value), list));
  }
  void Fail(const std::string& key, const char* expected) {
    if (!status_.ok()) return;
    const json* value = Find(key);
    status_ = InvalidArgument(fmt::format("{}: metadata key '{}' is {}, expected {}", file_, key,
                                          value == nullptr ? "missing" : Show(*value), expected));
  }
  const Status& status() const { return status_; }

 private:
  const json& metadata_;
  const std::string& file_;
  Status status_;
};

// How llama.cpp numbers what makes scores of router logits.
constexpr int kSoftmax = 1, kSigmoid = 2, kSoftmaxOfChosen = 3;

// A config in the making: what every architecture has, and the keys that it is read from.
class Conversion {
 public:
  using HasTensor = std::function<bool(const std::string&)>;

  Conversion(const json& metadata, const HasTensor& has, const std::string& file,
             std::string_view architecture)
      : keys(metadata, file), has_tensor(has), prefix(std::string(architecture) + ".") {}

  // Keys of the architecture.
  std::string Key(const char* name) const { return prefix + name; }
  uint32_t Count(const char* name, std::optional<uint32_t> fallback = std::nullopt) {
    return keys.Count(Key(name), fallback);
  }
  double Real(const char* name, std::optional<double> fallback = std::nullopt) {
    return keys.Real(Key(name), fallback);
  }
  void Require(const char* name, const std::vector<json>& supported) {
    keys.Require(Key(name), supported);
  }

  void ReadCommon(const char* model_type) {
    const std::string tokenizer = "tokenizer.ggml.";
    hidden = Count("embedding_length");
    heads = Count("attention.head_count");
    top_k = Count("expert_used_count");
    const json* tokens = keys.Find(tokenizer + "tokens");
    // Layers that predict further tokens follow the model's and are counted with them.
    const uint32_t blocks = Count("block_count"), further = Count("nextn_predict_layers", 0);
    if (further > blocks) keys.Fail(Key("nextn_predict_layers"), "at most block_count");
    layers = blocks - std::min(blocks, further);
    config = {{"model_type", model_type},
              {"hidden_size", hidden},
              {"vocab_size", tokens != nullptr && tokens->is_array()
                                 ? static_cast<uint32_t>(tokens->size())
                                 : Count("vocab_size")},
              {"num_hidden_layers", layers},
              {"num_attention_heads", heads},
              {"num_experts_per_tok", top_k},
              {"hidden_act", "silu"},
              {"rope_theta", Real("rope.freq_base", 10000.0)},
              {"rms_norm_eps", Real("attention.layer_norm_rms_epsilon")},
              {"max_position_embeddings", Count("context_length")},
              {"tie_word_embeddings", !has_tensor("output.weight")}};
    if (keys.Has(tokenizer + "eos_token_id")) {
      config["eos_token_id"] = keys.Count(tokenizer + "eos_token_id");
    }
  }

  // Grouped-query attention over the whole context; rotary_dim: dimensions that are rotated.
  void ReadGqa(std::optional<uint32_t> rotary_dim = std::nullopt) {
    head_dim = Count("attention.key_length", heads == 0 ? 0 : hidden / heads);
    config["num_key_value_heads"] = Count("attention.head_count_kv", heads);
    config["head_dim"] = head_dim;
    Require("attention.value_length", {head_dim});
    Require("rope.dimension_count", {rotary_dim.value_or(head_dim)});
  }
  void RequirePlainRope() {
    Require("rope.scaling.type", {"none"});
    Require("rope.scale_linear", {1.0});
  }
  // YaRN with llama.cpp's fixed ramp; mscale: 0 if the key is missing.
  void ReadYarn(const json& further = json::object()) {
    Require("rope.scale_linear", {1.0});
    Require("rope.scaling.type", {"none", "yarn"});
    const json* type = keys.Find(Key("rope.scaling.type"));
    if (type == nullptr || *type != "yarn") return;
    json yarn = {{"rope_type", "yarn"},
                 {"factor", Real("rope.scaling.factor")},
                 {"original_max_position_embeddings", Count("rope.scaling.original_context_length")},
                 {"beta_fast", Real("rope.scaling.yarn_beta_fast", 32.0)},
                 {"beta_slow", Real("rope.scaling.yarn_beta_slow", 1.0)}};
    yarn.update(further);
    config["rope_scaling"] = yarn;
  }
  void RequireRouter(int gating, bool normalises) {
    Require("expert_gating_func", {gating, 0});
    Require("expert_weights_norm", {normalises});
  }
  // Files of before the key have experts that share the dense width.
  uint32_t ExpertWidth() {
    if (keys.Has(Key("expert_feed_forward_length"))) return Count("expert_feed_forward_length");
    return Count("feed_forward_length") / std::max(1u, top_k);
  }

  MetadataReader keys;
  const HasTensor& has_tensor;
  const std::string prefix;
  uint32_t hidden = 0, heads = 0, top_k = 0, layers = 0, head_dim = 0;
  ordered_json config;
};

void Qwen3Moe(Conversion& c) {
  c.ReadCommon("qwen3_moe");
  c.ReadGqa();
  c.RequirePlainRope();
  c.RequireRouter(kSoftmax, true);
  c.Require("attention.sliding_window", {0});
  c.Require("expert_shared_count", {0});
  c.Require("expert_weights_scale", {1.0, 0.0});
  const uint32_t width = c.ExpertWidth();
  c.config["num_experts"] = c.Count("expert_count");
  c.config["moe_intermediate_size"] = width;
  c.config["intermediate_size"] = c.Count("feed_forward_length", width);
  c.config["norm_topk_prob"] = true;
  c.config["attention_bias"] = false;
}

// Its experts' width is the config's intermediate_size.
void Olmoe(Conversion& c) {
  c.ReadCommon("olmoe");
  c.ReadGqa();
  c.RequirePlainRope();
  c.RequireRouter(kSoftmax, false);
  c.Require("attention.sliding_window", {0});
  c.Require("attention.clamp_kqv", {0.0});
  c.Require("expert_shared_count", {0});
  c.Require("expert_weights_scale", {1.0, 0.0});
  c.config["num_experts"] = c.Count("expert_count");
  c.config["intermediate_size"] =
      c.Count("expert_feed_forward_length", c.Count("feed_forward_length"));
  c.config["norm_topk_prob"] = false;
  c.config["attention_bias"] = false;
}

void Glm4Moe(Conversion& c) {
  c.ReadCommon("glm4_moe");
  const uint32_t rotary_dim = c.Count("rope.dimension_count");
  c.ReadGqa(rotary_dim);
  c.RequirePlainRope();
  c.Require("expert_gating_func", {kSigmoid, 0});
  c.Require("attention.sliding_window", {0});
  c.Require("expert_group_count", {1, 0});
  c.config["partial_rotary_factor"] =
      static_cast<double>(rotary_dim) / std::max(1u, c.head_dim);
  c.config["n_routed_experts"] = c.Count("expert_count");
  c.config["n_shared_experts"] = c.Count("expert_shared_count", 0);
  c.config["first_k_dense_replace"] = c.Count("leading_dense_block_count", 0);
  c.config["intermediate_size"] = c.Count("feed_forward_length");
  c.config["moe_intermediate_size"] = c.Count("expert_feed_forward_length");
  c.config["norm_topk_prob"] = c.keys.Flag(c.Key("expert_weights_norm"), true);
  c.config["routed_scaling_factor"] = c.Real("expert_weights_scale", 1.0);
  c.config["attention_bias"] =
      c.has_tensor("blk.0.attn_q.bias") || c.has_tensor("blk.0.attn_qkv.bias");
  c.config["use_qk_norm"] = c.has_tensor("blk.0.attn_q_norm.weight");
  c.config["n_group"] = c.config["topk_group"] = 1;
}

// Every second layer, from the first, sees a window; YaRN's ramp is not cut to whole dimensions.
void GptOss(Conversion& c) {
  c.ReadCommon("gpt_oss");
  c.ReadGqa();
  c.ReadYarn({{"truncate", false}});
  c.Require("expert_gating_func", {kSoftmaxOfChosen, 0});
  c.config["sliding_window"] = c.Count("attention.sliding_window");
  ordered_json types = ordered_json::array();
  for (uint32_t i = 0; i < c.layers; ++i) {
    types.push_back(i % 2 == 0 ? "sliding_attention" : "full_attention");
  }
  c.config["layer_types"] = types;
  c.config["num_local_experts"] = c.Count("expert_count");
  c.config["intermediate_size"] = c.Count("expert_feed_forward_length");
  c.config["attention_bias"] = true;
}

void MinimaxM2(Conversion& c) {
  c.ReadCommon("minimax_m2");
  const uint32_t rotary_dim = c.Count("rope.dimension_count");
  c.ReadGqa(rotary_dim);
  c.RequirePlainRope();
  c.RequireRouter(kSigmoid, true);
  c.Require("attention.sliding_window", {0});
  c.Require("expert_shared_count", {0});
  c.Require("expert_weights_scale", {1.0, 0.0});
  c.config["rotary_dim"] = rotary_dim;
  c.config["num_local_experts"] = c.Count("expert_count");
  c.config["intermediate_size"] = c.ExpertWidth();
  c.config["use_qk_norm"] = true;
  c.config["scoring_func"] = "sigmoid";
  c.config["use_routing_bias"] = true;
}

// DeepSeek-V2, V3, R1 and Kimi-K2, which differ in how experts are scored. Since keys and values of
// the latent are absorbed, the plain lengths are those of the latent, and heads' own have keys of
// their own.
void Deepseek2(Conversion& c) {
  c.Require("expert_gating_func", {kSoftmax, kSigmoid, 0});
  const json* gating = c.keys.Find(c.Key("expert_gating_func"));
  const bool v3 = gating != nullptr && *gating == kSigmoid;
  c.ReadCommon(v3 ? "deepseek_v3" : "deepseek_v2");
  c.Require("attention.temperature_scale", {0.0});  // of Mistral's models of this architecture
  const bool absorbed = c.keys.Has(c.Key("attention.key_length_mla"));
  const char* key_length = absorbed ? "attention.key_length_mla" : "attention.key_length";
  const uint32_t rope_dim = c.Count("rope.dimension_count"), key_dim = c.Count(key_length);
  if (key_dim <= rope_dim) c.keys.Fail(c.Key(key_length), "more than rope.dimension_count");
  c.config["num_key_value_heads"] = c.heads;
  if (c.keys.Has(c.Key("attention.q_lora_rank"))) {
    c.config["q_lora_rank"] = c.Count("attention.q_lora_rank");
  }
  c.config["kv_lora_rank"] = c.Count("attention.kv_lora_rank");
  c.config["qk_rope_head_dim"] = rope_dim;
  c.config["qk_nope_head_dim"] = key_dim - std::min(rope_dim, key_dim);
  c.config["v_head_dim"] =
      c.Count(absorbed ? "attention.value_length_mla" : "attention.value_length");
  // The converter writes a tenth of it.
  const double mscale = 10 * c.Real("rope.scaling.yarn_log_multiplier", 0.0);
  c.ReadYarn(mscale > 0 ? json{{"mscale", mscale}, {"mscale_all_dim", mscale}} : json::object());
  const uint32_t groups = std::max(1u, c.Count("expert_group_count", 1));
  c.config["n_group"] = groups;
  c.config["topk_group"] = std::max(1u, c.Count("expert_group_used_count", 1));
  c.config["topk_method"] =
      v3 ? "noaux_tc" : (groups > 1 ? "group_limited_greedy" : "greedy");
  c.config["scoring_func"] = v3 ? "sigmoid" : "softmax";
  c.config["norm_topk_prob"] = c.keys.Flag(c.Key("expert_weights_norm"), false);
  c.config["routed_scaling_factor"] = c.Real("expert_weights_scale", 1.0);
  c.config["n_routed_experts"] = c.Count("expert_count");
  c.config["n_shared_experts"] = c.Count("expert_shared_count", 0);
  c.config["first_k_dense_replace"] = c.Count("leading_dense_block_count", 0);
  c.config["intermediate_size"] = c.Count("feed_forward_length");
  c.config["moe_intermediate_size"] = c.Count("expert_feed_forward_length");
}

// Which layers are Gated DeltaNet: a flag for each (those for further tokens too), or all but every
// fourth.
void ReadRecurrentLayers(Conversion& c) {
  const std::string key = c.Key("attention.recurrent_layers");
  const json* flags = c.keys.Find(key);
  if (flags == nullptr) {
    c.config["full_attention_interval"] = c.Count("full_attention_interval", 4);
    return;
  }
  if (!flags->is_array() || flags->size() < c.layers) {
    c.keys.Fail(key, "a list of a flag for each layer");
    return;
  }
  ordered_json types = ordered_json::array();
  for (uint32_t i = 0; i < c.layers; ++i) {
    const bool recurrent = (*flags)[i] == true || (*flags)[i] == 1;
    types.push_back(recurrent ? "linear_attention" : "full_attention");
  }
  c.config["layer_types"] = types;
}

// Gated DeltaNet and, every fourth layer, attention. Experts' shared width has a key of its own.
void ReadQwen3Next(Conversion& c, const char* model_type) {
  c.ReadCommon(model_type);
  const uint32_t rotary_dim = c.Count("rope.dimension_count");
  c.ReadGqa(rotary_dim);
  c.RequirePlainRope();
  c.RequireRouter(kSoftmax, true);
  c.Require("expert_weights_scale", {1.0, 0.0});
  c.config["partial_rotary_factor"] =
      static_cast<double>(rotary_dim) / std::max(1u, c.head_dim);
  const uint32_t value_heads = c.Count("ssm.time_step_rank"), inner = c.Count("ssm.inner_size");
  if (value_heads == 0 || inner % value_heads != 0) {
    c.keys.Fail(c.Key("ssm.inner_size"), "a multiple of ssm.time_step_rank");
  }
  c.config["linear_num_key_heads"] = c.Count("ssm.group_count");
  c.config["linear_num_value_heads"] = value_heads;
  c.config["linear_key_head_dim"] = c.Count("ssm.state_size");
  c.config["linear_value_head_dim"] = inner / std::max(1u, value_heads);
  c.config["linear_conv_kernel_dim"] = c.Count("ssm.conv_kernel");
  ReadRecurrentLayers(c);
  c.config["num_experts"] = c.Count("expert_count");
  c.config["moe_intermediate_size"] = c.Count("expert_feed_forward_length");
  c.config["shared_expert_intermediate_size"] = c.Count("expert_shared_feed_forward_length");
  c.config["norm_topk_prob"] = true;
  c.config["attention_bias"] = false;
}
void Qwen3Next(Conversion& c) { ReadQwen3Next(c, "qwen3_next"); }
// The sections of interleaved multimodal RoPE say nothing about text.
void Qwen35Moe(Conversion& c) { ReadQwen3Next(c, "qwen3_5_moe_text"); }

struct Architecture {
  const char* name;  // general.architecture
  void (*read)(Conversion& conversion);
};
constexpr Architecture kArchitectures[] = {{"qwen3moe", Qwen3Moe},
                                           {"olmoe", Olmoe},
                                           {"glm4moe", Glm4Moe},
                                           {"gpt-oss", GptOss},
                                           {"minimax-m2", MinimaxM2},
                                           {"deepseek2", Deepseek2},
                                           {"qwen3next", Qwen3Next},
                                           {"qwen35moe", Qwen35Moe}};

}  // namespace

Result<std::string> ConfigFromGguf(std::string_view metadata_json,
                                   const std::function<bool(const std::string&)>& has_tensor,
                                   const std::string& file_name) {
  const json metadata = json::parse(metadata_json, nullptr, /*allow_exceptions=*/false);
  if (!metadata.is_object()) return InvalidArgument(file_name + ": metadata is not an object");
  std::vector<json> names;
  for (const Architecture& architecture : kArchitectures) names.push_back(architecture.name);
  MetadataReader general(metadata, file_name);
  if (!general.Has("general.architecture")) {
    general.Fail("general.architecture", "the name of an architecture");
  }
  general.Require("general.architecture", names);
  RETURN_IF_ERROR(general.status());
  for (const Architecture& architecture : kArchitectures) {
    if (metadata["general.architecture"] != architecture.name) continue;
    Conversion conversion(metadata, has_tensor, file_name, architecture.name);
    architecture.read(conversion);
    RETURN_IF_ERROR(conversion.keys.status());
    return conversion.config.dump(2);
  }
  return Internal("an architecture that is supported and not there");
}

}  // namespace moraine
