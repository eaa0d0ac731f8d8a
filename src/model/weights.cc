#include "model/weights.h"

#include <fmt/format.h>

namespace moraine {
namespace {

using Kind = DenseRole::Kind;

// Names of the tensors without ".weight" and ".bias"; those of a layer follow its prefix.
struct Spelling {
  const char *embedding, *norm, *output, *layer;  // layer: a format string for its number
  const char *attention_norm, *q, *k, *v, *o, *q_norm, *k_norm;
  const char *mlp_norm, *router, *gate, *up, *down;
  const char *expert_gate, *expert_up, *expert_down;  // format strings for the expert's number
  bool stacked_experts;
};

constexpr Spelling kTransformers = {
    .embedding = "model.embed_tokens", .norm = "model.norm", .output = "lm_head",
    .layer = "model.layers.{}.",
    .attention_norm = "input_layernorm", .q = "self_attn.q_proj", .k = "self_attn.k_proj",
    .v = "self_attn.v_proj", .o = "self_attn.o_proj", .q_norm = "self_attn.q_norm",
    .k_norm = "self_attn.k_norm",
    .mlp_norm = "post_attention_layernorm", .router = "mlp.gate", .gate = "mlp.gate_proj",
    .up = "mlp.up_proj", .down = "mlp.down_proj",
    .expert_gate = "mlp.experts.{}.gate_proj", .expert_up = "mlp.experts.{}.up_proj",
    .expert_down = "mlp.experts.{}.down_proj", .stacked_experts = false};

// Source: gguf-py/gguf/constants.py and tensor_mapping.py of github.com/ggml-org/llama.cpp. Queries
// and keys are in the order of transformers: llama.cpp rotates halves ("NEOX") for this
// architecture.
constexpr Spelling kGguf = {
    .embedding = "token_embd", .norm = "output_norm", .output = "output", .layer = "blk.{}.",
    .attention_norm = "attn_norm", .q = "attn_q", .k = "attn_k", .v = "attn_v",
    .o = "attn_output", .q_norm = "attn_q_norm", .k_norm = "attn_k_norm",
    .mlp_norm = "ffn_norm", .router = "ffn_gate_inp", .gate = "ffn_gate", .up = "ffn_up",
    .down = "ffn_down",
    .expert_gate = "ffn_gate_exps", .expert_up = "ffn_up_exps", .expert_down = "ffn_down_exps",
    .stacked_experts = true};

const Spelling& SpellingOf(TensorNaming naming) {
  return naming == TensorNaming::kGguf ? kGguf : kTransformers;
}

// Lists the roles of one model.
class RoleList {
 public:
  RoleList(const ModelConfig& config, const Spelling& spelling) : c_(config), s_(spelling) {}

  std::vector<DenseRole> Make() {
    Add("embedding", s_.embedding, Kind::kMatrix, c_.vocab_size, c_.hidden);
    for (size_t i = 0; i < c_.layers.size(); ++i) {
      role_prefix_ = fmt::format("layers.{}.", i);
      source_prefix_ = fmt::format(fmt::runtime(s_.layer), i);
      AddAttention();
      AddFeedForward(c_.layers[i]);
    }
    role_prefix_.clear();
    source_prefix_.clear();
    Vector("norm", s_.norm, c_.hidden);
    if (!c_.tied_embeddings) Add("output", s_.output, Kind::kMatrix, c_.vocab_size, c_.hidden);
    return std::move(roles_);
  }

 private:
  void AddAttention() {
    const uint32_t q = c_.query_heads * c_.head_dim, kv = c_.kv_heads * c_.head_dim;
    Vector("attention.norm", s_.attention_norm, c_.hidden);
    Add("attention.q", s_.q, Kind::kMatrix, q, c_.hidden);
    Add("attention.k", s_.k, Kind::kMatrix, kv, c_.hidden);
    Add("attention.v", s_.v, Kind::kMatrix, kv, c_.hidden);
    Add("attention.o", s_.o, Kind::kMatrix, c_.hidden, q);
    Vector("attention.q_norm", s_.q_norm, c_.head_dim);
    Vector("attention.k_norm", s_.k_norm, c_.head_dim);
    if (!c_.attention_bias) return;
    Vector("attention.q_bias", s_.q, q, ".bias");
    Vector("attention.k_bias", s_.k, kv, ".bias");
    Vector("attention.v_bias", s_.v, kv, ".bias");
    Vector("attention.o_bias", s_.o, c_.hidden, ".bias");
  }

  void AddFeedForward(const LayerConfig& layer) {
    Vector("mlp.norm", s_.mlp_norm, c_.hidden);
    if (layer.feed_forward == FeedForwardKind::kMoe) {
      Add("mlp.router", s_.router, Kind::kExactMatrix, c_.expert_count, c_.hidden);
      return;
    }
    Add("mlp.gate", s_.gate, Kind::kMatrix, layer.intermediate, c_.hidden);
    Add("mlp.up", s_.up, Kind::kMatrix, layer.intermediate, c_.hidden);
    Add("mlp.down", s_.down, Kind::kMatrix, c_.hidden, layer.intermediate);
  }

  void Vector(const char* role, const char* source, uint32_t size,
              const char* suffix = ".weight") {
    Add(role, source, Kind::kVector, 1, size, suffix);
  }
  void Add(const char* role, const char* source, Kind kind, uint32_t rows, uint32_t cols,
           const char* suffix = ".weight") {
    roles_.push_back({role_prefix_ + role, source_prefix_ + source + suffix, kind, rows, cols});
  }

  const ModelConfig& c_;
  const Spelling& s_;
  std::string role_prefix_, source_prefix_;
  std::vector<DenseRole> roles_;
};

}  // namespace

std::vector<DenseRole> DenseRoles(const ModelConfig& config, TensorNaming naming) {
  return RoleList(config, SpellingOf(naming)).Make();
}

ExpertTensorNames NamesOfExpert(ExpertKey key, TensorNaming naming) {
  const Spelling& s = SpellingOf(naming);
  const std::string layer = fmt::format(fmt::runtime(s.layer), key.layer.value());
  const auto name = [&](const char* matrix) {
    return layer + fmt::format(fmt::runtime(matrix), key.expert.value()) + ".weight";
  };
  return {name(s.expert_gate), name(s.expert_up), name(s.expert_down), s.stacked_experts};
}

bool IsIgnoredTensor(std::string_view name) { return name.ends_with("rotary_emb.inv_freq"); }

}  // namespace moraine
