// GLM-4.5, 4.6, 4.7 and 4.5-Air. Source of the formulas: transformers, modeling_glm4_moe.py
// (Apache-2.0). Half of a head's dimensions rotate, in halves.
#include "model/families/deepseek_moe.h"
#include "model/families/family.h"

namespace moraine {
namespace {

void Describe(ConfigReader& fields, ModelConfig* config) {
  GqaConfig attention = ReadGqa(fields, *config, {.partial_rotary_factor = 0.5f});
  if (fields.Flag("use_qk_norm", false)) attention.qk_norm = QkNorm::kPerHead;
  attention.qkv_bias = fields.Flag("attention_bias", false);  // not of the output
  ReadDeepSeekMoe(fields, DeepSeekRouter::kV3, attention, config);
}

constexpr std::string_view kTypes[] = {"glm4_moe"};

}  // namespace

const Family kGlm4Moe = {
    .model_types = kTypes, .describe = Describe, .names = {}, .expert_forms = kCommonExpertForms};

}  // namespace moraine
