// Qwen3-MoE: Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder-30B. Source of the formulas: transformers,
// modeling_qwen3_moe.py (Apache-2.0).
#include "model/families/family.h"

namespace moraine {
namespace {

void Describe(ConfigReader& fields, ModelConfig* config) {
  GqaConfig attention = ReadGqa(fields, *config);
  attention.qk_norm = QkNorm::kPerHead;
  attention.qkv_bias = attention.output_bias = fields.Flag("attention_bias", false);
  fields.RequireFlag("use_sliding_window", false);
  ReadExpertCounts(fields, {"num_experts", "num_local_experts"}, config);
  config->router.normalize = fields.Flag("norm_topk_prob", false);

  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t dense = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  const uint32_t expert = fields.Count({"moe_intermediate_size"}, 1, kMaxDimension);
  if (!fields.status().ok()) return;
  const std::vector<bool> is_dense = ReadDenseLayers(fields, layer_count, config->expert_count);
  for (const bool without_experts : is_dense) {
    config->layers.push_back({without_experts ? FeedForwardKind::kDense : FeedForwardKind::kMoe,
                              without_experts ? dense : expert, attention});
  }
}

constexpr std::string_view kTypes[] = {"qwen3_moe"};

}  // namespace

const Family kQwen3Moe = {
    .model_types = kTypes, .describe = Describe, .names = {}, .expert_forms = kCommonExpertForms};

}  // namespace moraine
