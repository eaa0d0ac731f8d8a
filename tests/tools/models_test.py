"""moraine models, and the names that it lists, as a user meets them: caches in a scratch home.

Usage: models_test.py MORAINE CHECKOUT
"""
import hashlib
import json
import os
import re
import shutil
import subprocess
import unittest

from gguf_families_test import Fixture, gguf_of
from moraine_command import DEMO, FAILED, MORAINE, OK, USAGE, CommandTestCase

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS")


class ModelsTest(CommandTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.before = dict(os.environ)
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ["HOME"] = cls.path("home")
        os.environ["MORAINE_STORES"] = cls.path("stores")
        os.environ["OLLAMA_MODELS"] = cls.path("home/.ollama/models")
        os.environ["MORAINE_CONFIG"] = "/dev/null"
        cls.hub = cls.path("home/.cache/huggingface/hub")
        cls.snapshot = cls.add_repository("moraine/demo", os.listdir(DEMO))
        half = [name for name in os.listdir(DEMO) if not name.startswith("model-00002")]
        cls.add_repository("moraine/half", half)
        with open(os.path.join(cls.hub, "models--moraine--half/blobs/x.incomplete"), "w"):
            pass
        cls.add_dense_model()
        cls.add_ollama("olmoe")

    @classmethod
    def tearDownClass(cls):
        os.environ.clear()
        os.environ.update(cls.before)
        super().tearDownClass()

    @classmethod
    def add_repository(cls, name, files):
        repository = os.path.join(cls.hub, "models--" + name.replace("/", "--"))
        snapshot = os.path.join(repository, "snapshots", COMMIT)
        for directory in ("blobs", "refs", "snapshots/" + COMMIT):
            os.makedirs(os.path.join(repository, directory))
        for file in files:
            os.symlink(os.path.join(DEMO, file), os.path.join(repository, "blobs", file))
            os.symlink(os.path.join("../../blobs", file), os.path.join(snapshot, file))
        with open(os.path.join(repository, "refs/main"), "w") as ref:
            ref.write(COMMIT)
        return snapshot

    @classmethod
    def add_dense_model(cls):
        """A family that is not there, with the demo's weights."""
        snapshot = cls.add_repository("meta/llama", [f for f in os.listdir(DEMO) if f != "config.json"])
        with open(os.path.join(snapshot, "config.json"), "w") as config:
            json.dump({"model_type": "llama", "hidden_size": 64}, config)

    @classmethod
    def add_ollama(cls, fixture):
        root = os.environ["OLLAMA_MODELS"]
        manifests = os.path.join(root, "manifests/registry.ollama.ai/library", fixture)
        os.makedirs(manifests)
        os.makedirs(os.path.join(root, "blobs"))
        file = cls.path("model.gguf")
        gguf_of(Fixture(fixture), fixture).write(file)
        with open(file, "rb") as gguf:
            digest = hashlib.sha256(gguf.read()).hexdigest()
        cls.blob = os.path.join(root, "blobs", "sha256-" + digest)
        os.rename(file, cls.blob)
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + digest,
                 "size": os.path.getsize(cls.blob)}
        with open(os.path.join(manifests, "latest"), "w") as manifest:
            json.dump({"schemaVersion": 2, "layers": [layer]}, manifest)

    def listed(self, *arguments):
        result = self.expect(OK, [], "models", "--json", *arguments)
        return {model["name"]: model for model in json.loads(result.stdout)["models"]}

    def test_what_is_here_is_listed_with_what_can_be_done_with_it(self):
        models = self.listed()
        self.assertEqual(set(models), {"hf:moraine/demo", "hf:moraine/half", "hf:meta/llama",
                                       "ollama:olmoe:latest"} | {n for n in models if n.startswith("store:")})
        demo = models["hf:moraine/demo"]
        self.assertEqual((demo["format"], demo["usable"], demo["reason"]), ("safetensors", True, None))
        self.assertEqual(demo["architecture"], "qwen3_moe")
        self.assertEqual(demo["path"], self.snapshot)
        self.assertEqual(demo["bytes"], sum(os.path.getsize(os.path.join(DEMO, name))
                                            for name in os.listdir(DEMO) if name.endswith(".safetensors")))
        half = models["hf:moraine/half"]
        self.assertFalse(half["usable"])
        self.assertIn("a download has not ended (1 unfinished file)", half["reason"])
        self.assertIn("model-00002-of-00002.safetensors", half["reason"])
        llama = models["hf:meta/llama"]
        self.assertEqual((llama["architecture"], llama["usable"]), ("llama", False))
        self.assertIn("llama", llama["reason"])
        olmoe = models["ollama:olmoe:latest"]
        self.assertEqual((olmoe["format"], olmoe["architecture"], olmoe["usable"]), ("gguf", "olmoe", True))
        self.assertEqual((olmoe["path"], olmoe["bytes"]), (self.blob, os.path.getsize(self.blob)))
        table = self.expect(OK, [], "models").stdout
        for word in ("NAME", "hf:moraine/demo", "import", self.snapshot, "unfinished file"):
            self.assertIn(word, table)

    def test_a_directory_of_stores_can_be_given(self):
        stores = self.listed(self.scratch.name)
        self.assertEqual(stores["store:store"]["path"], self.store)
        self.assertTrue(stores["store:store"]["usable"])
        self.assertEqual(stores["store:store"]["source"], "demo")

    def test_nothing_here_is_no_error_and_says_where_it_looked(self):
        os.environ["HOME"], home = self.path("nobody"), os.environ["HOME"]
        ollama = os.environ.pop("OLLAMA_MODELS")
        os.environ["MORAINE_STORES"], stores = self.path("none"), os.environ["MORAINE_STORES"]
        try:
            self.expect(OK, ["no models in", self.path("nobody/.lmstudio/models")], "models")
        finally:
            os.environ.update(HOME=home, OLLAMA_MODELS=ollama, MORAINE_STORES=stores)

    def test_names_are_imported_planned_and_run(self):
        store = self.path("stores/by-name")
        self.expect(FAILED, ["neither a path nor a model", "moraine models"], "import", "hf:no/such", store)
        self.expect(USAGE, ["hf:moraine/demo is a checkpoint", "moraine import hf:moraine/demo"],
                    "run", "moraine/demo", "Hi")
        self.expect(FAILED, ["model-00002-of-00002.safetensors"], "import", "hf:moraine/half", store)
        files = sorted(os.listdir(self.snapshot))
        self.expect(OK, [], "import", "hf:moraine/demo", store, "--experts", "q4", "--quiet")
        self.assertEqual(sorted(os.listdir(self.snapshot)), files)
        listed = self.listed()["store:by-name"]
        self.assertEqual((listed["source"], listed["usable"]), ("demo", True))  # not the snapshot's checksum
        # The store by its name, and by that of the checkpoint it was made from.
        for name in ("store:by-name", "by-name", "hf:moraine/demo"):
            result = self.expect(OK, [], "run", name, "What is 247 + 6?", "--temperature", "0", "--ram-budget", "25%",
                                 "--json", "--quiet")
            self.assertEqual(json.loads(result.stdout)["text"], "247 + 6 = 253.", name)
        self.assertIn("source", self.expect(OK, [], "inspect", "by-name").stdout)
        rates = ["--memory-gbps", "50", "--drive-gbps", "5", "--tops", "1", "--json", "--max-context", "64"]
        for name, source in (("hf:moraine/demo", "checkpoint"), ("by-name", "store"), ("ollama:olmoe", "checkpoint")):
            plan = json.loads(self.expect(OK, [], "plan", name, *rates).stdout)
            self.assertEqual(plan["source"], source, name)

    def test_names_are_what_can_be_typed(self):
        def names(*arguments):
            return self.expect(OK, [], "models", "--names", *arguments).stdout.split()
        self.assertEqual(names("checkpoints"), ["demo", "half", "llama", "olmoe:latest"])
        self.assertEqual(names("checkpoints", "--beginning", "hf:m"), ["hf:meta/llama", "hf:moraine/demo", "hf:moraine/half"])
        stores = names("stores", self.scratch.name, "--beginning", "st")  # and what others have imported
        self.assertIn("store", stores)
        self.assertEqual([name for name in stores if not name.startswith("st")], [])
        self.expect(USAGE, ["--names"], "models", "--names", "all")

    def test_bash_completes_names(self):
        script = self.expect(OK, [], "completion", "bash").stdout

        def complete(line):
            # As readline calls it: a colon is a word of its own.
            words = re.findall(r":|[^\s:]+", line) + ([""] if line.endswith(" ") else [])
            program = script + "\nCOMP_WORDS=(" + " ".join(f"'{w}'" for w in [MORAINE, *words[1:]]) + ")\n" \
                f"COMP_CWORD={len(words) - 1}\nCOMP_LINE='{line}'\nCOMP_POINT={len(line)}\n_moraine\n" \
                'printf "%s\\n" "${COMPREPLY[@]}"\n'
            result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60,
                                    cwd=self.path("empty"))
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            return [word for word in result.stdout.split() if not word.startswith("-")]

        os.makedirs(self.path("empty"), exist_ok=True)
        self.assertEqual(complete("moraine import "), ["demo", "half", "llama", "olmoe:latest"])
        self.assertEqual(complete("moraine import d"), ["demo"])
        self.assertEqual(complete("moraine import hf:m"), ["meta/llama", "moraine/demo", "moraine/half"])  # what follows the colon
        self.assertEqual(complete("moraine import olmoe:l"), ["latest"])
        self.assertEqual(complete("moraine plan hf:moraine/d"), ["moraine/demo"])
        self.assertEqual(complete("moraine run hf:"), [])  # stores only
        self.assertEqual(complete("moraine doctor d"), [])

    @unittest.skipIf(shutil.which("fish") is None, "fish is not installed")
    def test_fish_completes_names(self):
        script = self.path("moraine.fish")
        with open(script, "w") as file:
            file.write(self.expect(OK, [], "completion", "fish").stdout)
        os.makedirs(self.path("empty"), exist_ok=True)
        environment = dict(os.environ, PATH=os.path.dirname(os.path.abspath(MORAINE)) + ":" + os.environ["PATH"])
        result = subprocess.run(["fish", "--no-config", "-c", f"source {script}; complete -C 'moraine import hf:m'"],
                                capture_output=True, text=True, timeout=60, env=environment, cwd=self.path("empty"))
        self.assertEqual([line.split("\t")[0] for line in result.stdout.splitlines()],
                         ["hf:meta/llama", "hf:moraine/demo", "hf:moraine/half"], result.stderr)

    def test_a_gguf_file_of_ollama_is_imported_by_its_name(self):
        store = self.path("from-ollama")
        self.expect(OK, [], "import", "ollama:olmoe", store, "--quiet")
        inspected = json.loads(self.expect(OK, [], "inspect", store, "--json").stdout)
        self.assertEqual(inspected["source"], {"format": "gguf", "description": "olmoe:latest"})


if __name__ == "__main__":
    unittest.main()
