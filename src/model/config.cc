#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

namespace moraine {
namespace {

using nlohmann::json;

// A value as error messages show it. Not dump() for lists and objects: it recurses, and how deep is
// up to the file.
std::string Show(const json& value) {
  constexpr size_t kMaxShown = 60;
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  if (value.is_object()) return "an object";
  std::string text = value.dump();
  if (text.size() <= kMaxShown) return text;
  size_t end = kMaxShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

// Reads fields of one JSON object, remembering the first thing that was wrong.
class FieldReader {
 public:
  FieldReader(const json& object, std::string file) : object_(object), file_(std::move(file)) {}

  // The first of `names` that is present and not null.
  const json* Find(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      const auto it = object_.find(name);
      if (it != object_.end() && !it->is_null()) return &*it;
    }
    return nullptr;
  }

  uint32_t Count(std::initializer_list<const char*> names, uint32_t minimum, uint32_t maximum,
                 std::optional<uint32_t> fallback = std::nullopt) {
    const json* value = Find(names);
    const char* name = *names.begin();
    if (value == nullptr) {
      if (!fallback) Fail(fmt::format("field '{}' is missing, expected an integer", name));
      return fallback.value_or(minimum);
    }
    if (!value->is_number_integer() || value->get<int64_t>() < minimum ||
        value->get<int64_t>() > maximum) {
      Fail(fmt::format("field '{}' is {}, expected an integer from {} to {}", name, Show(*value),
                       minimum, maximum));
      return minimum;
    }
    return value->get<uint32_t>();
  }

  float Real(std::initializer_list<const char*> names, float fallback) {
    const json* value = Find(names);
    if (value == nullptr) return fallback;
    // Compared as doubles: a double beyond float32's range has no float to compare.
    const double number = value->is_number() ? value->get<double>() : 0.0;
    if (!(number >= std::numeric_limits<float>::min() &&
          number <= std::numeric_limits<float>::max())) {
      Fail(fmt::format("field '{}' is {}, expected a positive number that fits float32",
                       *names.begin(), Show(*value)));
      return fallback;
    }
    return static_cast<float>(number);
  }

  bool Flag(const char* name, bool fallback) {
    const json* value = Find({name});
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) {
      Fail(fmt::format("field '{}' is {}, expected true or false", name, Show(*value)));
      return fallback;
    }
    return value->get<bool>();
  }

  std::string Text(const char* name, const char* fallback) {
    const json* value = Find({name});
    if (value == nullptr) return fallback;
    if (!value->is_string()) {
      Fail(fmt::format("field '{}' is {}, expected a string", name, Show(*value)));
      return fallback;
    }
    return value->get<std::string>();
  }

  void Fail(const std::string& what) {
    if (status_.ok()) status_ = InvalidArgument(file_ + ": " + what);
  }
  void RefuseUnsupported(const std::string& what) {
    if (status_.ok()) status_ = Unsupported(file_ + ": " + what);
  }
  const Status& status() const { return status_; }

 private:
  const json& object_;
  std::string file_;
  Status status_;
};

// Absurd sizes are refused here, before anything is multiplied or allocated.
constexpr uint32_t kMaxDimension = 1u << 20;
constexpr uint32_t kMaxVocabulary = 1u << 24;

void ReadRope(FieldReader& fields, ModelConfig* config) {
  config->rope_theta = fields.Real({"rope_theta"}, 10000.0f);
  for (const char* name : {"rope_parameters", "rope_scaling"}) {
    const json* rope = fields.Find({name});
    if (rope == nullptr) continue;
    if (!rope->is_object()) {
      fields.Fail(fmt::format("field '{}' is {}, expected an object", name, Show(*rope)));
      return;
    }
    FieldReader inner(*rope, "");
    config->rope_theta = inner.Real({"rope_theta"}, config->rope_theta);
    const json* type = inner.Find({"rope_type", "type"});
    if (type != nullptr && !type->is_string()) {
      fields.Fail(fmt::format("field '{}.rope_type' is {}, expected a string", name, Show(*type)));
    } else if (type != nullptr && *type != "default") {
      fields.RefuseUnsupported(
          fmt::format("field '{}.rope_type' is {}, supported: \"default\"", name, Show(*type)));
    }
    if (!inner.status().ok()) {
      fields.Fail(fmt::format("field '{}'{}", name, inner.status().message()));
    }
  }
}

void ReadLayers(FieldReader& fields, uint32_t layer_count, ModelConfig* config) {
  const uint32_t sparse_step = fields.Count({"decoder_sparse_step"}, 1, kMaxDimension, 1);
  const uint32_t dense = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  const uint32_t expert = fields.Count({"moe_intermediate_size"}, 1, kMaxDimension);
  std::vector<bool> listed(layer_count);
  if (const json* list = fields.Find({"mlp_only_layers"})) {
    if (!list->is_array()) {
      fields.Fail(fmt::format("field 'mlp_only_layers' is {}, expected a list", Show(*list)));
      return;
    }
    for (const json& item : *list) {
      if (!item.is_number_unsigned() || item.get<uint64_t>() >= layer_count) {
        fields.Fail(fmt::format("field 'mlp_only_layers' holds {}, expected layer numbers from 0 to {}",
                                Show(item), layer_count - 1));
        return;
      }
      listed[item.get<uint32_t>()] = true;
    }
  }
  // transformers, Qwen3MoeDecoderLayer: sparse iff not listed and (index + 1) % step == 0.
  for (uint32_t i = 0; i < layer_count; ++i) {
    const bool moe = !listed[i] && config->expert_count > 0 && (i + 1) % sparse_step == 0;
    config->layers.push_back({moe ? FeedForwardKind::kMoe : FeedForwardKind::kDense,
                              moe ? expert : dense});
  }
}

std::vector<int32_t> ReadTokenList(FieldReader& fields, const char* name) {
  std::vector<int32_t> tokens;
  const json* value = fields.Find({name});
  if (value == nullptr) return tokens;
  const auto add = [&](const json& item) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > kMaxVocabulary) {
      fields.Fail(fmt::format("field '{}' holds {}, expected token ids", name, Show(item)));
      return;
    }
    tokens.push_back(item.get<int32_t>());
  };
  if (value->is_array()) {
    for (const json& item : *value) add(item);
  } else {
    add(*value);
  }
  return tokens;
}

}  // namespace

std::vector<uint32_t> ModelConfig::experts_per_layer() const {
  std::vector<uint32_t> counts;
  for (const LayerConfig& layer : layers) {
    counts.push_back(layer.feed_forward == FeedForwardKind::kMoe ? expert_count : 0);
  }
  return counts;
}

Result<ModelConfig> ParseModelConfig(std::string_view text, const std::string& file) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return InvalidArgument(file + ": not a JSON object");
  FieldReader fields(root, file);
  ModelConfig config;
  config.model_type = fields.Text("model_type", "");
  if (!fields.status().ok()) return fields.status();
  if (config.model_type != "qwen3_moe") {
    return Unsupported(fmt::format("{}: field 'model_type' is '{}', supported: 'qwen3_moe'", file,
                                   config.model_type));
  }
  config.hidden = fields.Count({"hidden_size"}, 1, kMaxDimension);
  config.vocab_size = fields.Count({"vocab_size"}, 1, kMaxVocabulary);
  config.query_heads = fields.Count({"num_attention_heads"}, 1, 65536);
  config.kv_heads = fields.Count({"num_key_value_heads"}, 1, 65536, config.query_heads);
  config.head_dim = fields.Count({"head_dim"}, 2, 4096,
                                 std::max(2u, config.hidden / std::max(1u, config.query_heads)));
  config.rms_norm_epsilon = fields.Real({"rms_norm_eps"}, 1e-6f);
  config.max_position = fields.Count({"max_position_embeddings"}, 1,
                                     std::numeric_limits<int32_t>::max(), 2048);
  config.tied_embeddings = fields.Flag("tie_word_embeddings", false);
  config.attention_bias = fields.Flag("attention_bias", false);
  // transformers 4 writes num_experts, 5 num_local_experts.
  config.expert_count = fields.Count({"num_experts", "num_local_experts"}, 0, 65536);
  config.top_k = fields.Count({"num_experts_per_tok"}, 1, 65536);
  config.normalize_top_k = fields.Flag("norm_topk_prob", false);
  config.eos_tokens = ReadTokenList(fields, "eos_token_id");
  const uint32_t layer_count = fields.Count({"num_hidden_layers"}, 1, 65536);
  ReadRope(fields, &config);
  if (fields.status().ok()) ReadLayers(fields, layer_count, &config);

  if (const std::string act = fields.Text("hidden_act", "silu"); act != "silu") {
    fields.RefuseUnsupported(fmt::format("field 'hidden_act' is '{}', supported: 'silu'", act));
  }
  if (fields.Flag("use_sliding_window", false)) {
    fields.RefuseUnsupported("field 'use_sliding_window' is true, supported: false");
  }
  if (config.query_heads % std::max(1u, config.kv_heads) != 0) {
    fields.Fail(fmt::format("field 'num_attention_heads' is {}, expected a multiple of "
                            "'num_key_value_heads' ({})", config.query_heads, config.kv_heads));
  }
  if (config.head_dim % 2 != 0) {
    fields.Fail(fmt::format("field 'head_dim' is {}, expected an even number", config.head_dim));
  }
  if (config.expert_count > 0 && config.top_k > config.expert_count) {
    fields.Fail(fmt::format("field 'num_experts_per_tok' is {}, expected at most 'num_experts' ({})",
                            config.top_k, config.expert_count));
  }
  if (!fields.status().ok()) return fields.status();
  return config;
}

}  // namespace moraine
