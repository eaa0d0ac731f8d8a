// ModelConfig: what a model computes, as blocks: what mixes a layer's tokens, what follows it, how
// experts are chosen. Read from a checkpoint's config.json by its family's description
// (families/family.h); docs/families.md tells how to add one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"
#include "compute/expert_kernels.h"

namespace moraine {

// YaRN (Peng et al. 2023, arXiv 2309.00071): slow dimensions are interpolated, fast ones are not.
struct YarnConfig {
  float factor = 1;
  float beta_fast = 32, beta_slow = 1;  // rotations over the original positions
  uint32_t original_positions = 1;
  bool truncate = true;          // the borders between slow and fast are whole dimensions
  float attention_factor = 1;    // multiplies cos and sin
  float mscale_all_dim = 0;      // of MLA's softmax scale, see YarnMscale
  bool operator==(const YarnConfig&) const = default;
};
// 0.1 x mscale x ln(factor) + 1; 1 for a factor of at most 1.
float YarnMscale(float factor, float mscale);

struct RopeConfig {
  float theta = 10000.0f;
  uint32_t rotary_dim = 0;   // the first dimensions of a head, even
  // What the frequencies' exponents are fractions of; 0: rotary_dim. One less where a factor of the head
  // gives an odd number: that many frequencies, rounded up, turn a pair each.
  uint32_t frequency_dim = 0;
  bool interleaved = false;  // pairs are (2i, 2i + 1), not (i, i + rotary_dim / 2)
  std::optional<YarnConfig> yarn = std::nullopt;
  bool operator==(const RopeConfig&) const = default;
};

enum class QkNorm : uint8_t { kNone, kPerHead, kWholeRow };  // kWholeRow: one norm over all heads

// Grouped-query attention. blocks/gqa_attention.h.
struct GqaConfig {
  uint32_t query_heads = 0, kv_heads = 0, head_dim = 0;
  RopeConfig rope = {};
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false, output_bias = false;
  uint32_t sliding_window = 0;  // positions that a token sees, its own among them; 0: all before
  bool sinks = false;           // a score a head that has no value
  // What was attended to is weighed by the sigmoid of one more projection (Qwen3-Next), whose rows
  // follow each head's in the query's.
  bool output_gate = false;
};

// Multi-head latent attention. blocks/mla_attention.h.
struct MlaConfig {
  uint32_t heads = 0;
  uint32_t q_rank = 0;  // 0: queries come from the hidden state without a step between
  uint32_t kv_rank = 0;
  uint32_t nope_dim = 0, rope_dim = 0;  // of a head's query and key: not rotated, and rotated
  uint32_t value_dim = 0;
  RopeConfig rope;
  float scale = 0;             // of the scores, YaRN's part of it included
  float norm_epsilon = 1e-6f;  // of the two norms inside, whatever the model's is
};

// Linear attention. blocks/gated_delta_net.h.
struct GatedDeltaConfig {
  uint32_t key_heads = 0, value_heads = 0;  // of q and k; of v, a multiple
  uint32_t key_dim = 0, value_dim = 0;      // of a head
  uint32_t taps = 0;                        // of the convolution
  bool by_key_head = false;  // how the checkpoint orders the rows of q, k, v, z and of b, a
};

// What mixes the tokens of a layer. Whoever adds a kind is led by the compiler: blocks/mixer.h.
using MixerConfig = std::variant<GqaConfig, MlaConfig, GatedDeltaConfig>;

enum class Scoring : uint8_t {
  kSoftmax,          // over all experts; choice and weights are by it
  kSigmoid,          // of each expert for itself
  kSoftmaxOfChosen,  // choice by the logits, weights the softmax of the chosen ones'
};
enum class GroupScore : uint8_t { kBest, kTwoBest };  // kTwoBest: the sum of them

// How the experts of a token are chosen and weighed. blocks/expert_choice.h.
struct RouterConfig {
  Scoring scoring = Scoring::kSoftmax;
  bool bias = false;             // of the logits
  bool correction_bias = false;  // added to the scores for the choice, not for the weights
  uint32_t group_count = 1;      // consecutive experts; only those of the best groups can be chosen
  uint32_t chosen_groups = 1;
  GroupScore group_score = GroupScore::kBest;
  bool normalize = false;        // weights of the chosen experts sum to one, before `scale`
  float normalize_epsilon = 0;   // added to the sum that they are divided by
  float scale = 1;
};

enum class FeedForwardKind : uint8_t { kDense, kMoe };

struct LayerConfig {
  FeedForwardKind feed_forward = FeedForwardKind::kMoe;
  uint32_t intermediate = 0;  // of the dense block or of one expert
  MixerConfig mixer = {};
};

// An expert that every token of a MoE layer runs through, resident. blocks/shared_expert.h.
struct SharedExpertConfig {
  uint32_t intermediate = 0;  // 0: there is none
  bool gated = false;         // weighed by the sigmoid of one more row of the router
};

struct ModelConfig {
  std::string model_type;  // "qwen3_moe": decides the names of tensors, too
  uint32_t hidden = 0, vocab_size = 0;
  float rms_norm_epsilon = 1e-6f;
  uint32_t max_position = 0;
  bool tied_embeddings = false;
  // Of all MoE layers.
  uint32_t expert_count = 0, top_k = 0;
  ExpertActivation activation;
  bool expert_bias = false;
  RouterConfig router;
  SharedExpertConfig shared_expert;
  std::vector<LayerConfig> layers;
  std::vector<int32_t> eos_tokens;  // of config.json; generation_config.json may add more

  std::vector<uint32_t> experts_per_layer() const;
};

// kUnsupported naming the field for a model type, activation or RoPE variant that is not there yet;
// kInvalidArgument naming file, field, found and expected for bad values.
Result<ModelConfig> ParseModelConfig(std::string_view json, const std::string& file_name);

}  // namespace moraine
