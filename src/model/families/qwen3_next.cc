// Qwen3-Next (80B-A3B, Qwen3-Coder-Next) and the language models of Qwen3.5-MoE: three layers of Gated
// DeltaNet, then one of gated attention, in turns; a gated shared expert. Sources of the formulas:
// transformers' modeling_qwen3_next.py and modeling_qwen3_5_moe.py (Apache-2.0).
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "model/families/family.h"

namespace moraine {
namespace {

constexpr uint32_t kMaxTaps = 16;

GatedDeltaConfig ReadDelta(ConfigReader& fields) {
  GatedDeltaConfig delta;
  delta.key_heads = fields.Count({"linear_num_key_heads"}, 1, kMaxHeads);
  delta.value_heads = fields.Count({"linear_num_value_heads"}, 1, kMaxHeads);
  delta.key_dim = fields.Count({"linear_key_head_dim"}, 1, kMaxHeadDim);
  delta.value_dim = fields.Count({"linear_value_head_dim"}, 1, kMaxHeadDim);
  delta.taps = fields.Count({"linear_conv_kernel_dim"}, 2, kMaxTaps);
  if (delta.value_heads % delta.key_heads != 0) {
    fields.Fail(fmt::format("field 'linear_num_value_heads' is {}, expected a multiple of "
                            "'linear_num_key_heads' ({})",
                            delta.value_heads, delta.key_heads));
  }
  for (const auto& [name, heads, dim] :
       {std::tuple{"linear_key_head_dim", delta.key_heads, delta.key_dim},
        std::tuple{"linear_value_head_dim", delta.value_heads, delta.value_dim}}) {
    if (uint64_t{heads} * dim <= kMaxDimension / 4) continue;
    fields.Fail(fmt::format("field '{}' is {}, expected at most {} for {} heads", name, dim,
                            kMaxDimension / 4 / heads, heads));
  }
  return delta;
}

// Whether each layer has full attention: as layer_types lists, or every full_attention_interval-th.
std::vector<bool> ReadFullAttention(ConfigReader& fields, uint32_t layer_count) {
  std::vector<bool> full(layer_count);
  const nlohmann::json* list = fields.Find({"layer_types"});
  if (list == nullptr) {
    const uint32_t interval = fields.Count({"full_attention_interval"}, 1, kMaxLayers, 4);
    for (uint32_t i = 0; i < layer_count; ++i) full[i] = (i + 1) % interval == 0;
    return full;
  }
  if (!list->is_array() || list->size() != layer_count) {
    fields.Fail(fmt::format("field 'layer_types' is {}, expected a list of {}", ShowJson(*list),
                            layer_count));
    return full;
  }
  for (uint32_t i = 0; i < layer_count; ++i) {
    const nlohmann::json& type = (*list)[i];
    full[i] = type == "full_attention";
    if (full[i] || type == "linear_attention") continue;
    fields.Fail(fmt::format("field 'layer_types' holds {}, expected \"linear_attention\" or "
                            "\"full_attention\"",
                            ShowJson(type)));
    return full;
  }
  return full;
}

void Describe(ConfigReader& fields, ModelConfig* config) {
  const bool next = config->model_type == "qwen3_next";
  GqaConfig attention = ReadGqa(fields, *config, {.partial_rotary_factor = 0.25f});
  attention.qk_norm = QkNorm::kPerHead;
  attention.output_gate = true;
  fields.RequireFlag("attention_bias", false);
  fields.RequireFlag("attn_output_gate", true);
  GatedDeltaConfig delta = ReadDelta(fields);
  delta.by_key_head = next;
  ReadExpertCounts(fields, {"num_experts", "num_local_experts"}, config);
  config->router.normalize = fields.Flag("norm_topk_prob", true);
  config->shared_expert = {
      .intermediate = fields.Count({"shared_expert_intermediate_size"}, 1, kMaxDimension),
      .gated = true};
  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t expert = fields.Count({"moe_intermediate_size"}, 1, kMaxDimension);
  if (!fields.status().ok()) return;
  const std::vector<bool> full = ReadFullAttention(fields, layer_count);
  const std::vector<bool> dense = ReadDenseLayers(fields, layer_count, config->expert_count);
  const bool any_dense = std::ranges::find(dense, true) != dense.end();
  const uint32_t dense_width =
      any_dense ? fields.Count({"intermediate_size"}, 1, kMaxDimension) : 0;
  for (uint32_t i = 0; i < layer_count; ++i) {
    const MixerConfig mixer = full[i] ? MixerConfig(attention) : MixerConfig(delta);
    config->layers.push_back({dense[i] ? FeedForwardKind::kDense : FeedForwardKind::kMoe,
                              dense[i] ? dense_width : expert, mixer});
  }
}

constexpr std::string_view kTypes[] = {"qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text"};

constexpr TensorName kNames[] = {
    // Qwen3-Next has q, k, v and z in one tensor, b and a in another.
    {"attention.delta_qkvz", "linear_attn.in_proj_qkvz.weight"},
    {"attention.delta_ba", "linear_attn.in_proj_ba.weight"},
    {"attention.delta_qkv", "linear_attn.in_proj_qkv.weight"},
    {"attention.delta_z", "linear_attn.in_proj_z.weight"},
    {"attention.delta_a", "linear_attn.in_proj_a.weight"},
    {"attention.delta_b", "linear_attn.in_proj_b.weight"},
    {"attention.delta_conv", "linear_attn.conv1d.weight"},
    {"attention.delta_decay_log", "linear_attn.A_log"},
    {"attention.delta_decay_bias", "linear_attn.dt_bias"},
    {"attention.delta_norm", "linear_attn.norm.weight"},
    {"attention.delta_o", "linear_attn.out_proj.weight"},
    {"mlp.shared.gate", "mlp.shared_expert.gate_proj.weight"},
    {"mlp.shared.up", "mlp.shared_expert.up_proj.weight"},
    {"mlp.shared.down", "mlp.shared_expert.down_proj.weight"},
    {"mlp.shared.router", "mlp.shared_expert_gate.weight"},
};

}  // namespace

// Norms are zero-centred: the weight is what is added to 1.
const Family kQwen3Next = {.model_types = kTypes,
                           .describe = Describe,
                           .names = kNames,
                           .expert_forms = kCommonExpertForms,
                           .norm_offset = 1};

}  // namespace moraine
