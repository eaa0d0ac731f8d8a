// GqaAttention: causal attention in which several query heads share a head of keys and values.
//
// projections (+ biases) -> norm of queries and keys, per head or over all heads -> RoPE on all or
// the first dimensions -> attention over the whole past or a window, perhaps with a sink a head ->
// output projection (+ bias).
// Source of the formulas: Ainslie et al. 2023 (arXiv 2305.13245); transformers, modeling_qwen3_moe.py,
// modeling_olmoe.py.
#pragma once

#include <span>
#include <string>

#include "compute/encoding.h"
#include "model/blocks/mixer_context.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {

class GqaAttention {
 public:
  static void AppendRoles(const GqaConfig& config, uint32_t hidden, RoleList* roles);
  static LayerStateShape StateShape(const GqaConfig& config, KvFormat format);
  static size_t ScratchFloats(const GqaConfig& config, uint32_t hidden, uint32_t max_tokens);
  static const RopeConfig* Rope(const GqaConfig& config) { return &config.rope; }

  GqaAttention(const GqaConfig& config, const MixerContext& context, const DenseSource& weights,
               const std::string& role_prefix);

  void Run(const MixerInput& input, float* out);

 private:
  void NormAndRotate(float* x, uint32_t token_count, uint32_t heads,
                     std::span<const float> norm) const;

  GqaConfig config_;
  MixerContext context_;
  MatrixView q_, k_, v_, o_, gate_;
  std::span<const float> q_norm_, k_norm_, q_bias_, k_bias_, v_bias_, o_bias_, sinks_;
};

}  // namespace moraine
