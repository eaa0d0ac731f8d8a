"""GGUF files of every architecture, written from the fixtures as llama.cpp's converter lays them out:
imported, they give the logits of transformers.

Usage: gguf_families_test.py MORAINE CHECKOUT
"""
import json
import math
import os
import pathlib
import random
import struct
import tempfile
import unittest

from gguf_types import BF16, F32
from gguf_writer import BOOL, FLOAT32, STRING, U32, Gguf, floats_of_bf16
from moraine_command import CHECKOUT, OK, moraine

FIXTURES = os.path.join(CHECKOUT, "tests/golden/fixtures")

# transformers' name in a layer -> GGUF's, without ".weight" where both have it.
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "linear_attn.in_proj_ba": "ssm_ba", "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out"}
WHOLE_NAMES = {"self_attn.sinks": "attn_sinks.weight",
               "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
               "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
               "linear_attn.dt_bias": "ssm_dt.bias"}
MODEL_NAMES = {"model.embed_tokens.weight": "token_embd.weight",
               "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
EXPERTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down",
           "w1": "gate", "w3": "up", "w2": "down"}
# What the converter writes besides what all have: GGUF's key -> (kind, config's key).
KEYS = {
    "olmoe": {"feed_forward_length": "intermediate_size", "expert_count": "num_experts"},
    "glm4moe": {"feed_forward_length": "intermediate_size", "expert_count": "n_routed_experts",
                "expert_feed_forward_length": "moe_intermediate_size",
                "expert_shared_count": "n_shared_experts",
                "leading_dense_block_count": "first_k_dense_replace",
                "expert_weights_scale": "routed_scaling_factor",
                "expert_weights_norm": "norm_topk_prob"},
    "gpt-oss": {"expert_count": "num_local_experts", "attention.sliding_window": "sliding_window",
                "expert_feed_forward_length": "intermediate_size"},
    "qwen3next": {"feed_forward_length": "intermediate_size", "expert_count": "num_experts",
                  "expert_feed_forward_length": "moe_intermediate_size",
                  "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
                  "ssm.conv_kernel": "linear_conv_kernel_dim",
                  "ssm.state_size": "linear_key_head_dim",
                  "ssm.group_count": "linear_num_key_heads",
                  "ssm.time_step_rank": "linear_num_value_heads"},
    "qwen35moe": {"expert_count": "num_experts",
                  "expert_feed_forward_length": "moe_intermediate_size",
                  "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
                  "ssm.conv_kernel": "linear_conv_kernel_dim",
                  "ssm.state_size": "linear_key_head_dim",
                  "ssm.group_count": "linear_num_key_heads",
                  "ssm.time_step_rank": "linear_num_value_heads"},
    "minimax-m2": {"expert_count": "num_local_experts",
                   "feed_forward_length": "intermediate_size",
                   "expert_feed_forward_length": "intermediate_size"},
    "deepseek2": {"feed_forward_length": "intermediate_size", "expert_count": "n_routed_experts",
                  "expert_feed_forward_length": "moe_intermediate_size",
                  "expert_shared_count": "n_shared_experts",
                  "leading_dense_block_count": "first_k_dense_replace",
                  "expert_weights_scale": "routed_scaling_factor",
                  "expert_weights_norm": "norm_topk_prob", "expert_group_count": "n_group",
                  "expert_group_used_count": "topk_group",
                  "attention.kv_lora_rank": "kv_lora_rank",
                  "rope.dimension_count": "qk_rope_head_dim"}}


GATED_DELTA = ("qwen3next", "qwen35moe")


class Fixture:
    def __init__(self, name):
        self.directory = os.path.join(FIXTURES, name)
        self.config = json.loads(pathlib.Path(self.directory, "config.json").read_text())
        data = pathlib.Path(self.directory, "model.safetensors").read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        self.tensors = {
            key: (entry["shape"], data[8 + length + entry["data_offsets"][0]:
                                       8 + length + entry["data_offsets"][1]])
            for key, entry in json.loads(data[8:8 + length]).items() if key != "__metadata__"}


def with_value_heads(fixture, count, seed):
    """The same model but for Gated DeltaNet layers of `count` value heads, with random weights."""
    rng, config = random.Random(seed), fixture.config
    before, dim = config["linear_num_value_heads"], config["linear_value_head_dim"]
    config["linear_num_value_heads"] = count
    for name, (shape, data) in fixture.tensors.items():
        axes = [i for i, n in enumerate(shape) if n in (before, before * dim)]
        if ".linear_attn." not in name or name.endswith(".norm.weight"):
            continue
        shape = list(shape)
        if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
            shape[0] += (count - before) * dim
        else:
            axis = axes[-1] if name.endswith("out_proj.weight") else axes[0]
            shape[axis] = shape[axis] // before * count
        # Logarithms of decays from 2 on survive exponential and logarithm to the bit: an error of half an
        # ulp of exp(x) is a quarter of one of x.
        values = [rng.uniform(2, 2.75) if name.endswith("A_log") else rng.gauss(0, 0.1)
                  for _ in range(math.prod(shape))]
        # bf16: the upper half of a float.
        fixture.tensors[name] = (shape, b"".join(struct.pack("<f", x)[2:] for x in values))
    return fixture


def write_safetensors(fixture, directory):
    os.makedirs(directory)
    header, offset = {}, 0
    for name, (shape, data) in fixture.tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape,
                        "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    pathlib.Path(directory, "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text +
        b"".join(data for _, data in fixture.tensors.values()))
    pathlib.Path(directory, "config.json").write_text(json.dumps(fixture.config))


def kind_of(value):
    return BOOL if isinstance(value, bool) else FLOAT32 if isinstance(value, float) else U32


def metadata_of(config, architecture):
    rope = config["rope_parameters"]
    values = {"block_count": config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)
              * (architecture == "glm4moe"),
              "context_length": config["max_position_embeddings"],
              "embedding_length": config["hidden_size"], "vocab_size": config["vocab_size"],
              "attention.head_count": config["num_attention_heads"],
              "attention.head_count_kv": config["num_key_value_heads"],
              "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
              "expert_used_count": config["num_experts_per_tok"],
              "rope.freq_base": float(rope["rope_theta"])}
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if architecture != "olmoe":
        values.update({"attention.key_length": head_dim, "attention.value_length": head_dim})
    for key, source in KEYS[architecture].items():
        if config.get(source) is not None:
            values[key] = config[source]
    if "expert_weights_scale" in values:
        values["expert_weights_scale"] = float(values["expert_weights_scale"])
    if architecture == "glm4moe":
        values.update({"expert_gating_func": 2,
                       "nextn_predict_layers": config["num_nextn_predict_layers"],
                       "rope.dimension_count": head_dim // 2})
    if architecture == "minimax-m2":
        # The fixture rotates whole heads (docs/families.md).
        values.update({"expert_gating_func": 2, "rope.dimension_count": head_dim})
    if architecture in GATED_DELTA:
        factor = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.25))
        values.update({"rope.dimension_count": int(head_dim * factor), "ssm.inner_size":
                       config["linear_num_value_heads"] * config["linear_value_head_dim"]})
        full = [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
        values["full_attention_interval"] = full[0] + 1
        if architecture == "qwen35moe":
            # A layer that predicts further tokens is counted with the others.
            values.update({"block_count": values["block_count"] + 1, "nextn_predict_layers": 1})
    if architecture == "deepseek2":
        rank, rope_dim = config["kv_lora_rank"], config["qk_rope_head_dim"]
        values.update({
            "attention.head_count_kv": 1, "attention.key_length": rank + rope_dim,
            "attention.value_length": rank, "attention.value_length_mla": config["v_head_dim"],
            "attention.key_length_mla": config["qk_nope_head_dim"] + rope_dim,
            "expert_gating_func": 1 if config["model_type"] == "deepseek_v2" else 2})
        if config.get("q_lora_rank"):
            values["attention.q_lora_rank"] = config["q_lora_rank"]
    if rope["rope_type"] == "yarn":
        values.update({"rope.scaling.factor": float(rope["factor"]), "rope.scaling.type": "yarn",
                       "rope.scaling.original_context_length":
                           rope["original_max_position_embeddings"]})
        if "mscale_all_dim" in rope:
            values["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    metadata = {"general.architecture": (STRING, architecture)}
    for key, value in values.items():
        kind = STRING if isinstance(value, str) else kind_of(value)
        metadata[f"{architecture}.{key}"] = (kind, value)
    return metadata


def rows_of(data, rows):
    size = len(data) // rows
    return [data[at:at + size] for at in range(0, len(data), size)]


def transposed(data, rows, cols):
    """A bf16 matrix of rows x cols, columns first."""
    return b"".join(data[2 * (r * cols + c):2 * (r * cols + c) + 2]
                    for c in range(cols) for r in range(rows))


def expert_tensors(fixture, prefix, count):
    """{"gate": (shape, bytes), ...} of a layer, biases under "gate bias", ..."""
    found = {}
    stacked = fixture.tensors.get(prefix + "mlp.experts.gate_up_proj")
    if stacked is None:
        for theirs, ours in EXPERTS.items():
            names = [name for name in (f"{prefix}{block}.experts.0.{theirs}.weight"
                                       for block in ("mlp", "block_sparse_moe"))
                     if name in fixture.tensors]
            if names:
                parts = [fixture.tensors[names[0].replace(".experts.0.", f".experts.{e}.")]
                         for e in range(count)]
                found[ours] = ([count, *parts[0][0]], b"".join(data for _, data in parts))
        return found
    # gpt-oss: [experts, inputs, outputs], gate and up in turns.
    (_, hidden, both), data = stacked
    matrices = [rows_of(transposed(part, hidden, both), both) for part in rows_of(data, count)]
    for first, name in enumerate(("gate", "up")):
        found[name] = ([count, both // 2, hidden],
                       b"".join(b"".join(rows[first::2]) for rows in matrices))
        bias = rows_of(fixture.tensors[prefix + "mlp.experts.gate_up_proj_bias"][1], count)
        found[name + " bias"] = ([count, both // 2], b"".join(
            b"".join(rows_of(part, both)[first::2]) for part in bias))
    (_, width, hidden), data = fixture.tensors[prefix + "mlp.experts.down_proj"]
    found["down"] = ([count, hidden, width], b"".join(
        transposed(part, width, hidden) for part in rows_of(data, count)))
    found["down bias"] = fixture.tensors[prefix + "mlp.experts.down_proj_bias"]
    return found


def split_kv_b(config, data):
    """attn_k_b, each head's transposed, and attn_v_b."""
    heads, nope, value = (config[key] for key in
                          ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    rank = config["kv_lora_rank"]
    k_b, v_b = [], []
    for part in rows_of(data, heads):
        rows = rows_of(part, nope + value)
        k_b.append(transposed(b"".join(rows[:nope]), nope, rank))
        v_b += rows[nope:]
    return {"attn_k_b": ([heads, rank, nope], b"".join(k_b)),
            "attn_v_b": ([heads, value, rank], b"".join(v_b))}


def split_qkvz(config, data):
    """All of q, all of k, all of v; and all of z."""
    heads = config["linear_num_key_heads"]
    values = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
    widths = [config["linear_key_head_dim"]] * 2 + [values] * 2
    parts = [[], [], [], []]
    for head in rows_of(data, heads):
        rows = rows_of(head, sum(widths))
        for part, width in zip(parts, widths):
            part += rows[:width]
            rows = rows[width:]
    q, k, v, z = parts
    hidden = config["hidden_size"]
    return {"attn_qkv": ([len(q + k + v), hidden], b"".join(q + k + v)),
            "attn_gate": ([len(z), hidden], b"".join(z))}


def tiled(config, data, first, width):
    """Items of `width` bytes, one a value head, from byte `first` on: those of a key head together ->
    the first of each key head, then the second of each."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    items = [data[first + i * width:first + (i + 1) * width] for i in range(values)]
    assert len(data) == first + values * width
    order = [k * (values // keys) + j for j in range(values // keys) for k in range(keys)]
    return data[:first] + b"".join(items[i] for i in order)


def tiled_tensor(config, rest, shape, data):
    """A tensor of Qwen3.5's Gated DeltaNet, value heads in the order of llama.cpp."""
    hidden, dim = 2 * config["hidden_size"], config["linear_value_head_dim"]
    keys = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    name = rest.removeprefix("linear_attn.")
    if name == "in_proj_qkv.weight":
        return tiled(config, data, keys * hidden, dim * hidden)
    if name == "in_proj_z.weight":
        return tiled(config, data, 0, dim * hidden)
    if name in ("in_proj_a.weight", "in_proj_b.weight"):
        return tiled(config, data, 0, hidden)
    if name in ("A_log", "dt_bias"):
        return tiled(config, data, 0, 2)
    if name == "conv1d.weight":
        taps = 2 * config["linear_conv_kernel_dim"]
        return tiled(config, data, keys * taps, dim * taps)
    if name == "out_proj.weight":
        return b"".join(tiled(config, row, 0, 2 * dim) for row in rows_of(data, shape[0]))
    return data


def mapped(data, function):
    return struct.pack(f"<{len(data) // 2}f", *map(function, floats_of_bf16(data)))


def join_qkv(tensors, blk):
    """Queries, keys and values, and their biases, in one tensor each."""
    for suffix in ("weight", "bias"):
        parts = [next((t for t in tensors if t[0] == f"{blk}attn_{part}.{suffix}"), None) for part in "qkv"]
        if parts[0] is None:
            continue
        for part in parts:
            tensors.remove(part)
        rows = sum(shape[0] for _, shape, _, _ in parts)
        tensors.append((f"{blk}attn_qkv.{suffix}", [rows, *parts[0][1][1:]], parts[0][2],
                        b"".join(data for *_, data in parts)))


def gguf_of(fixture, architecture, splits_kv_b=True, splits_qkvz=True, joins_gate_up=False, joins_qkv=False):
    config, tensors = fixture.config, []

    def add(name, shape, data, matrix):
        # The converter keeps vectors and routers in float32; it leaves dimensions of 1 out.
        if not matrix:
            data = floats_of_bf16(data).tobytes()
            # Norms of Qwen3-Next and 3.5 are what is added to 1.
            if architecture in GATED_DELTA and "norm" in name and "ssm" not in name:
                data = struct.pack(f"<{len(data) // 4}f",
                                   *(x + 1 for x in struct.unpack(f"<{len(data) // 4}f", data)))
        tensors.append((name, [n for n in shape if n != 1], BF16 if matrix else F32, data))

    def add_dense(name, shape, data):
        if name == "attn_kv_b" and splits_kv_b:
            for part, (part_shape, part_data) in split_kv_b(config, data).items():
                add(f"{blk}{part}.weight", part_shape, part_data, True)
            return
        is_vector = len(shape) == 1 or "ffn_gate_inp" in name or name in (
            "ssm_ba", "ssm_alpha", "ssm_beta", "ssm_conv1d")
        add(f"{blk}{name}.weight", shape, data, not is_vector)

    for name, (shape, data) in fixture.tensors.items():
        if name in MODEL_NAMES:
            add(MODEL_NAMES[name], shape, data, len(shape) > 1)
    for layer in range(config["num_hidden_layers"]):
        prefix, blk = f"model.layers.{layer}.", f"blk.{layer}."
        experts = expert_tensors(fixture, prefix, expert_count_of(config))
        if joins_gate_up:
            (count, rows, cols), gate = experts.pop("gate")
            _, up = experts.pop("up")
            experts["gate_up"] = ([count, 2 * rows, cols], b"".join(
                a + b for a, b in zip(rows_of(gate, count), rows_of(up, count))))
        for name, (shape, data) in experts.items():
            matrix, *bias = name.split()
            add(f"{blk}ffn_{matrix}_exps.{'bias' if bias else 'weight'}", shape, data, not bias)
        for name, (shape, data) in fixture.tensors.items():
            if not name.startswith(prefix) or ".experts." in name:
                continue
            rest = name[len(prefix):]
            if architecture == "qwen35moe" and rest.startswith("linear_attn."):
                data = tiled_tensor(config, rest, shape, data)
            if rest in WHOLE_NAMES:
                add(blk + WHOLE_NAMES[rest], shape, data, False)
                continue
            if rest == "linear_attn.A_log":
                tensors.append((blk + "ssm_a", shape, F32, mapped(data, lambda x: -math.exp(x))))
                continue
            if rest == "linear_attn.in_proj_qkvz.weight" and not splits_qkvz:
                add(blk + "ssm_in.weight", shape, data, True)
                continue
            if rest == "linear_attn.in_proj_qkvz.weight":
                for part, (part_shape, part_data) in split_qkvz(config, data).items():
                    add(f"{blk}{part}.weight", part_shape, part_data, True)
                continue
            stem, suffix = rest.rsplit(".", 1)
            ours = NAMES[stem]
            if stem == "post_attention_layernorm" and architecture in (
                    "glm4moe", "gpt-oss", *GATED_DELTA):
                ours = "post_attention_norm"
            if suffix == "bias":
                add(f"{blk}{ours}.bias", shape, data, False)
            else:
                add_dense(ours, shape, data)
        if joins_qkv:
            join_qkv(tensors, blk)
    if architecture == "qwen35moe":
        blk = f"blk.{config['num_hidden_layers']}.nextn."
        add(blk + "eh_proj.weight", [1, 32], bytes(64), True)
    return Gguf(metadata_of(config, architecture), tensors)


def expert_count_of(config):
    return config.get("num_experts") or config.get("num_local_experts") or config["n_routed_experts"]


class GgufFamiliesTest(unittest.TestCase):
    def check(self, name, architecture, **options):
        fixture = Fixture(name)
        with tempfile.TemporaryDirectory() as scratch:
            path, store = os.path.join(scratch, "a.gguf"), os.path.join(scratch, "store")
            gguf_of(fixture, architecture, **options).write(path)
            result = moraine("import", path, store, "--quiet")
            self.assertEqual(result.returncode, OK, result.stderr)
            result = moraine("eval", store, "--json", "--fixture", fixture.directory)
            self.assertEqual(result.returncode, OK, result.stderr)
            report = json.loads(result.stdout)
            self.assertLess(report["logits_max_abs_error"], 2e-3)
            self.assertEqual(report["greedy"]["match"], 1)

    def test_olmoe(self):
        self.check("olmoe", "olmoe")

    def test_glm4_moe(self):
        self.check("glm4_moe", "glm4moe")

    def test_gpt_oss(self):
        self.check("gpt_oss", "gpt-oss")

    def test_queries_keys_and_values_in_one_tensor(self):
        self.check("glm4_moe", "glm4moe", joins_qkv=True)
        self.check("gpt_oss", "gpt-oss", joins_qkv=True)  # with biases

    def test_minimax_m2(self):
        self.check("minimax_m2", "minimax-m2")

    def test_deepseek_v2(self):
        self.check("deepseek_v2", "deepseek2")

    def test_deepseek_v2_lite(self):
        self.check("deepseek_v2_lite", "deepseek2")

    def test_deepseek_v3(self):
        self.check("deepseek_v3", "deepseek2")

    def test_deepseek_v3_of_an_older_converter(self):
        """Keys and values of the latent in one matrix."""
        self.check("deepseek_v3", "deepseek2", splits_kv_b=False)

    def test_qwen3_next(self):
        self.check("qwen3_next", "qwen3next")

    def test_qwen3_next_of_an_older_converter(self):
        """q, k, v and z in one matrix, by key head."""
        self.check("qwen3_next", "qwen3next", splits_qkvz=False)

    def test_qwen3_5_moe(self):
        self.check("qwen3_5_moe", "qwen35moe")

    def test_qwen3_5_moe_with_gate_and_up_in_one_tensor(self):
        self.check("qwen3_5_moe", "qwen35moe", joins_gate_up=True)

    def test_qwen3_5_moe_of_three_value_heads_a_key_head(self):
        """Another order than its own inverse: the GGUF computes what the safetensors do."""
        fixture = with_value_heads(Fixture("qwen3_5_moe"), 6, seed=35)
        digests = []
        with tempfile.TemporaryDirectory() as scratch:
            source, path = os.path.join(scratch, "safetensors"), os.path.join(scratch, "a.gguf")
            write_safetensors(fixture, source)
            gguf_of(fixture, "qwen35moe").write(path)
            for model in (source, path):
                store = model + ".store"
                result = moraine("import", model, store, "--quiet")
                self.assertEqual(result.returncode, OK, result.stderr)
                result = moraine("eval", store, "--json", "--fixture", fixture.directory)
                self.assertEqual(result.returncode, OK, result.stderr)
                digests.append(json.loads(result.stdout)["digest"])
        self.assertEqual(*digests)

    def test_kimi_k2(self):
        self.check("kimi_k2", "deepseek2")


if __name__ == "__main__":
    unittest.main()
