#include "model/families/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

namespace moraine {

using nlohmann::json;

// Not dump() for lists and objects: it recurses, and how deep is up to the file.
std::string ShowJson(const json& value) {
  constexpr size_t kMaxShown = 60;
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  if (value.is_object()) return "an object";
  std::string text = value.dump();
  if (text.size() <= kMaxShown) return text;
  size_t end = kMaxShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

namespace {

bool BelongsToTheWhole(std::string_view name) {
  return name == "eos_token_id" || name == "tie_word_embeddings" || name == "model_type";
}

}  // namespace

const json* ConfigReader::Find(Names names) const {
  for (const char* name : names) {
    const auto it = object_.find(name);
    if (it != object_.end() && !it->is_null()) return &*it;
    if (!BelongsToTheWhole(name)) continue;
    const auto outside = outer_.find(name);
    if (outside != outer_.end() && !outside->is_null()) return &*outside;
  }
  return nullptr;
}

uint32_t ConfigReader::Count(Names names, uint32_t minimum, uint32_t maximum,
                             std::optional<uint32_t> fallback) {
  const json* value = Find(names);
  const char* name = *names.begin();
  if (value == nullptr) {
    if (!fallback) Fail(fmt::format("field '{}' is missing, expected an integer", name));
    return fallback.value_or(minimum);
  }
  if (!value->is_number_integer() || value->get<int64_t>() < minimum ||
      value->get<int64_t>() > maximum) {
    Fail(fmt::format("field '{}' is {}, expected an integer from {} to {}", name, ShowJson(*value),
                     minimum, maximum));
    return minimum;
  }
  return value->get<uint32_t>();
}

float ConfigReader::Real(Names names, float fallback) {
  const json* value = Find(names);
  if (value == nullptr) return fallback;
  // Compared as doubles: a double beyond float32's range has no float to compare.
  const double number = value->is_number() ? value->get<double>() : 0.0;
  if (!(number >= std::numeric_limits<float>::min() &&
        number <= std::numeric_limits<float>::max())) {
    Fail(fmt::format("field '{}' is {}, expected a positive number that fits float32",
                     *names.begin(), ShowJson(*value)));
    return fallback;
  }
  return static_cast<float>(number);
}

bool ConfigReader::Flag(const char* name, bool fallback) {
  const json* value = Find({name});
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    Fail(fmt::format("field '{}' is {}, expected true or false", name, ShowJson(*value)));
    return fallback;
  }
  return value->get<bool>();
}

std::string ConfigReader::Text(const char* name, const char* fallback) {
  const json* value = Find({name});
  if (value == nullptr) return fallback;
  if (!value->is_string()) {
    Fail(fmt::format("field '{}' is {}, expected a string", name, ShowJson(*value)));
    return fallback;
  }
  return value->get<std::string>();
}

std::vector<int32_t> ConfigReader::TokenList(const char* name) {
  std::vector<int32_t> tokens;
  const json* value = Find({name});
  if (value == nullptr) return tokens;
  const auto add = [&](const json& item) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > kMaxVocabulary) {
      Fail(fmt::format("field '{}' holds {}, expected token ids", name, ShowJson(item)));
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

void ConfigReader::RequireText(const char* name, const char* supported) {
  const std::string text = Text(name, supported);
  if (text == supported) return;
  RefuseUnsupported(fmt::format("field '{}' is '{}', supported: '{}'", name, text, supported));
}

void ConfigReader::RequireFlag(const char* name, bool supported) {
  const bool flag = Flag(name, supported);
  if (flag == supported) return;
  RefuseUnsupported(fmt::format("field '{}' is {}, supported: {}", name, flag, supported));
}

void ConfigReader::RequireAbsent(const char* name) {
  const json* value = Find({name});
  if (value == nullptr) return;
  RefuseUnsupported(fmt::format("field '{}' is {}, supported: null", name, ShowJson(*value)));
}

void ConfigReader::Fail(const std::string& what) {
  if (status_.ok()) status_ = InvalidArgument(file_ + ": " + what);
}

void ConfigReader::RefuseUnsupported(const std::string& what) {
  if (status_.ok()) status_ = Unsupported(file_ + ": " + what);
}

float YarnMscale(float factor, float mscale) {
  return factor <= 1 ? 1.0f : 0.1f * mscale * std::log(factor) + 1.0f;
}

namespace {

// Source: transformers, modeling_rope_utils.py, _compute_yarn_parameters.
YarnConfig ReadYarn(ConfigReader& rope, uint32_t max_position) {
  YarnConfig yarn;
  if (rope.Find({"factor"}) == nullptr) {
    rope.Fail("field 'factor' is missing, expected a positive number");
  }
  yarn.factor = rope.Real({"factor"}, 1);
  yarn.beta_fast = rope.Real({"beta_fast"}, 32);
  yarn.beta_slow = rope.Real({"beta_slow"}, 1);
  yarn.original_positions = rope.Count({"original_max_position_embeddings"}, 1, kMaxPosition,
                                       std::max(1u, max_position));
  yarn.truncate = rope.Flag("truncate", true);
  // A scale of 0 is as good as none.
  const auto scale = [&](const char* name) {
    const json* value = rope.Find({name});
    return value != nullptr && *value == 0 ? 0 : rope.Real({name}, 0);
  };
  const float mscale = scale("mscale");
  yarn.mscale_all_dim = scale("mscale_all_dim");
  const bool both = mscale > 0 && yarn.mscale_all_dim > 0;
  yarn.attention_factor = both ? YarnMscale(yarn.factor, mscale) /
                                     YarnMscale(yarn.factor, yarn.mscale_all_dim)
                               : YarnMscale(yarn.factor, 1);
  yarn.attention_factor = rope.Real({"attention_factor"}, yarn.attention_factor);
  return yarn;
}

}  // namespace

RopeConfig ReadRope(ConfigReader& fields, uint32_t rotated_dim, uint32_t max_position,
                    const RopeDefaults& defaults) {
  RopeConfig result;
  result.theta = fields.Real({"rope_theta"}, 10000.0f);
  float partial = fields.Real({"partial_rotary_factor"}, defaults.partial_rotary_factor);
  for (const char* name : {"rope_parameters", "rope_scaling"}) {
    const json* rope = fields.Find({name});
    if (rope == nullptr) continue;
    if (!rope->is_object()) {
      fields.Fail(fmt::format("field '{}' is {}, expected an object", name, ShowJson(*rope)));
      return result;
    }
    ConfigReader inner(*rope, "");
    result.theta = inner.Real({"rope_theta"}, result.theta);
    partial = inner.Real({"partial_rotary_factor"}, partial);
    const json* type = inner.Find({"rope_type", "type"});
    if (type != nullptr && !type->is_string()) {
      fields.Fail(
          fmt::format("field '{}.rope_type' is {}, expected a string", name, ShowJson(*type)));
    } else if (type != nullptr && *type == "yarn") {
      result.yarn = ReadYarn(inner, max_position);
    } else if (type != nullptr && *type != "default") {
      fields.RefuseUnsupported(
          fmt::format("field '{}.rope_type' is {}, supported: \"default\" and \"yarn\"", name,
                      ShowJson(*type)));
    }
    if (!inner.status().ok()) {
      fields.Fail(fmt::format("field '{}'{}", name, inner.status().message()));
    }
  }
  if (partial > 1) {
    fields.Fail(fmt::format("field 'partial_rotary_factor' is {}, expected at most 1", partial));
    partial = 1;
  }
  result.frequency_dim = static_cast<uint32_t>(static_cast<float>(rotated_dim) * partial);
  result.rotary_dim = result.frequency_dim + result.frequency_dim % 2;
  if (result.rotary_dim < 2 || result.rotary_dim > rotated_dim) {
    fields.Fail(partial == 1
                    ? fmt::format("field 'head_dim' is {}, expected an even number", rotated_dim)
                    : fmt::format("field 'partial_rotary_factor' is {}, expected at least one pair "
                                  "of a head's {} dimensions", partial, rotated_dim));
    result.rotary_dim = result.frequency_dim = 2;
  }
  return result;
}

GqaConfig ReadGqa(ConfigReader& fields, const ModelConfig& config,
                  const RopeDefaults& defaults) {
  GqaConfig gqa;
  gqa.query_heads = fields.Count({"num_attention_heads"}, 1, kMaxHeads);
  gqa.kv_heads = fields.Count({"num_key_value_heads"}, 1, kMaxHeads, gqa.query_heads);
  gqa.head_dim = fields.Count({"head_dim"}, 2, kMaxHeadDim,
                              std::clamp(config.hidden / gqa.query_heads, 2u, kMaxHeadDim));
  if (gqa.query_heads % gqa.kv_heads != 0) {
    fields.Fail(fmt::format("field 'num_attention_heads' is {}, expected a multiple of "
                            "'num_key_value_heads' ({})", gqa.query_heads, gqa.kv_heads));
  }
  gqa.rope = ReadRope(fields, gqa.head_dim, config.max_position, defaults);
  return gqa;
}

void ReadExpertCounts(ConfigReader& fields, ConfigReader::Names count_names, ModelConfig* config) {
  config->expert_count = fields.Count(count_names, 0, kMaxExperts);
  config->top_k = fields.Count({"num_experts_per_tok"}, 1, kMaxExperts);
  if (config->expert_count > 0 && config->top_k > config->expert_count) {
    fields.Fail(fmt::format("field 'num_experts_per_tok' is {}, expected at most '{}' ({})",
                            config->top_k, *count_names.begin(), config->expert_count));
  }
}

void RequireExperts(ConfigReader& fields, const char* count_name, const ModelConfig& config) {
  if (config.expert_count > 0) return;
  fields.Fail(fmt::format("field '{}' is 0, expected an integer from 1 to {}", count_name,
                          kMaxExperts));
}

void AddLayers(uint32_t layer_count, uint32_t dense_count, uint32_t dense_intermediate,
               uint32_t expert_intermediate, const MixerConfig& mixer, ModelConfig* config) {
  for (uint32_t i = 0; i < layer_count; ++i) {
    const bool moe = i >= dense_count && config->expert_count > 0;
    config->layers.push_back({moe ? FeedForwardKind::kMoe : FeedForwardKind::kDense,
                              moe ? expert_intermediate : dense_intermediate, mixer});
  }
}

uint32_t ReadLayerCount(ConfigReader& fields) {
  return fields.Count({"num_hidden_layers"}, 1, kMaxLayers);
}

std::vector<bool> ReadDenseLayers(ConfigReader& fields, uint32_t layer_count,
                                  uint32_t expert_count) {
  const uint32_t sparse_step = fields.Count({"decoder_sparse_step"}, 1, kMaxDimension, 1);
  std::vector<bool> listed(layer_count);
  for (uint32_t i = 0; i < layer_count; ++i) {
    listed[i] = expert_count == 0 || (i + 1) % sparse_step != 0;
  }
  const json* list = fields.Find({"mlp_only_layers"});
  if (list == nullptr) return listed;
  if (!list->is_array()) {
    fields.Fail(fmt::format("field 'mlp_only_layers' is {}, expected a list", ShowJson(*list)));
    return listed;
  }
  for (const json& item : *list) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() >= layer_count) {
      fields.Fail(fmt::format("field 'mlp_only_layers' holds {}, expected layer numbers from 0 to {}",
                              ShowJson(item), layer_count - 1));
      return listed;
    }
    listed[item.get<uint32_t>()] = true;
  }
  return listed;
}

}  // namespace moraine
