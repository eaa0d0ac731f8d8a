#include "engine/published_models.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace moraine {
namespace {

constexpr PublishedModel kModels[] = {
    {"qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", R"({
      "model_type": "qwen3_moe", "hidden_size": 2048, "vocab_size": 151936,
      "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
      "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
      "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true,
      "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false,
      "rope_theta": 1000000.0, "rope_scaling": null, "rms_norm_eps": 1e-06,
      "max_position_embeddings": 40960, "use_sliding_window": false,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"qwen3-coder-30b-a3b", "Qwen/Qwen3-Coder-30B-A3B-Instruct", R"({
      "model_type": "qwen3_moe", "hidden_size": 2048, "vocab_size": 151936,
      "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
      "head_dim": 128, "intermediate_size": 5472, "moe_intermediate_size": 768,
      "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true,
      "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false,
      "rope_theta": 10000000.0, "rope_scaling": null, "rms_norm_eps": 1e-06,
      "max_position_embeddings": 262144, "use_sliding_window": false,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"qwen3-235b", "Qwen/Qwen3-235B-A22B", R"({
      "model_type": "qwen3_moe", "hidden_size": 4096, "vocab_size": 151936,
      "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
      "head_dim": 128, "intermediate_size": 12288, "moe_intermediate_size": 1536,
      "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true,
      "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false,
      "rope_theta": 1000000.0, "rope_scaling": null, "rms_norm_eps": 1e-06,
      "max_position_embeddings": 40960, "use_sliding_window": false,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"qwen3-next", "Qwen/Qwen3-Next-80B-A3B-Instruct", R"({
      "model_type": "qwen3_next", "hidden_size": 2048, "vocab_size": 151936,
      "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
      "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
      "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
      "linear_conv_kernel_dim": 4, "intermediate_size": 5120, "moe_intermediate_size": 512,
      "shared_expert_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10,
      "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
      "attention_bias": false, "partial_rotary_factor": 0.25, "rope_theta": 10000000,
      "rope_scaling": null, "rms_norm_eps": 1e-06, "max_position_embeddings": 262144,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"qwen3-coder-next", "Qwen/Qwen3-Coder-Next", R"({
      "model_type": "qwen3_next", "hidden_size": 2048, "vocab_size": 151936,
      "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
      "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
      "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
      "linear_conv_kernel_dim": 4, "intermediate_size": 5120, "moe_intermediate_size": 512,
      "shared_expert_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10,
      "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
      "attention_bias": false, "partial_rotary_factor": 0.25, "rope_theta": 5000000,
      "rope_scaling": null, "rms_norm_eps": 1e-06, "max_position_embeddings": 262144,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite", R"({
      "model_type": "deepseek_v2", "hidden_size": 2048, "vocab_size": 102400,
      "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
      "q_lora_rank": null, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
      "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 10944,
      "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
      "num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1,
      "norm_topk_prob": false, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
      "topk_method": "greedy", "n_group": 1, "topk_group": 1, "attention_bias": false,
      "rope_theta": 10000,
      "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                       "mscale": 0.707, "mscale_all_dim": 0.707,
                       "original_max_position_embeddings": 4096},
      "rms_norm_eps": 1e-06, "max_position_embeddings": 163840,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"deepseek-v2", "deepseek-ai/DeepSeek-V2-Chat", R"({
      "model_type": "deepseek_v2", "hidden_size": 5120, "vocab_size": 102400,
      "num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128,
      "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
      "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 12288,
      "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
      "num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1,
      "norm_topk_prob": false, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
      "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3,
      "attention_bias": false, "rope_theta": 10000,
      "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                       "mscale": 0.707, "mscale_all_dim": 0.707,
                       "original_max_position_embeddings": 4096},
      "rms_norm_eps": 1e-06, "max_position_embeddings": 163840,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"deepseek-v3", "deepseek-ai/DeepSeek-V3", R"({
      "model_type": "deepseek_v3", "hidden_size": 7168, "vocab_size": 129280,
      "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
      "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
      "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432,
      "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
      "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1,
      "norm_topk_prob": true, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
      "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "attention_bias": false,
      "num_nextn_predict_layers": 1, "rope_theta": 10000,
      "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                       "mscale": 1.0, "mscale_all_dim": 1.0,
                       "original_max_position_embeddings": 4096},
      "rms_norm_eps": 1e-06, "max_position_embeddings": 163840,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"kimi-k2", "moonshotai/Kimi-K2-Instruct", R"({
      "model_type": "kimi_k2", "hidden_size": 7168, "vocab_size": 163840,
      "num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64,
      "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
      "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432,
      "moe_intermediate_size": 2048, "n_routed_experts": 384, "n_shared_experts": 1,
      "num_experts_per_tok": 8, "first_k_dense_replace": 1, "moe_layer_freq": 1,
      "norm_topk_prob": true, "routed_scaling_factor": 2.827, "scoring_func": "sigmoid",
      "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1, "attention_bias": false,
      "rope_theta": 50000.0,
      "rope_scaling": {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0,
                       "mscale": 1.0, "mscale_all_dim": 1.0,
                       "original_max_position_embeddings": 4096},
      "rms_norm_eps": 1e-06, "max_position_embeddings": 131072,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"qwen3.5-35b-a3b", "Qwen/Qwen3.5-35B-A3B", R"({
      "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "vocab_size": 248320,
      "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2,
      "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
      "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
      "linear_conv_kernel_dim": 4, "moe_intermediate_size": 512,
      "shared_expert_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8,
      "attn_output_gate": true, "attention_bias": false,
      "rope_parameters": {"rope_type": "default", "rope_theta": 10000000,
        "partial_rotary_factor": 0.25, "mrope_interleaved": true, "mrope_section": [11, 11, 10]},
      "rms_norm_eps": 1e-06, "max_position_embeddings": 262144,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"glm-4.5", "zai-org/GLM-4.5", R"({
      "model_type": "glm4_moe", "hidden_size": 5120, "vocab_size": 151552,
      "num_hidden_layers": 92, "num_attention_heads": 96, "num_key_value_heads": 8,
      "head_dim": 128, "intermediate_size": 12288, "moe_intermediate_size": 1536,
      "n_routed_experts": 160, "n_shared_experts": 1, "num_experts_per_tok": 8,
      "first_k_dense_replace": 3, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
      "n_group": 1, "topk_group": 1, "attention_bias": true, "use_qk_norm": true,
      "partial_rotary_factor": 0.5, "rope_theta": 1000000, "rope_scaling": null,
      "rms_norm_eps": 1e-05, "max_position_embeddings": 131072,
      "num_nextn_predict_layers": 1, "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"glm-4.5-air", "zai-org/GLM-4.5-Air", R"({
      "model_type": "glm4_moe", "hidden_size": 4096, "vocab_size": 151552,
      "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8,
      "head_dim": 128, "intermediate_size": 10944, "moe_intermediate_size": 1408,
      "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
      "first_k_dense_replace": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
      "n_group": 1, "topk_group": 1, "attention_bias": true, "use_qk_norm": false,
      "partial_rotary_factor": 0.5, "rope_theta": 1000000, "rope_scaling": null,
      "rms_norm_eps": 1e-05, "max_position_embeddings": 131072,
      "num_nextn_predict_layers": 1, "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"minimax-m2", "MiniMaxAI/MiniMax-M2", R"({
      "model_type": "minimax_m2", "hidden_size": 3072, "vocab_size": 200064,
      "num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8,
      "head_dim": 128, "intermediate_size": 1536, "num_local_experts": 256,
      "num_experts_per_tok": 8, "scoring_func": "sigmoid", "use_routing_bias": true,
      "shared_intermediate_size": 0, "use_qk_norm": true, "qk_norm_type": "per_layer",
      "rotary_dim": 64, "rope_theta": 5000000, "rms_norm_eps": 1e-06,
      "max_position_embeddings": 196608, "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"gpt-oss-20b", "openai/gpt-oss-20b", R"({
      "model_type": "gpt_oss", "hidden_size": 2880, "vocab_size": 201088,
      "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
      "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32,
      "num_experts_per_tok": 4, "attention_bias": true, "sliding_window": 128,
      "swiglu_limit": 7.0, "rope_theta": 150000,
      "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0,
                       "beta_slow": 1.0, "truncate": false,
                       "original_max_position_embeddings": 4096},
      "rms_norm_eps": 1e-05, "max_position_embeddings": 131072,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"gpt-oss-120b", "openai/gpt-oss-120b", R"({
      "model_type": "gpt_oss", "hidden_size": 2880, "vocab_size": 201088,
      "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
      "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 128,
      "num_experts_per_tok": 4, "attention_bias": true, "sliding_window": 128,
      "swiglu_limit": 7.0, "rope_theta": 150000,
      "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0,
                       "beta_slow": 1.0, "truncate": false,
                       "original_max_position_embeddings": 4096},
      "rms_norm_eps": 1e-05, "max_position_embeddings": 131072,
      "tie_word_embeddings": false, "hidden_act": "silu"})"},
    {"olmoe", "allenai/OLMoE-1B-7B-0924", R"({
      "model_type": "olmoe", "hidden_size": 2048, "vocab_size": 50304,
      "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
      "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8,
      "norm_topk_prob": false, "attention_bias": false, "clip_qkv": null,
      "rope_theta": 10000.0, "rope_scaling": null, "rms_norm_eps": 1e-05,
      "max_position_embeddings": 4096, "tie_word_embeddings": false, "hidden_act": "silu"})"},
};

}  // namespace

std::span<const PublishedModel> PublishedModels() { return kModels; }

const PublishedModel* FindPublishedModel(std::string_view name) {
  const auto found = std::ranges::find_if(
      kModels, [&](const PublishedModel& model) { return model.name == name; });
  return found == std::end(kModels) ? nullptr : found;
}

std::string PublishedConfig(const PublishedModel& model, uint32_t layers,
                            std::string_view overrides) {
  nlohmann::ordered_json config = nlohmann::ordered_json::parse(model.config);
  if (layers > 0) {
    config["num_hidden_layers"] = layers;
    // Of few layers the last still has experts.
    auto dense = config.find("first_k_dense_replace");
    if (dense != config.end()) *dense = std::min(dense->get<uint32_t>(), layers - 1);
  }
  config.update(nlohmann::ordered_json::parse(overrides));
  return config.dump(1);
}

}  // namespace moraine
