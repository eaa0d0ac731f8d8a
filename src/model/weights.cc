#include "model/weights.h"

#include <fmt/format.h>

namespace moraine {
namespace {

using Kind = DenseRole::Kind;

void AddAttention(const ModelConfig& c, const std::string& role, const std::string& source,
                  std::vector<DenseRole>* roles) {
  const uint32_t q = c.query_heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  roles->push_back({role + "q", source + "q_proj.weight", Kind::kMatrix, q, c.hidden});
  roles->push_back({role + "k", source + "k_proj.weight", Kind::kMatrix, kv, c.hidden});
  roles->push_back({role + "v", source + "v_proj.weight", Kind::kMatrix, kv, c.hidden});
  roles->push_back({role + "o", source + "o_proj.weight", Kind::kMatrix, c.hidden, q});
  roles->push_back({role + "q_norm", source + "q_norm.weight", Kind::kVector, 1, c.head_dim});
  roles->push_back({role + "k_norm", source + "k_norm.weight", Kind::kVector, 1, c.head_dim});
  if (!c.attention_bias) return;
  roles->push_back({role + "q_bias", source + "q_proj.bias", Kind::kVector, 1, q});
  roles->push_back({role + "k_bias", source + "k_proj.bias", Kind::kVector, 1, kv});
  roles->push_back({role + "v_bias", source + "v_proj.bias", Kind::kVector, 1, kv});
  roles->push_back({role + "o_bias", source + "o_proj.bias", Kind::kVector, 1, c.hidden});
}

void AddFeedForward(const ModelConfig& c, const LayerConfig& layer, const std::string& role,
                    const std::string& source, std::vector<DenseRole>* roles) {
  if (layer.feed_forward == FeedForwardKind::kMoe) {
    roles->push_back({role + "router", source + "gate.weight", Kind::kExactMatrix, c.expert_count,
                      c.hidden});
    return;
  }
  const uint32_t n = layer.intermediate;
  roles->push_back({role + "gate", source + "gate_proj.weight", Kind::kMatrix, n, c.hidden});
  roles->push_back({role + "up", source + "up_proj.weight", Kind::kMatrix, n, c.hidden});
  roles->push_back({role + "down", source + "down_proj.weight", Kind::kMatrix, c.hidden, n});
}

}  // namespace

std::vector<DenseRole> DenseRoles(const ModelConfig& c) {
  std::vector<DenseRole> roles;
  roles.push_back(
      {"embedding", "model.embed_tokens.weight", Kind::kMatrix, c.vocab_size, c.hidden});
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const std::string role = fmt::format("layers.{}.", i);
    const std::string source = fmt::format("model.layers.{}.", i);
    roles.push_back({role + "attention.norm", source + "input_layernorm.weight", Kind::kVector, 1,
                     c.hidden});
    AddAttention(c, role + "attention.", source + "self_attn.", &roles);
    roles.push_back({role + "mlp.norm", source + "post_attention_layernorm.weight", Kind::kVector,
                     1, c.hidden});
    AddFeedForward(c, c.layers[i], role + "mlp.", source + "mlp.", &roles);
  }
  roles.push_back({"norm", "model.norm.weight", Kind::kVector, 1, c.hidden});
  if (!c.tied_embeddings) {
    roles.push_back({"output", "lm_head.weight", Kind::kMatrix, c.vocab_size, c.hidden});
  }
  return roles;
}

ExpertTensorNames NamesOfExpert(ExpertKey key) {
  const std::string prefix = fmt::format("model.layers.{}.mlp.experts.{}.", key.layer.value(),
                                         key.expert.value());
  return {prefix + "gate_proj.weight", prefix + "up_proj.weight", prefix + "down_proj.weight"};
}

bool IsIgnoredTensor(std::string_view name) { return name.ends_with("rotary_emb.inv_freq"); }

}  // namespace moraine
