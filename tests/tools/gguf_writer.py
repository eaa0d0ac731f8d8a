"""Writes GGUF files from the demo model's safetensors: independent of what Moraine reads them with.

Only the standard library. Number formats: gguf_types.py.
"""
import array
import json
import os
import pathlib
import struct

from gguf_types import BF16, F16, F32, Q8_0, quantise

U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64 = range(13)
PACKED = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", FLOAT32: "<f", BOOL: "<?",
          U64: "<Q", I64: "<q", FLOAT64: "<d"}


class Checkpoint:
    """bf16 tensors of a directory of safetensors, as bytes, with config and tokenizer."""

    def __init__(self, directory):
        self.tensors = {}
        for name in sorted(os.listdir(directory)):
            if name.endswith(".safetensors"):
                self._add(os.path.join(directory, name))
        self.config, self.tokenizer, self.tokenizer_config = (
            json.loads(pathlib.Path(directory, name).read_text(encoding="utf-8"))
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json"))

    def _add(self, path):
        data = pathlib.Path(path).read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        for name, entry in json.loads(data[8:8 + length]).items():
            if name == "__metadata__":
                continue
            assert entry["dtype"] == "BF16", name
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            self.tensors[name] = (entry["shape"], data[begin:end])


def floats_of_bf16(data):
    halves = array.array("H", data)
    wide = array.array("I", [half << 16 for half in halves])
    return array.array("f", wide.tobytes())


def encode(kind, data):
    """bf16 bytes as a tensor of another type."""
    if kind == BF16:
        return data
    floats = floats_of_bf16(data)
    if kind == F32:
        return floats.tobytes()
    if kind == F16:
        return struct.pack(f"<{len(floats)}e", *floats)
    return quantise(kind, floats.tolist())


def pack_string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pack_value(kind, value):
    if kind == STRING:
        return pack_string(value)
    if kind == ARRAY:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(
            pack_value(element, one) for one in values)
    return struct.pack(PACKED[kind], value)


class Gguf:
    """Metadata {key: (kind, value)} and tensors [(name, shape outermost first, kind, bytes)]."""

    def __init__(self, metadata, tensors, version=3):
        self.metadata, self.tensors, self.version = dict(metadata), list(tensors), version

    def header(self):
        alignment = self.metadata.get("general.alignment", (U32, 32))[1]
        parts = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))]
        for key, (kind, value) in self.metadata.items():
            parts += [pack_string(key), struct.pack("<I", kind), pack_value(kind, value)]
        offset = 0
        for name, shape, kind, data in self.tensors:
            parts += [pack_string(name), struct.pack("<I", len(shape)),
                      struct.pack(f"<{len(shape)}Q", *reversed(shape)),
                      struct.pack("<IQ", kind, offset)]
            offset += len(data) + -len(data) % alignment
        header = b"".join(parts)
        return header + bytes(-len(header) % alignment), alignment

    def write(self, path):
        header, alignment = self.header()
        with open(path, "wb") as file:
            file.write(header)
            for _, _, _, data in self.tensors:
                file.write(data + bytes(-len(data) % alignment))


def metadata_of(checkpoint, layers):
    config = checkpoint.config
    metadata = {"general.architecture": (STRING, "qwen3moe"),
                "general.name": (STRING, "demo \"quoted\"\n")}
    for key, kind, value in [
            ("block_count", U32, layers),
            ("context_length", U32, config["max_position_embeddings"]),
            ("embedding_length", U32, config["hidden_size"]),
            ("feed_forward_length", U32, config["intermediate_size"]),
            ("attention.head_count", U32, config["num_attention_heads"]),
            ("attention.head_count_kv", U32, config["num_key_value_heads"]),
            ("attention.key_length", U32, config["head_dim"]),
            ("attention.value_length", U32, config["head_dim"]),
            ("attention.layer_norm_rms_epsilon", FLOAT32, config["rms_norm_eps"]),
            ("rope.freq_base", FLOAT32, config["rope_theta"]),
            ("expert_count", U32, config["num_experts"]),
            ("expert_used_count", U32, config["num_experts_per_tok"]),
            ("expert_feed_forward_length", U32, config["moe_intermediate_size"])]:
        metadata["qwen3moe." + key] = (kind, value)
    tokenizer = checkpoint.tokenizer
    tokens, types = [""] * config["vocab_size"], [5] * config["vocab_size"]
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = text, 1
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]], types[token["id"]] = token["content"], 3 if token["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    for key, kind, value in [
            ("model", STRING, "gpt2"), ("pre", STRING, "qwen2"),
            ("tokens", ARRAY, (STRING, tokens)), ("token_type", ARRAY, (I32, types)), ("merges", ARRAY, (STRING, merges)),
            ("eos_token_id", U32, config["eos_token_id"]),
            ("padding_token_id", U32, config["bos_token_id"]),
            ("bos_token_id", U32, config["bos_token_id"]), ("add_bos_token", BOOL, False)]:
        metadata["tokenizer.ggml." + key] = (kind, value)
    metadata["tokenizer.chat_template"] = (STRING, checkpoint.tokenizer_config["chat_template"])
    return metadata


LAYER_TENSORS = {  # GGUF's name -> transformers' name, whether it stays a float
    "attn_norm": ("input_layernorm", True), "attn_q": ("self_attn.q_proj", False),
    "attn_k": ("self_attn.k_proj", False), "attn_v": ("self_attn.v_proj", False),
    "attn_output": ("self_attn.o_proj", False), "attn_q_norm": ("self_attn.q_norm", True),
    "attn_k_norm": ("self_attn.k_norm", True), "ffn_norm": ("post_attention_layernorm", True),
    "ffn_gate_inp": ("mlp.gate", True)}


def gguf_of(checkpoint, kind_of, layers=None):
    """The model as llama.cpp's converter lays it out. kind_of(name) says a matrix's type; norms and
    routers are F32."""
    config = checkpoint.config
    layers = layers or config["num_hidden_layers"]
    tensors = []

    def add(name, source, is_float=False):
        shape, data = checkpoint.tensors[source + ".weight"]
        kind = F32 if is_float else kind_of(name)
        tensors.append((name + ".weight", shape, kind, encode(kind, data)))

    add("token_embd", "model.embed_tokens")
    for layer in range(layers):
        source = f"model.layers.{layer}."
        for name, (theirs, is_float) in LAYER_TENSORS.items():
            add(f"blk.{layer}.{name}", source + theirs, is_float)
        for matrix in ("gate", "up", "down"):
            experts = [checkpoint.tensors[f"{source}mlp.experts.{e}.{matrix}_proj.weight"]
                       for e in range(config["num_experts"])]
            name = f"blk.{layer}.ffn_{matrix}_exps"
            kind = kind_of(name)
            tensors.append((name + ".weight", [len(experts), *experts[0][0]], kind,
                            b"".join(encode(kind, data) for _, data in experts)))
    add("output_norm", "model.norm", True)
    if not config["tie_word_embeddings"]:
        add("output", "lm_head")
    return Gguf(metadata_of(checkpoint, layers), tensors)
