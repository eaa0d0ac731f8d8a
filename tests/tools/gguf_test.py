"""A GGUF imported by the moraine command: what the file says is what the store has, to the bit.

Usage: gguf_test.py MORAINE CHECKOUT MAKE_GGUF
"""
import array
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import gguf_types
import gguf_writer
from gguf_types import BF16, F16, F32, IQ4_NL, MXFP4, Q4_0, Q5_0, Q8_0
from gguf_writer import ARRAY, STRING, U32
from moraine_command import DEMO, FAILED, GOLDEN, OK, moraine

MAKE_GGUF = sys.argv.pop(1)
PAGE, TILE = 4096, {"q4": 576, "q8": 1088, "iq4_nl": 576, "mxfp4": 576}
ENCODING = {Q4_0: "q4", Q8_0: "q8", IQ4_NL: "iq4_nl", MXFP4: "mxfp4"}


def pages(size):
    return size + -size % PAGE


def blocks_of_tiles(encoding, tiles, rows, cols, first=0, stride=None):
    """A matrix of the store as GGUF's blocks, row by row, by the layout in src/compute/encoding.h.

    Tile (panel, t) begins at first + (panel * tiles a panel + t) * stride."""
    stride, per_panel = stride or TILE[encoding], -(-cols // 64)
    words = 8 if encoding == "q8" else 4
    blocks = []
    for row in range(rows):
        panel, r = divmod(row, 16)
        for group in range(cols // 32):
            t, half = divmod(group, 2)
            at = first + (panel * per_panel + t) * stride
            scale = at + half * 32 + r * 2
            word = at + 64 + half * words * 64 + r * 4
            blocks.append(scale_of_tile(encoding, tiles[scale:scale + 2]))
            blocks += [tiles[word + j * 64:word + j * 64 + 4] for j in range(words)]
    return b"".join(blocks)


def scale_of_tile(encoding, two):
    """MXFP4's exponent from half of the scale as bf16, where it is a power of two."""
    if encoding != "mxfp4":
        return two
    bits = int.from_bytes(two, "little")
    exponent = bits >> 7
    assert bits in (0x20, 0x40) if exponent == 0 else bits & 127 == 0, hex(bits)
    return bytes([bits.bit_length() - 6 if exponent == 0 else exponent + 1])


def q8_of_q4(blocks):
    """Q4_0 blocks as the Q8_0 blocks of the same values."""
    wide = []
    for at in range(0, len(blocks), 18):
        wide.append(blocks[at:at + 2])
        codes = blocks[at + 2:at + 18]
        wide.append(bytes((c & 15) - 8 & 255 for c in codes))
        wide.append(bytes((c >> 4) - 8 & 255 for c in codes))
    return b"".join(wide)


class GgufTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.checkpoint = gguf_writer.Checkpoint(DEMO)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def path(self, name):
        return os.path.join(self.scratch.name, self.id().split(".")[-1] + "." + name)

    def import_file(self, gguf, *options):
        """The store's directory, and the summary of the import."""
        if isinstance(gguf, gguf_writer.Gguf):
            path = self.path("gguf")
            gguf.write(path)
        else:
            path = gguf
        store = self.path("store")
        result = moraine("import", path, store, "--json", "--quiet", *options)
        self.assertEqual(result.returncode, OK, result.stderr)
        return store, json.loads(result.stdout)

    def refused(self, gguf, *words):
        path = self.path("gguf")
        gguf.write(path)
        result = moraine("import", path, self.path("store"), "--quiet")
        self.assertEqual(result.returncode, FAILED, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def evaluate(self, store, *options):
        result = moraine("eval", store, "--json", *options)
        self.assertEqual(result.returncode, OK, result.stderr)
        return json.loads(result.stdout)

    def packs(self, store):
        """Expert pack and dense pack without the page that has the store's uuid."""
        return [pathlib.Path(store, "packs", name).read_bytes()[PAGE:]
                for name in ("experts-000.pack", "dense-000.pack")]

    def check_experts(self, gguf, store, layers, gate_up, down):
        tensors = {name: (shape, kind, data) for name, shape, kind, data in gguf.tensors}
        pack, at = self.packs(store)[0], 0
        for layer in range(layers):
            matrices = {m: tensors[f"blk.{layer}.ffn_{m}_exps.weight"]
                        for m in ("gate", "up", "down")}
            experts, width, hidden = matrices["gate"][0]
            pair = 2 * -(-width // 16) * -(-hidden // 64) * TILE[gate_up]
            record = pages(pair + -(-hidden // 16) * -(-width // 64) * TILE[down])
            for expert in range(experts):
                tiles = pack[at:at + record]
                places = {"gate": (gate_up, width, hidden, 0, 2 * TILE[gate_up]),
                          "up": (gate_up, width, hidden, TILE[gate_up], 2 * TILE[gate_up]),
                          "down": (down, hidden, width, pair, None)}
                for matrix, (encoding, rows, cols, first, stride) in places.items():
                    _, kind, data = matrices[matrix]
                    size = len(data) // experts
                    expected = data[expert * size:(expert + 1) * size]
                    if ENCODING[kind] != encoding:
                        expected = q8_of_q4(expected)
                    found = blocks_of_tiles(encoding, tiles, rows, cols, first, stride)
                    self.assertTrue(found == expected, f"layer {layer} expert {expert} {matrix}")
                at += record
        self.assertEqual(at, len(pack))

    def check_embedding(self, gguf, store):
        name, (rows, cols), kind, data = gguf.tensors[0]
        self.assertEqual(name, "token_embd.weight")
        self.assertEqual(blocks_of_tiles(ENCODING[kind], self.packs(store)[1], rows, cols), data)

    def test_bf16_is_the_safetensors_import(self):
        store, summary = self.import_file(gguf_writer.gguf_of(self.checkpoint, lambda _: BF16))
        self.assertEqual(summary["notes"], [])
        other = self.path("other")
        self.assertEqual(moraine("import", DEMO, other, "--quiet").returncode, OK)
        self.assertTrue(self.packs(store) == self.packs(other))
        options = ("--reference", os.path.join(GOLDEN, "reference.json"),
                   "--chat", os.path.join(GOLDEN, "chat_eval.json"))
        self.assertEqual(self.evaluate(store, *options), self.evaluate(other, *options))

    def check_quantised(self, kind, encoding, least_right):
        gguf = gguf_writer.gguf_of(self.checkpoint, lambda _: kind)
        store, summary = self.import_file(gguf)
        self.assertEqual(len(summary["notes"]), 2)
        for note in summary["notes"]:
            self.assertIn(f"are {encoding}, exactly the checkpoint's", note)
        self.check_experts(gguf, store, self.checkpoint.config["num_hidden_layers"], encoding,
                           encoding)
        self.check_embedding(gguf, store)
        report = self.evaluate(store, "--chat", os.path.join(GOLDEN, "chat_eval.json"))
        self.assertGreaterEqual(report["chat"]["match"], least_right, report)
        answer = moraine("run", store, "What is 247 + 6?", "--temperature", "0", "--json",
                     "--quiet", "--ram-budget", "25%")
        self.assertEqual(json.loads(answer.stdout)["text"], "247 + 6 = 253.")

    # 200 questions: all right in bf16.
    def test_q8_0_is_carried_bit_for_bit(self):
        self.check_quantised(Q8_0, "q8", 198)

    def test_q4_0_is_carried_bit_for_bit(self):
        self.check_quantised(Q4_0, "q4", 190)

    def test_matrices_of_several_types_are_each_as_the_file_has_them(self):
        def kind_of(name):
            return {"token_embd": Q8_0, "blk.0.attn_k": F16, "blk.0.attn_v": BF16,
                    "blk.0.attn_output": Q8_0, "blk.0.ffn_up_exps": Q8_0}.get(name, Q4_0)
        gguf = gguf_writer.gguf_of(self.checkpoint, kind_of, layers=1)
        gguf.version = 2
        store, summary = self.import_file(gguf)
        # Gate and up take turns in one layout: the coarser one moves into the finer without loss.
        self.check_experts(gguf, store, 1, "q8", "q4")
        self.check_embedding(gguf, store)
        self.assertIn("experts are q8, exactly the checkpoint's Q4_0", summary["notes"])
        self.assertRegex("\n".join(summary["notes"]),
                         r"dense matrices are bf16, made from F16: lossy; relative RMS error of a "
                         r"sample: attention \S+ %")
        self.assertEqual(moraine("verify", store).returncode, OK)
        self.assertEqual(moraine("run", store, "Hi", "--max-tokens", "4").returncode, OK)

    def check_carried(self, kind, encoding):
        def kind_of(name):
            return kind if "exps" in name or name == "token_embd" else BF16
        gguf = gguf_writer.gguf_of(self.checkpoint, kind_of, layers=1)
        store, summary = self.import_file(gguf)
        self.check_experts(gguf, store, 1, encoding, encoding)
        self.check_embedding(gguf, store)
        name = {IQ4_NL: "IQ4_NL", MXFP4: "MXFP4"}[kind]
        self.assertEqual(summary["notes"], [f"{what} are {encoding}, exactly the checkpoint's {name}"
                                            for what in ("experts", "dense matrices")])
        self.assertEqual(moraine("run", store, "Hi", "--max-tokens", "4").returncode, OK)

    def test_mxfp4_is_carried_bit_for_bit(self):
        self.check_carried(MXFP4, "mxfp4")

    def test_iq4_nl_is_carried_bit_for_bit(self):
        self.check_carried(IQ4_NL, "iq4_nl")

    def test_other_types_are_the_floats_that_they_stand_for(self):
        """As q8 a file of any type gives the packs of a float32 file of its decoded values."""
        down = gguf_types.quantise(Q5_0, self.floats("down"))
        for name in ("Q4_1", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS",
                     "TQ1_0", "TQ2_0"):
            kind = getattr(gguf_types, name)
            small = gguf_writer.gguf_of(self.checkpoint, lambda _: BF16, layers=1)
            plain = gguf_writer.gguf_of(self.checkpoint, lambda _: BF16, layers=1)
            for i, (tensor, shape, _, data) in enumerate(small.tensors):
                if "ffn_down_exps" in tensor:
                    # Rows of 64 are no super-blocks: llama.cpp takes Q5_0 or the like, too.
                    small.tensors[i] = plain.tensors[i] = (tensor, shape, Q5_0, down)
                elif "_exps" in tensor or tensor == "token_embd.weight":
                    part = gguf_writer.floats_of_bf16(data[:len(data) // 32]).tolist()
                    blocks = gguf_types.quantise(kind, part) * 32
                    floats = array.array("f", gguf_types.decode(kind, blocks))
                    small.tensors[i] = (tensor, shape, kind, blocks)
                    plain.tensors[i] = (tensor, shape, F32, floats.tobytes())
            with self.subTest(name):
                stores = []
                for gguf, options in ((small, ()), (plain, ("--experts", "q8", "--dense", "q8"))):
                    if gguf is small:
                        options = ("--dense", "q8")
                    store, summary = self.import_file(gguf, *options)
                    stores.append(self.packs(store))
                    if gguf is small:
                        self.assertIn("experts are q8, exactly the checkpoint's Q5_0",
                                      summary["notes"])
                        self.assertRegex("\n".join(summary["notes"]),
                                         f"experts are q8, made from {name}: lossy; relative RMS "
                                         r"error of a sample: gate and up 0\.\d+ %")
                        self.assertEqual(
                            moraine("run", store, "Hi", "--max-tokens", "4").returncode, OK)
                    subprocess.run(["rm", "-r", store], check=True)
                self.assertTrue(stores[0] == stores[1])

    def floats(self, matrix):
        config = self.checkpoint.config
        return [x for e in range(config["num_experts"]) for x in gguf_writer.floats_of_bf16(
            self.checkpoint.tensors[f"model.layers.0.mlp.experts.{e}.{matrix}_proj.weight"][1])]

    def test_a_file_in_parts_is_one_model(self):
        whole = gguf_writer.gguf_of(self.checkpoint, lambda _: Q8_0, layers=1)
        store, _ = self.import_file(whole)
        half = len(whole.tensors) // 2
        names = [self.path(f"p-0000{i}-of-00002.gguf") for i in (1, 2)]
        for i, tensors in enumerate((whole.tensors[:half], whole.tensors[half:])):
            split = {"split.no": (gguf_writer.U16, i), "split.count": (gguf_writer.U16, 2),
                     "split.tensors.count": (gguf_writer.I32, len(whole.tensors))}
            metadata = {**whole.metadata, **split} if i == 0 else split
            gguf_writer.Gguf(metadata, tensors).write(names[i])
        other = self.path("other")
        result = moraine("import", names[0], other, "--quiet")
        self.assertEqual(result.returncode, OK, result.stderr)
        self.assertTrue(self.packs(store) == self.packs(other))

    def test_what_does_not_fit_is_refused_by_name(self):
        def small():
            return gguf_writer.gguf_of(self.checkpoint, lambda _: BF16, layers=1)
        gguf = small()
        gguf.tensors.append(("rope_freqs.weight", [32], F32, bytes(128)))
        gguf.tensors = [t for t in gguf.tensors if t[0] != "blk.0.ffn_down_exps.weight"]
        self.refused(gguf, "missing tensors (1)", "blk.0.ffn_down_exps.weight",
                     "unknown tensors (1)", "rope_freqs.weight")
        gguf = small()
        gguf.metadata["qwen3moe.expert_count"] = (U32, 31)
        self.refused(gguf, "'blk.0.ffn_gate_exps.weight' has shape [32, 64, 256], "
                           "expected [31, 64, 256]")
        gguf = small()
        gguf.metadata["general.architecture"] = (STRING, "llama")
        self.refused(gguf, "metadata key 'general.architecture' is \"llama\"")
        gguf = small()
        gguf.metadata["tokenizer.ggml.token_type"] = (ARRAY, (U32, [1]))
        self.refused(gguf, "'tokenizer.ggml.token_type' is an array of 1")

    def test_a_damaged_file_is_refused_by_name(self):
        gguf = gguf_writer.gguf_of(self.checkpoint, lambda _: BF16, layers=1)
        path = self.path("gguf")
        gguf.write(path)
        whole = pathlib.Path(path).read_bytes()
        header = len(gguf.header()[0])
        cuts = [0, 3, 4, 23, 24, *range(1000, header, header // 10), header, len(whole) - 1000]
        for cut in cuts:
            pathlib.Path(path).write_bytes(whole[:cut])
            result = moraine("import", path, self.path("store"))
            self.assertEqual(result.returncode, FAILED, result.stderr)
            self.assertIn(path, result.stderr)
            self.assertRegex(result.stderr, "ends at byte|but the file has|fit into")

    def test_make_gguf_writes_what_imports_and_runs(self):
        path = self.path("gguf")
        made = subprocess.run([MAKE_GGUF, path, "--shape", "tiny", "--layers", "3"],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(made.returncode, OK, made.stderr)
        store, summary = self.import_file(path)
        self.assertEqual(summary["notes"], ["experts are q4, exactly the checkpoint's Q4_0",
                                            "dense matrices are q4, exactly the checkpoint's Q4_0"])
        self.assertEqual(moraine("verify", store).returncode, OK)
        texts = set()
        for budget in ("100%", "25%"):
            result = moraine("run", store, "Hi", "--raw", "--ignore-eos", "--temperature", "0",
                         "--max-tokens", "16", "--ram-budget", budget, "--json", "--quiet")
            self.assertEqual(result.returncode, OK, result.stderr)
            texts.add(json.loads(result.stdout)["text"])
        self.assertEqual(len(texts), 1)


if __name__ == "__main__":
    unittest.main()
