// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): a sequence keeps, for all heads
// together, one latent of kv_rank values and one rotated key of rope_dim values a position; each
// head's keys and values are projections of the latent.
//
// Always in the absorbed form: the projection of a head's keys is applied to its query (k_up,
// transposed) and that of its values to what it attended to (v_up), so attention runs over the cache
// as it is: one KV head of kv_rank + rope_dim, whose values are the latents (AttentionShape::value_dim).
// The other form, keys and values of every head from every latent, has 3.4 times fewer operations a
// query and position (DeepSeek: 320 against 1088) but would have to be computed again for the whole
// context in each decode step; used for prefill alone it would round differently from decode, and
// prefill equals decode to the bit here.
//
// The two halves of kv_b_proj are stored apart, a matrix a head: k_up of kv_rank x nope_dim, v_up of
// value_dim x kv_rank, in the dense encoding; 8.4 M weights each a layer of DeepSeek-V3, read once a
// chunk. Their inputs are quantised, as any matrix's, if they are q8 or q4.
//
// Cache: 576 values a position and layer for DeepSeek and Kimi-K2, 2304 bytes in f32. bf16 halves it.
// q8 and fp8 keep bf16 here: one scale for a latent, which is normalised, and a rotated key, which is
// not, would leave the smaller of them few of q8's codes, and its fewer bytes are not worth a second format.
//
// Scratch is bounded by working through a chunk's queries kMlaTokens at a time.
#pragma once

#include <span>
#include <string>

#include "model/blocks/mixer_context.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {

class MlaAttention {
 public:
  static void AppendRoles(const MlaConfig& config, uint32_t hidden, RoleList* roles);
  static LayerStateShape StateShape(const MlaConfig& config, KvFormat format);
  static size_t ScratchFloats(const MlaConfig& config, uint32_t hidden, uint32_t max_tokens);
  static const RopeConfig* Rope(const MlaConfig& config) { return &config.rope; }

  MlaAttention(const MlaConfig& config, const MixerContext& context, const DenseSource& weights,
               const std::string& role_prefix);

  void Run(const MixerInput& input, float* out);

 private:
  uint32_t key_dim() const { return config_.kv_rank + config_.rope_dim; }
  void WriteLatents(const MixerInput& input, float* latents) const;
  void Attend(const MixerInput& input, uint32_t first, uint32_t count, const float* query_input,
              float* out) const;

  MlaConfig config_;
  MixerContext context_;
  MatrixView q_a_, q_b_, kv_a_, o_;  // q_b_: from the hidden state if there is no q_a_
  MatrixStack k_up_, v_up_;
  std::span<const float> q_a_norm_, kv_a_norm_;
};

}  // namespace moraine
