#include "model/config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "model/families/family.h"

namespace moraine {
namespace {

using nlohmann::json;

// Models with another modality keep the language model's config in one of their own.
const json& LanguageConfig(const json& root) {
  const auto text = root.find("text_config");
  return text != root.end() && text->is_object() ? *text : root;
}

// What all families have.
void ReadCommon(ConfigReader& fields, ModelConfig* config) {
  config->hidden = fields.Count({"hidden_size"}, 1, kMaxDimension);
  config->vocab_size = fields.Count({"vocab_size"}, 1, kMaxVocabulary);
  config->rms_norm_epsilon = fields.Real({"rms_norm_eps"}, 1e-6f);
  config->max_position = fields.Count({"max_position_embeddings"}, 1,
                                      kMaxPosition, 2048);
  config->tied_embeddings = fields.Flag("tie_word_embeddings", false);
  config->eos_tokens = fields.TokenList("eos_token_id");
  fields.RequireText("hidden_act", "silu");
}

// What the choice of experts needs, whatever the family.
void CheckRouter(const ModelConfig& config, ConfigReader& fields) {
  const RouterConfig& router = config.router;
  if (router.group_count == 1) return;
  if (config.expert_count % router.group_count != 0) {
    fields.Fail(fmt::format("field 'n_group' is {}, expected a divisor of the {} experts",
                            router.group_count, config.expert_count));
    return;
  }
  const uint32_t size = config.expert_count / router.group_count;
  if (router.chosen_groups > router.group_count || router.chosen_groups * size < config.top_k) {
    fields.Fail(fmt::format("field 'topk_group' is {}, expected at most 'n_group' ({}), and groups "
                            "of {} experts that hold 'num_experts_per_tok' ({})",
                            router.chosen_groups, router.group_count, size, config.top_k));
  }
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
  ConfigReader fields(LanguageConfig(root), file, root);
  ModelConfig config;
  config.model_type = fields.Text("model_type", "");
  if (!fields.status().ok()) return fields.status();
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr) {
    return Unsupported(fmt::format("{}: field 'model_type' is '{}', supported: {}", file,
                                   config.model_type, SupportedModelTypes()));
  }
  ReadCommon(fields, &config);
  family->describe(fields, &config);
  CheckRouter(config, fields);
  if (!fields.status().ok()) return fields.status();
  return config;
}

}  // namespace moraine
