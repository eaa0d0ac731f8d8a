// DeepSeek-V2, V2-Lite, V3, R1, Kimi-K2 and the language model of Kimi-K2.5. Sources of the formulas:
// modeling_deepseek.py as published with deepseek-ai/DeepSeek-V2 and DeepSeek-V3, and transformers'
// modeling_deepseek_v2.py and modeling_deepseek_v3.py (Apache-2.0); docs/families.md says where they
// differ.
#include <fmt/format.h>

#include <cmath>

#include "model/families/family.h"

namespace moraine {
namespace {

constexpr uint32_t kMaxRank = 1u << 16;

MlaConfig ReadMla(ConfigReader& fields, const ModelConfig& config) {
  MlaConfig mla;
  mla.heads = fields.Count({"num_attention_heads"}, 1, kMaxHeads);
  mla.q_rank = fields.Count({"q_lora_rank"}, 1, kMaxRank, 0);
  mla.kv_rank = fields.Count({"kv_lora_rank"}, 1, kMaxHeadDim);
  mla.nope_dim = fields.Count({"qk_nope_head_dim"}, 1, kMaxHeadDim);
  mla.rope_dim = fields.Count({"qk_rope_head_dim"}, 2, kMaxHeadDim);
  mla.value_dim = fields.Count({"v_head_dim"}, 1, kMaxHeadDim);
  if (mla.kv_rank + mla.rope_dim > kMaxHeadDim) {
    fields.Fail(fmt::format("field 'kv_lora_rank' is {}, expected at most {} with 'qk_rope_head_dim' "
                            "({})",
                            mla.kv_rank, kMaxHeadDim, mla.rope_dim));
  }
  // Heads that share keys and values would have fewer of them; no published model has.
  if (fields.Count({"num_key_value_heads"}, 1, kMaxHeads, mla.heads) != mla.heads) {
    fields.RefuseUnsupported(
        fmt::format("field 'num_key_value_heads' differs from 'num_attention_heads' ({})", mla.heads));
  }
  fields.RequireFlag("attention_bias", false);
  mla.rope = ReadRope(fields, mla.rope_dim, config.max_position);
  // Published checkpoints all interleave; transformers 5 writes it down.
  mla.rope.interleaved = fields.Flag("rope_interleave", true);
  mla.scale = 1.0f / std::sqrt(static_cast<float>(mla.nope_dim + mla.rope_dim));
  if (mla.rope.yarn && mla.rope.yarn->mscale_all_dim > 0) {
    const float mscale = YarnMscale(mla.rope.yarn->factor, mla.rope.yarn->mscale_all_dim);
    mla.scale *= mscale * mscale;
  }
  return mla;
}

void ReadGroups(ConfigReader& fields, RouterConfig* router) {
  router->group_count = fields.Count({"n_group"}, 1, kMaxExperts, 1);
  router->chosen_groups = fields.Count({"topk_group"}, 1, kMaxExperts, 1);
}

void ReadRouterV2(ConfigReader& fields, RouterConfig* router) {
  fields.RequireText("scoring_func", "softmax");
  // Published code normalises and then does not scale, transformers never normalises; no published
  // model asks for it.
  fields.RequireFlag("norm_topk_prob", false);
  const std::string method = fields.Text("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    ReadGroups(fields, router);
    router->group_score = GroupScore::kBest;
  } else if (method != "greedy") {
    fields.RefuseUnsupported(fmt::format(
        "field 'topk_method' is '{}', supported: 'greedy' and 'group_limited_greedy'", method));
  }
}

void ReadRouterV3(ConfigReader& fields, RouterConfig* router) {
  fields.RequireText("scoring_func", "sigmoid");
  fields.RequireText("topk_method", "noaux_tc");
  router->scoring = Scoring::kSigmoid;
  router->correction_bias = true;
  ReadGroups(fields, router);
  router->group_score = GroupScore::kTwoBest;
  router->normalize = fields.Flag("norm_topk_prob", true);
  router->normalize_epsilon = 1e-20f;
}

void Describe(ConfigReader& fields, ModelConfig* config) {
  const MlaConfig attention = ReadMla(fields, *config);
  ReadExpertCounts(fields, {"n_routed_experts"}, config);
  if (config->model_type == "deepseek_v2") {
    ReadRouterV2(fields, &config->router);
  } else {
    ReadRouterV3(fields, &config->router);
  }
  config->router.scale = fields.Real({"routed_scaling_factor"}, 1);
  fields.Count({"moe_layer_freq"}, 1, 1, 1);
  const uint32_t dense = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  const uint32_t expert = fields.Count({"moe_intermediate_size"}, 1, kMaxDimension);
  const uint32_t shared = fields.Count({"n_shared_experts"}, 0, kMaxDimension, 0);
  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t dense_layers = fields.Count({"first_k_dense_replace"}, 0, kMaxLayers, 0);
  if (!fields.status().ok()) return;
  if (shared > kMaxDimension / expert) {
    fields.Fail(fmt::format("field 'n_shared_experts' is {}, expected at most {}", shared,
                            kMaxDimension / expert));
    return;
  }
  config->shared_expert.intermediate = shared * expert;
  AddLayers(layer_count, dense_layers, dense, expert, attention, config);
}

constexpr std::string_view kTypes[] = {"deepseek_v2", "deepseek_v3", "kimi_k2", "kimi_k25"};

constexpr TensorName kNames[] = {
    {"attention.q_a", "self_attn.q_a_proj.weight"},
    {"attention.q_a_norm", "self_attn.q_a_layernorm.weight"},
    {"attention.q_b", "self_attn.q_b_proj.weight"},
    {"attention.kv_a", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attention.kv_a_norm", "self_attn.kv_a_layernorm.weight"},
    {"attention.kv_b", "self_attn.kv_b_proj.weight"},
};

}  // namespace

const Family kDeepseek = {.model_types = kTypes,
                          .describe = Describe,
                          .names = kNames,
                          .expert_forms = kCommonExpertForms};

}  // namespace moraine
