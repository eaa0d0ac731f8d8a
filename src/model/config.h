// ModelConfig: what the forward pass needs to know of a checkpoint's config.json.
//
// Reads both dialects: transformers 4 (rope_theta, rope_scaling, num_experts) and transformers 5
// (rope_parameters, num_local_experts).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace moraine {

enum class FeedForwardKind : uint8_t { kDense, kMoe };

struct LayerConfig {
  FeedForwardKind feed_forward = FeedForwardKind::kMoe;
  uint32_t intermediate = 0;  // of the dense block or of one expert
};

struct ModelConfig {
  std::string model_type;  // "qwen3_moe"
  uint32_t hidden = 0, vocab_size = 0;
  uint32_t query_heads = 0, kv_heads = 0, head_dim = 0;
  float rope_theta = 10000.0f;
  float rms_norm_epsilon = 1e-6f;
  uint32_t max_position = 0;
  bool tied_embeddings = false;
  bool attention_bias = false;
  uint32_t expert_count = 0, top_k = 0;
  bool normalize_top_k = false;  // routing weights of the chosen experts sum to one
  std::vector<LayerConfig> layers;
  std::vector<int32_t> eos_tokens;  // of config.json; generation_config.json may add more

  std::vector<uint32_t> experts_per_layer() const;
};

// kUnsupported naming the field for a model type, activation or RoPE variant that is not there yet;
// kInvalidArgument naming file, field, found and expected for bad values.
Result<ModelConfig> ParseModelConfig(std::string_view json, const std::string& file_name);

}  // namespace moraine
