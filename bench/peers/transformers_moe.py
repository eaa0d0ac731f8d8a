"""Prefill and decode by transformers (grouped_mm, sdpa, bf16) on the shape of Qwen3-30B-A3B or DeepSeek-V2-Lite
with random weights: what bench/gpu_model.sh is compared with.

    python3 transformers_moe.py [--model qwen3-30b-a3b|deepseek-v2-lite] [--tokens 8192] [--layers N]

Needs 61 GB of VRAM (DeepSeek-V2-Lite 32). Prints one JSON line: tokens a second of a prefill (median of 5 by events, logits of
the last position only) and of decoding at batch 1 behind 64 tokens.
"""
import argparse
import json
import statistics

import torch
import transformers
from transformers import AutoModelForCausalLM, DeepseekV2Config, Qwen3MoeConfig


def qwen3_30b_a3b(layers):
    return Qwen3MoeConfig(
        hidden_size=2048, num_hidden_layers=layers or 48, num_attention_heads=32, num_key_value_heads=4,
        head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        intermediate_size=6144, vocab_size=151936, max_position_embeddings=40960, norm_topk_prob=True,
        tie_word_embeddings=False)


def deepseek_v2_lite(layers):
    return DeepseekV2Config(
        hidden_size=2048, num_hidden_layers=layers or 27, num_attention_heads=16, num_key_value_heads=16,
        q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, moe_intermediate_size=1408,
        intermediate_size=10944, first_k_dense_replace=1, n_group=1, topk_group=1, topk_method="greedy",
        norm_topk_prob=False, routed_scaling_factor=1.0, vocab_size=102400,
        max_position_embeddings=163840, tie_word_embeddings=False)


MODELS = {"qwen3-30b-a3b": qwen3_30b_a3b, "deepseek-v2-lite": deepseek_v2_lite}


def make_model(config):
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa",
            experts_implementation="grouped_mm")
    return model.eval()


def elapsed_ms(run):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--model", choices=MODELS, default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--decode", type=int, default=16)
    a = parser.parse_args()
    config = MODELS[a.model](a.layers)
    model = make_model(config)
    ids = torch.randint(0, config.vocab_size, (1, a.tokens), device="cuda")
    times = [elapsed_ms(lambda: model(ids, use_cache=True, logits_to_keep=1)) for _ in range(7)][2:]
    out = model(ids[:, :64], use_cache=True, logits_to_keep=1)

    def decode():
        nonlocal out
        for _ in range(a.decode):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)

    decode()
    decode_ms = elapsed_ms(decode)
    print(json.dumps({
        "peer": "transformers " + transformers.__version__ + ", torch " + torch.__version__,
        "experts": getattr(model.config, "_experts_implementation", "?"),
        "attention": getattr(model.config, "_attn_implementation", "?"),
        "model": a.model, "layers": config.num_hidden_layers, "prompt_tokens": a.tokens,
        "prefill_tok_per_s": round(a.tokens / statistics.median(times) * 1e3, 1),
        "decode_tok_per_s": round(a.decode / decode_ms * 1e3, 2)}), flush=True)


if __name__ == "__main__":
    main()
