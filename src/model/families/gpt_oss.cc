// gpt-oss-20b and 120b. Sources of the formulas: transformers, modeling_gpt_oss.py (Apache-2.0);
// github.com/openai/gpt-oss, gpt_oss/torch/model.py.
#include <fmt/format.h>

#include "model/families/family.h"

namespace moraine {
namespace {

// Whether each layer looks at a window only; by default every other one, the first among them.
std::vector<bool> ReadSlidingLayers(ConfigReader& fields, uint32_t layer_count) {
  std::vector<bool> sliding(layer_count);
  for (uint32_t i = 0; i < layer_count; i += 2) sliding[i] = true;
  const nlohmann::json* list = fields.Find({"layer_types"});
  if (list == nullptr) return sliding;
  if (!list->is_array() || list->size() != layer_count) {
    fields.Fail(fmt::format("field 'layer_types' is {}, expected a list of {}", ShowJson(*list),
                            layer_count));
    return sliding;
  }
  for (uint32_t i = 0; i < layer_count; ++i) {
    const nlohmann::json& item = (*list)[i];
    sliding[i] = item == "sliding_attention";
    if (sliding[i] || item == "full_attention") continue;
    fields.Fail(fmt::format("field 'layer_types' holds {}, expected \"sliding_attention\" or "
                            "\"full_attention\"", ShowJson(item)));
  }
  return sliding;
}

void Describe(ConfigReader& fields, ModelConfig* config) {
  GqaConfig attention = ReadGqa(fields, *config);
  attention.qkv_bias = attention.output_bias = fields.Flag("attention_bias", true);
  attention.sinks = true;
  const uint32_t window = fields.Count({"sliding_window"}, 1, kMaxPosition, 128);
  ReadExpertCounts(fields, {"num_local_experts", "num_experts"}, config);
  config->router.scoring = Scoring::kSoftmaxOfChosen;
  config->router.bias = true;
  config->expert_bias = true;
  config->activation = {.kind = ActivationKind::kClampedSwiGlu,
                        .limit = fields.Real({"swiglu_limit"}, 7.0f)};
  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t intermediate = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  RequireExperts(fields, "num_local_experts", *config);
  if (!fields.status().ok()) return;
  const std::vector<bool> sliding = ReadSlidingLayers(fields, layer_count);
  for (uint32_t i = 0; i < layer_count; ++i) {
    attention.sliding_window = sliding[i] ? window : 0;
    config->layers.push_back({FeedForwardKind::kMoe, intermediate, attention});
  }
}

constexpr std::string_view kTypes[] = {"gpt_oss"};
constexpr TensorName kNames[] = {{"mlp.router", "mlp.router.weight"},
                                 {"mlp.router_bias", "mlp.router.bias"}};
// y = W x as published, in MXFP4; y = x W in bf16.
constexpr ExpertForm kForms[] = {
    {.gate = "mlp.experts.gate_up_proj_blocks", .up = "", .down = "mlp.experts.down_proj_blocks",
     .stacked = true, .gate_up = GateUpOrder::kInterleaved,
     .gate_bias = "mlp.experts.gate_up_proj_bias", .down_bias = "mlp.experts.down_proj_bias"},
    {.gate = "mlp.experts.gate_up_proj", .up = "", .down = "mlp.experts.down_proj",
     .stacked = true, .gate_up = GateUpOrder::kInterleaved, .transposed = true,
     .gate_bias = "mlp.experts.gate_up_proj_bias", .down_bias = "mlp.experts.down_proj_bias"}};

}  // namespace

const Family kGptOss = {
    .model_types = kTypes, .describe = Describe, .names = kNames, .expert_forms = kForms};

}  // namespace moraine
