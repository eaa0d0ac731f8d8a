// Qwen3-MoE: Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder-30B. Source of the formulas: transformers,
// modeling_qwen3_moe.py (Apache-2.0).
#include <fmt/format.h>

#include "model/families/family.h"

namespace moraine {
namespace {

// Layers that mlp_only_layers lists are dense.
std::vector<bool> ReadDenseLayers(ConfigReader& fields, uint32_t layer_count) {
  std::vector<bool> listed(layer_count);
  const nlohmann::json* list = fields.Find({"mlp_only_layers"});
  if (list == nullptr) return listed;
  if (!list->is_array()) {
    fields.Fail(fmt::format("field 'mlp_only_layers' is {}, expected a list", ShowJson(*list)));
    return listed;
  }
  for (const nlohmann::json& item : *list) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() >= layer_count) {
      fields.Fail(fmt::format("field 'mlp_only_layers' holds {}, expected layer numbers from 0 to {}",
                              ShowJson(item), layer_count - 1));
      return listed;
    }
    listed[item.get<uint32_t>()] = true;
  }
  return listed;
}

void Describe(ConfigReader& fields, ModelConfig* config) {
  GqaConfig attention = ReadGqa(fields, *config);
  attention.qk_norm = QkNorm::kPerHead;
  attention.qkv_bias = attention.output_bias = fields.Flag("attention_bias", false);
  fields.RequireFlag("use_sliding_window", false);
  ReadExpertCounts(fields, {"num_experts", "num_local_experts"}, config);
  config->router.normalize = fields.Flag("norm_topk_prob", false);

  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t sparse_step = fields.Count({"decoder_sparse_step"}, 1, kMaxDimension, 1);
  const uint32_t dense = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  const uint32_t expert = fields.Count({"moe_intermediate_size"}, 1, kMaxDimension);
  if (!fields.status().ok()) return;
  const std::vector<bool> listed = ReadDenseLayers(fields, layer_count);
  // transformers, Qwen3MoeDecoderLayer: sparse iff not listed and (index + 1) % step == 0.
  for (uint32_t i = 0; i < layer_count; ++i) {
    const bool moe = !listed[i] && config->expert_count > 0 && (i + 1) % sparse_step == 0;
    config->layers.push_back({moe ? FeedForwardKind::kMoe : FeedForwardKind::kDense,
                              moe ? expert : dense, attention});
  }
}

constexpr std::string_view kTypes[] = {"qwen3_moe"};

}  // namespace

const Family kQwen3Moe = {
    .model_types = kTypes, .describe = Describe, .names = {}, .expert_forms = kCommonExpertForms};

}  // namespace moraine
