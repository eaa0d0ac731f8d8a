#!/usr/bin/env python3
"""Writes a Qwen3-MoE checkpoint of a given shape with random bf16 weights, to measure imports and streaming
at sizes that matter without downloading anything. What it generates is noise; its speed is real.

    bench/make_checkpoint.py DIR --layers 4          # Qwen3-30B-A3B's dimensions, 4 of its 48 layers: 5.4 GB

The tokenizer and template are those of models/demo, so that `moraine run` works.
"""
import argparse
import json
import os
import pathlib
import shutil

# High bytes of bf16 values of magnitude 0.008 to 0.03, both signs: a trained model's range, no NaN.
HIGH_BYTES = bytes((0x3C, 0xBC)) * 128
BLOCK = 16 << 20


def write_random(file, byte_count):
    while byte_count > 0:
        size = min(BLOCK, byte_count)
        block = bytearray(os.urandom(size))
        block[1::2] = bytes(block[1::2]).translate(HIGH_BYTES)
        file.write(block)
        byte_count -= size


def layer_tensors(layer, a):
    prefix = f"model.layers.{layer}."
    yield prefix + "input_layernorm.weight", [a.hidden]
    for name, heads in (("q", a.heads), ("k", a.kv_heads), ("v", a.kv_heads)):
        yield f"{prefix}self_attn.{name}_proj.weight", [heads * a.head_dim, a.hidden]
    yield prefix + "self_attn.o_proj.weight", [a.hidden, a.heads * a.head_dim]
    for name in ("q_norm", "k_norm"):
        yield f"{prefix}self_attn.{name}.weight", [a.head_dim]
    yield prefix + "post_attention_layernorm.weight", [a.hidden]
    yield prefix + "mlp.gate.weight", [a.experts, a.hidden]
    for expert in range(a.experts):
        for name in ("gate", "up"):
            yield f"{prefix}mlp.experts.{expert}.{name}_proj.weight", [a.intermediate, a.hidden]
        yield f"{prefix}mlp.experts.{expert}.down_proj.weight", [a.hidden, a.intermediate]


def write_shard(path, tensors):
    header, offset = {}, 0
    for name, shape in tensors:
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        write_random(file, offset)
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    for name, default in (("layers", 4), ("experts", 128), ("top-k", 8), ("hidden", 2048),
                          ("intermediate", 768), ("heads", 32), ("kv-heads", 4), ("head-dim", 128),
                          ("vocab", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    a.directory.mkdir(parents=True)
    demo = pathlib.Path(__file__).resolve().parent.parent / "models/demo"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, a.directory / name)
    config = {
        "model_type": "qwen3_moe", "hidden_size": a.hidden, "vocab_size": a.vocab,
        "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim,
        "num_hidden_layers": a.layers, "num_experts": a.experts, "num_experts_per_tok": a.top_k,
        "intermediate_size": 3 * a.hidden, "moe_intermediate_size": a.intermediate,
        "norm_topk_prob": True, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960, "tie_word_embeddings": True, "eos_token_id": a.vocab - 1}
    (a.directory / "config.json").write_text(json.dumps(config, indent=1))

    weight_map, total = {}, 0
    shards = [[("model.embed_tokens.weight", [a.vocab, a.hidden]), ("model.norm.weight", [a.hidden])]]
    shards += [list(layer_tensors(layer, a)) for layer in range(a.layers)]
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_shard(a.directory / name, tensors)
        weight_map.update({tensor: name for tensor, _ in tensors})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (a.directory / "model.safetensors.index.json").write_text(json.dumps(index))
    print(f"{a.directory}: {total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    main()
