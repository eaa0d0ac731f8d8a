// OLMoE: OLMoE-1B-7B. Source of the formulas: transformers, modeling_olmoe.py (Apache-2.0). Queries
// and keys are normalised over all heads together.
#include "model/families/family.h"

namespace moraine {
namespace {

void Describe(ConfigReader& fields, ModelConfig* config) {
  GqaConfig attention = ReadGqa(fields, *config);
  attention.qk_norm = QkNorm::kWholeRow;
  attention.qkv_bias = attention.output_bias = fields.Flag("attention_bias", false);
  fields.RequireAbsent("clip_qkv");
  ReadExpertCounts(fields, {"num_experts", "num_local_experts"}, config);
  config->router.normalize = fields.Flag("norm_topk_prob", false);
  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t intermediate = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  RequireExperts(fields, "num_experts", *config);
  if (!fields.status().ok()) return;
  AddLayers(layer_count, 0, intermediate, intermediate, attention, config);
}

constexpr std::string_view kTypes[] = {"olmoe"};

}  // namespace

const Family kOlmoe = {
    .model_types = kTypes, .describe = Describe, .names = {}, .expert_forms = kCommonExpertForms};

}  // namespace moraine
