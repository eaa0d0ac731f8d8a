// MiniMax-M2. Sources of the formulas: transformers, modeling_minimax_m2.py (Apache-2.0), and
// modeling_minimax_m2.py beside the published weights.
#include <fmt/format.h>

#include "model/families/family.h"

namespace moraine {
namespace {

// 1 is attention; the other kind is of the models before.
void CheckAttentionTypes(ConfigReader& fields) {
  const nlohmann::json* list = fields.Find({"attn_type_list"});
  if (list == nullptr) return;
  if (!list->is_array()) {
    fields.Fail(fmt::format("field 'attn_type_list' is {}, expected a list", ShowJson(*list)));
    return;
  }
  for (const nlohmann::json& item : *list) {
    if (item == 1) continue;
    fields.RefuseUnsupported(
        fmt::format("field 'attn_type_list' holds {}, supported: 1", ShowJson(item)));
  }
}

// Published configs have rotary_dim. Those that transformers 5 wrote have rope_parameters, which say all
// that it computes with: it ignores rotary_dim (docs/families.md).
void ReadRotaryDim(ConfigReader& fields, GqaConfig* attention) {
  if (fields.Find({"rope_parameters"}) != nullptr) return;
  const uint32_t dim =
      fields.Count({"rotary_dim"}, 2, attention->head_dim, attention->rope.rotary_dim);
  if (dim % 2 != 0) {
    fields.Fail(fmt::format("field 'rotary_dim' is {}, expected an even number", dim));
  }
  attention->rope.rotary_dim = attention->rope.frequency_dim = dim;
}

void Describe(ConfigReader& fields, ModelConfig* config) {
  GqaConfig attention = ReadGqa(fields, *config);
  ReadRotaryDim(fields, &attention);
  if (fields.Flag("use_qk_norm", true)) attention.qk_norm = QkNorm::kWholeRow;
  fields.RequireText("qk_norm_type", "per_layer");
  CheckAttentionTypes(fields);
  ReadExpertCounts(fields, {"num_local_experts", "num_experts"}, config);
  fields.RequireText("scoring_func", "sigmoid");
  config->router.scoring = Scoring::kSigmoid;
  config->router.correction_bias = fields.Flag("use_routing_bias", true);
  config->router.normalize = true;
  if (fields.Count({"shared_intermediate_size"}, 0, kMaxDimension, 0) != 0) {
    fields.RefuseUnsupported("field 'shared_intermediate_size' is not 0, which is supported");
  }
  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t intermediate = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  RequireExperts(fields, "num_local_experts", *config);
  if (!fields.status().ok()) return;
  AddLayers(layer_count, 0, intermediate, intermediate, attention, config);
}

constexpr std::string_view kTypes[] = {"minimax_m2"};
constexpr TensorName kNames[] = {
    {"mlp.router", "block_sparse_moe.gate.weight"},
    {"mlp.correction_bias", "block_sparse_moe.e_score_correction_bias"}};
constexpr ExpertForm kForms[] = {
    {.gate = "block_sparse_moe.experts.{}.w1.weight", .up = "block_sparse_moe.experts.{}.w3.weight",
     .down = "block_sparse_moe.experts.{}.w2.weight"},
    {.gate = "block_sparse_moe.experts.gate_up_proj", .up = "",
     .down = "block_sparse_moe.experts.down_proj", .stacked = true,
     .gate_up = GateUpOrder::kHalves}};

}  // namespace

const Family kMiniMaxM2 = {
    .model_types = kTypes, .describe = Describe, .names = kNames, .expert_forms = kForms};

}  // namespace moraine
