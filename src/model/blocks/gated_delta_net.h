// Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464), as Qwen3-Next and Qwen3.5 have it:
// attention whose memory of a sequence is a matrix a head instead of keys and values of every position.
//
//   q, k, v   projections, each channel through a causal convolution over the last few tokens and silu;
//             q and k to length 1 a head, q by 1 / sqrt(key_dim) more
//   decay     exp(-exp(decay_log) softplus(a + decay_bias)), a head and token
//   beta      sigmoid(b)
//   memory    compute/cpu_backend.h, GatedDeltaCall
//   out       RmsNorm of each head, by silu(z), through the output matrix
// Source: transformers' modeling_qwen3_next.py (Apache-2.0), float32.
//
// a and b are exact (float32): they are the exponents of products over all tokens, and 64 rows.
//
// State: taps - 1 rows of the convolution's input and the memory, 2.2 MB a layer for Qwen3-Next, 79 MB
// in all; it is replaced, not extended, so the sequence keeps it twice (sequence_state.h) and a chunk
// writes the other copy: nothing is copied, a chunk that fails leaves nothing behind, and a decode
// step touches 4.4 MB a layer where in place it would touch 2.2.
//
// Works through a batch kDeltaTokens at a time, which bounds its scratch and changes no bit. Of these the
// projections are of all tokens together, convolution and memory a sequence at a time.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/blocks/mixer_context.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {

class GatedDeltaNet {
 public:
  static void AppendRoles(const GatedDeltaConfig& config, uint32_t hidden, RoleList* roles);
  static LayerStateShape StateShape(const GatedDeltaConfig& config, KvFormat format);
  static size_t ScratchFloats(const GatedDeltaConfig& config, uint32_t hidden, uint32_t max_tokens);
  static const RopeConfig* Rope(const GatedDeltaConfig&) { return nullptr; }

  GatedDeltaNet(const GatedDeltaConfig& config, const MixerContext& context,
                const DenseSource& weights, const std::string& role_prefix);

  void Run(const MixerInput& input, float* out);

 private:
  // What a part of a batch goes through. Rows of `inputs` are channels wide, and there is room for taps - 1
  // more in front of them.
  struct Work {
    float *inputs, *mixed, *z, *a, *b, *values;
  };
  // What a sequence has before the first of some rows, and where it goes after the last.
  struct Memory {
    const float *window, *state;
    float *new_window, *new_state;
  };

  Memory MemoryOf(const MixerSegment& segment, uint32_t row) const;
  void RunPart(const Work& work, const MixerInput& input, uint32_t first, uint32_t count,
               float* out) const;
  void Convolve(const Work& work, const Memory& memory, uint32_t row, uint32_t count) const;
  void Gates(const Work& work, uint32_t count) const;
  void Normalize(float* mixed, uint32_t count) const;

  GatedDeltaConfig config_;
  MixerContext context_;
  MatrixView q_, k_, v_, z_, a_, b_, o_;
  std::span<const float> norm_, decay_bias_;
  std::vector<float> conv_;        // taps x channels
  std::vector<float> decay_rate_;  // -exp(decay_log)
  std::vector<float> q_scale_, k_scale_;  // key_dim equal values: RmsNorm's weights
};

}  // namespace moraine
