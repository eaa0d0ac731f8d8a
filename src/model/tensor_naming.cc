#include "model/tensor_naming.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/check.h"
#include "model/families/family.h"

namespace moraine {
namespace {

// Of transformers. The whole model's follow a root, a layer's its prefix.
constexpr TensorName kCommonNames[] = {
    {"embedding", "embed_tokens.weight"},
    {"norm", "norm.weight"},
    {"output", "lm_head.weight"},
    {"attention.norm", "input_layernorm.weight"},
    {"attention.q", "self_attn.q_proj.weight"},
    {"attention.k", "self_attn.k_proj.weight"},
    {"attention.v", "self_attn.v_proj.weight"},
    {"attention.o", "self_attn.o_proj.weight"},
    {"attention.q_bias", "self_attn.q_proj.bias"},
    {"attention.k_bias", "self_attn.k_proj.bias"},
    {"attention.v_bias", "self_attn.v_proj.bias"},
    {"attention.o_bias", "self_attn.o_proj.bias"},
    {"attention.q_norm", "self_attn.q_norm.weight"},
    {"attention.k_norm", "self_attn.k_norm.weight"},
    {"attention.sinks", "self_attn.sinks"},
    {"mlp.norm", "post_attention_layernorm.weight"},
    {"mlp.router", "mlp.gate.weight"},
    {"mlp.correction_bias", "mlp.gate.e_score_correction_bias"},
    {"mlp.gate", "mlp.gate_proj.weight"},
    {"mlp.up", "mlp.up_proj.weight"},
    {"mlp.down", "mlp.down_proj.weight"},
    {"mlp.shared.gate", "mlp.shared_experts.gate_proj.weight"},
    {"mlp.shared.up", "mlp.shared_experts.up_proj.weight"},
    {"mlp.shared.down", "mlp.shared_experts.down_proj.weight"},
};

// Source: gguf-py/gguf/constants.py and tensor_mapping.py of github.com/ggml-org/llama.cpp. Queries
// and keys are in the order of transformers where llama.cpp rotates halves ("NEOX").
constexpr TensorName kGgufNames[] = {
    {"embedding", "token_embd.weight"},
    {"norm", "output_norm.weight"},
    {"output", "output.weight"},
    {"attention.norm", "attn_norm.weight"},
    {"attention.q", "attn_q.weight"},
    {"attention.k", "attn_k.weight"},
    {"attention.v", "attn_v.weight"},
    {"attention.o", "attn_output.weight"},
    {"attention.q_bias", "attn_q.bias"},
    {"attention.k_bias", "attn_k.bias"},
    {"attention.v_bias", "attn_v.bias"},
    {"attention.o_bias", "attn_output.bias"},
    {"attention.q_norm", "attn_q_norm.weight"},
    {"attention.k_norm", "attn_k_norm.weight"},
    {"mlp.norm", "ffn_norm.weight"},
    {"attention.sinks", "attn_sinks.weight"},
    {"mlp.router", "ffn_gate_inp.weight"},
    {"mlp.router_bias", "ffn_gate_inp.bias"},
    {"mlp.correction_bias", "exp_probs_b.bias"},
    {"mlp.gate", "ffn_gate.weight"},
    {"mlp.up", "ffn_up.weight"},
    {"mlp.down", "ffn_down.weight"},
    {"mlp.shared.gate", "ffn_gate_shexp.weight"},
    {"mlp.shared.up", "ffn_up_shexp.weight"},
    {"mlp.shared.down", "ffn_down_shexp.weight"},
    {"attention.q_a", "attn_q_a.weight"},
    {"attention.q_a_norm", "attn_q_a_norm.weight"},
    {"attention.q_b", "attn_q_b.weight"},
    {"attention.kv_a", "attn_kv_a_mqa.weight"},
    {"attention.kv_a_norm", "attn_kv_a_norm.weight"},
    {"attention.kv_b", "attn_kv_b.weight"},
    {"attention.delta_qkv", "attn_qkv.weight"},
    {"attention.delta_z", "attn_gate.weight"},
    {"attention.delta_ba", "ssm_ba.weight"},
    {"attention.delta_a", "ssm_alpha.weight"},
    {"attention.delta_b", "ssm_beta.weight"},
    {"attention.delta_conv", "ssm_conv1d.weight"},
    {"attention.delta_decay_log", "ssm_a"},
    {"attention.delta_decay_bias", "ssm_dt.bias"},
    {"attention.delta_norm", "ssm_norm.weight"},
    {"attention.delta_o", "ssm_out.weight"},
    {"mlp.shared.router", "ffn_gate_inp_shexp.weight"},
};
// Names that a file has or has not, whatever its architecture; a role of its own goes before the tensor
// that it would be a part of.
constexpr TensorName kGgufAlternatives[] = {
    {"mlp.norm", "post_attention_norm.weight"},
    {"attention.k_up", "attn_k_b.weight"},
    {"attention.v_up", "attn_v_b.weight"},
    {"attention.delta_qkvz", "ssm_in.weight"},
    {"attention.qkv", "attn_qkv.weight"},
    {"attention.qkv_bias", "attn_qkv.bias"},
};

constexpr ExpertForm kForms[] = {
    {.gate = "mlp.experts.{}.gate_proj.weight", .up = "mlp.experts.{}.up_proj.weight",
     .down = "mlp.experts.{}.down_proj.weight"},
    {.gate = "mlp.experts.gate_up_proj", .up = "", .down = "mlp.experts.down_proj",
     .stacked = true, .gate_up = GateUpOrder::kHalves},
};

constexpr ExpertForm kGgufForms[] = {
    {.gate = "ffn_gate_exps.weight", .up = "ffn_up_exps.weight", .down = "ffn_down_exps.weight",
     .stacked = true, .gate_bias = "ffn_gate_exps.bias", .up_bias = "ffn_up_exps.bias",
     .down_bias = "ffn_down_exps.bias"},
    {.gate = "ffn_gate_up_exps.weight", .up = "", .down = "ffn_down_exps.weight", .stacked = true,
     .gate_up = GateUpOrder::kHalves, .gate_bias = "ffn_gate_up_exps.bias",
     .down_bias = "ffn_down_exps.bias"},
};

std::string_view Lookup(std::span<const TensorName> names, std::string_view role) {
  const auto found = std::ranges::find(names, role, &TensorName::role);
  return found == names.end() ? std::string_view() : found->source;
}

std::string Numbered(std::string_view name, uint32_t number) {
  return fmt::format(fmt::runtime(name), number);
}

constexpr std::string_view kLayerRole = "layers.";

// Splits "layers.3.attention.q"; false for a role of the whole model.
bool SplitLayerRole(std::string_view role, uint32_t* layer, std::string_view* rest) {
  if (!role.starts_with(kLayerRole)) return false;
  const size_t dot = role.find('.', kLayerRole.size());
  CHECK(dot != std::string_view::npos, std::string(role));
  *layer = static_cast<uint32_t>(
      std::strtoul(std::string(role.substr(kLayerRole.size(), dot)).c_str(), nullptr, 10));
  *rest = role.substr(dot + 1);
  return true;
}

}  // namespace

const std::span<const ExpertForm> kCommonExpertForms = kForms;

TensorNaming::TensorNaming(const ModelConfig& config)
    : TensorNaming(config, [](const std::string&) { return false; }) {}

TensorNaming::TensorNaming(const ModelConfig& config, const HasTensor& has_tensor)
    : common_names_(kCommonNames),
      layer_prefix_("layers.{}."),
      layer_count_(static_cast<uint32_t>(config.layers.size())) {
  // A language model alone, and two ways to have it inside a model of several modalities.
  static constexpr Root kRoots[] = {
      {"model.", ""}, {"model.language_model.", ""}, {"language_model.model.", "language_model."}};
  const Family* family = FindFamily(config.model_type);
  CHECK(family != nullptr, config.model_type);
  names_ = family->names;
  norm_offset_ = family->norm_offset;
  root_ = kRoots[0];
  for (const Root& root : kRoots) {
    root_ = root;
    if (has_tensor(NameOf("embedding"))) break;
    root_ = kRoots[0];
  }
  ChooseForm(config, family->expert_forms, has_tensor);
}

// The first form that the checkpoint has in the first layer with experts.
void TensorNaming::ChooseForm(const ModelConfig& config, std::span<const ExpertForm> forms,
                              const HasTensor& has_tensor) {
  form_ = forms[0];
  const auto moe = std::ranges::find(config.layers, FeedForwardKind::kMoe,
                                     &LayerConfig::feed_forward);
  if (moe == config.layers.end()) return;
  const std::string prefix = LayerPrefix(static_cast<uint32_t>(moe - config.layers.begin()));
  for (const ExpertForm& form : forms) {
    if (!has_tensor(prefix + Numbered(form.gate, 0))) continue;
    form_ = form;
    break;
  }
}

TensorNaming TensorNaming::Gguf(const ModelConfig& config, const HasTensor& has_tensor) {
  TensorNaming naming(config);
  naming.names_ = {};
  naming.norm_offset_ = 0;  // llama.cpp's converter adds it
  naming.negates_decays_ = true;
  naming.tiles_value_heads_ = true;
  naming.common_names_ = kGgufNames;
  naming.root_ = {"", ""};
  naming.layer_prefix_ = "blk.{}.";
  naming.ChooseForm(config, kGgufForms, has_tensor);
  for (const TensorName& name : kGgufAlternatives) {
    if (has_tensor(naming.LayerPrefix(0) + std::string(name.source))) {
      naming.found_names_.push_back(name);
    }
  }
  return naming;
}

std::string TensorNaming::LayerPrefix(uint32_t layer) const {
  return std::string(root_.model) + Numbered(layer_prefix_, layer);
}

std::string TensorNaming::NameOf(std::string_view role) const {
  uint32_t layer = 0;
  std::string_view rest = role;
  const bool of_layer = SplitLayerRole(role, &layer, &rest);
  std::string_view name = Lookup(found_names_, rest);
  if (name.empty()) name = Lookup(names_, rest);
  if (name.empty()) name = Lookup(common_names_, rest);
  if (name.empty()) return "";
  const std::string prefix = of_layer             ? LayerPrefix(layer)
                             : role == "output" ? std::string(root_.head)
                                                  : std::string(root_.model);
  return prefix + std::string(name);
}

// cols: 0 for a bias.
ExpertSource TensorNaming::SourceOf(const ModelConfig& config, ExpertKey key,
                                    std::string_view name, uint32_t rows, uint32_t cols) const {
  ExpertSource source;
  source.tensor = LayerPrefix(key.layer.value()) + Numbered(name, key.expert.value());
  source.stacked = form_.stacked;
  source.transposed = form_.transposed && cols > 0;
  source.tensor_rows = rows;
  if (form_.stacked) source.shape.push_back(config.expert_count);
  if (source.transposed) source.shape.push_back(cols);
  source.shape.push_back(rows);
  if (cols > 0 && !source.transposed) source.shape.push_back(cols);
  return source;
}

ExpertSources TensorNaming::SourcesOf(const ModelConfig& config, ExpertKey key) const {
  const uint32_t intermediate = config.layers[key.layer.value()].intermediate;
  const uint32_t hidden = config.hidden;
  ExpertSources sources;
  // Gate and up in one tensor, or each in its own.
  const auto find_both = [&](std::string_view gate_name, std::string_view up_name, uint32_t cols,
                             ExpertSource* gate, ExpertSource* up) {
    if (form_.gate_up == GateUpOrder::kApart) {
      *gate = SourceOf(config, key, gate_name, intermediate, cols);
      *up = SourceOf(config, key, up_name, intermediate, cols);
      return;
    }
    *gate = *up = SourceOf(config, key, gate_name, 2 * intermediate, cols);
    const bool halves = form_.gate_up == GateUpOrder::kHalves;
    up->first_row = halves ? intermediate : 1;
    gate->row_step = up->row_step = halves ? 1 : 2;
  };
  find_both(form_.gate, form_.up, hidden, &sources.gate, &sources.up);
  sources.down = SourceOf(config, key, form_.down, hidden, intermediate);
  if (!config.expert_bias) return sources;
  find_both(form_.gate_bias, form_.up_bias, 0, &sources.gate_bias, &sources.up_bias);
  sources.down_bias = SourceOf(config, key, form_.down_bias, hidden, 0);
  return sources;
}

bool TensorNaming::Ignores(std::string_view name) const {
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  // Qwen3-Next keeps its predictor of further tokens apart.
  if (name.starts_with("mtp.")) return true;
  const std::string layers = std::string(root_.model) +
                             std::string(layer_prefix_.substr(0, layer_prefix_.find('{')));
  if (name.starts_with(layers)) {
    // DeepSeek-V3, Kimi-K2, GLM-4.5: it follows the layers.
    const std::string number(name.substr(layers.size(), name.find('.', layers.size()) -
                                                            layers.size()));
    char* end = nullptr;
    const unsigned long layer = std::strtoul(number.c_str(), &end, 10);
    return end != number.c_str() && *end == '\0' && layer >= layer_count_;
  }
  if (root_.model == "model.") return false;
  for (const std::string_view other : {"model.visual.", "visual.", "vision_tower.",
                                       "mm_projector.", "multi_modal_projector."}) {
    if (name.starts_with(other)) return true;
  }
  return false;
}

}  // namespace moraine
