#include "model/gguf_config.h"

#include <fmt/format.h>

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

// What this architecture of llama.cpp computes whatever the file says, and what only newer models
// of the same keys ask for. 1 as a gating function is softmax.
void RefuseOtherComputations(const std::string& a, uint32_t head_dim, MetadataReader* keys) {
  keys->Require(a + "rope.scaling.type", {"none"});
  keys->Require(a + "rope.scale_linear", {1.0});
  keys->Require(a + "rope.dimension_count", {head_dim});
  keys->Require(a + "attention.value_length", {head_dim});
  keys->Require(a + "attention.sliding_window", {0});
  keys->Require(a + "expert_shared_count", {0});
  keys->Require(a + "expert_weights_scale", {1.0, 0.0});
  keys->Require(a + "expert_weights_norm", {true});
  keys->Require(a + "expert_gating_func", {1});
}

}  // namespace

Result<std::string> ConfigFromGguf(std::string_view metadata_json, bool has_output_matrix,
                                   const std::string& file_name) {
  const json metadata = json::parse(metadata_json, nullptr, /*allow_exceptions=*/false);
  if (!metadata.is_object()) return InvalidArgument(file_name + ": metadata is not an object");
  MetadataReader keys(metadata, file_name);
  if (keys.Find("general.architecture") == nullptr) {
    keys.Fail("general.architecture", "\"qwen3moe\"");
  }
  keys.Require("general.architecture", {"qwen3moe"});
  RETURN_IF_ERROR(keys.status());

  const std::string a = "qwen3moe.", tokenizer = "tokenizer.ggml.";
  const uint32_t hidden = keys.Count(a + "embedding_length");
  const uint32_t heads = keys.Count(a + "attention.head_count");
  const uint32_t top_k = keys.Count(a + "expert_used_count");
  const uint32_t head_dim =
      keys.Count(a + "attention.key_length", heads == 0 ? 0 : hidden / heads);
  const json* tokens = keys.Find(tokenizer + "tokens");
  const uint32_t vocabulary = tokens != nullptr && tokens->is_array()
                                  ? static_cast<uint32_t>(tokens->size())
                                  : keys.Count(a + "vocab_size");
  // As llama.cpp: files of before the key have experts that share the dense width.
  const std::string expert_key = a + "expert_feed_forward_length";
  const std::string dense_key = a + "feed_forward_length";
  const bool has_expert_width = keys.Find(expert_key) != nullptr;
  const uint32_t dense_width = has_expert_width ? keys.Count(dense_key, keys.Count(expert_key))
                                                : keys.Count(dense_key);
  const uint32_t expert_width = has_expert_width ? keys.Count(expert_key)
                                                 : dense_width / std::max(1u, top_k);
  RefuseOtherComputations(a, head_dim, &keys);

  ordered_json config = {
      {"model_type", "qwen3_moe"},
      {"hidden_size", hidden},
      {"vocab_size", vocabulary},
      {"num_attention_heads", heads},
      {"num_key_value_heads", keys.Count(a + "attention.head_count_kv", heads)},
      {"head_dim", head_dim},
      {"num_hidden_layers", keys.Count(a + "block_count")},
      {"num_experts", keys.Count(a + "expert_count")},
      {"num_experts_per_tok", top_k},
      {"intermediate_size", dense_width},
      {"moe_intermediate_size", expert_width},
      {"norm_topk_prob", true},
      {"attention_bias", false},
      {"hidden_act", "silu"},
      {"rope_theta", keys.Real(a + "rope.freq_base", 10000.0)},
      {"rms_norm_eps", keys.Real(a + "attention.layer_norm_rms_epsilon")},
      {"max_position_embeddings", keys.Count(a + "context_length")},
      {"tie_word_embeddings", !has_output_matrix}};
  if (keys.Find(tokenizer + "eos_token_id") != nullptr) {
    config["eos_token_id"] = keys.Count(tokenizer + "eos_token_id");
  }
  RETURN_IF_ERROR(keys.status());
  return config.dump(2);
}

}  // namespace moraine
