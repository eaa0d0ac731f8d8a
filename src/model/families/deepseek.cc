// DeepSeek-V2, V2-Lite, V3, R1, Kimi-K2 and the language model of Kimi-K2.5. Sources of the formulas:
// modeling_deepseek.py as published with deepseek-ai/DeepSeek-V2 and DeepSeek-V3, and transformers'
// modeling_deepseek_v2.py and modeling_deepseek_v3.py (Apache-2.0); docs/families.md says where they
// differ.
#include <fmt/format.h>

#include <cmath>

#include "model/families/deepseek_moe.h"
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

void Describe(ConfigReader& fields, ModelConfig* config) {
  const MlaConfig attention = ReadMla(fields, *config);
  ReadDeepSeekMoe(fields,
                  config->model_type == "deepseek_v2" ? DeepSeekRouter::kV2 : DeepSeekRouter::kV3,
                  attention, config);
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
