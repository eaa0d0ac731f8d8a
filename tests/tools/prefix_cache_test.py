"""moraine serve --prefix-cache-dir: over restarts, kill -9, a full disk and directories that are none.

Usage: prefix_cache_test.py MORAINE CHECKOUT
"""
import http.client
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import unittest

from moraine_command import FAILED, MORAINE, CommandTestCase

BLOCK_BYTES = 516 * 1024  # of the demo model: 8 layers, keys and values, 2 heads of 64, float32, 64 tokens
SEED = 11


class PrefixCacheTest(CommandTestCase):
    def setUp(self):
        self.cache = self.path("cache")
        self.addCleanup(shutil.rmtree, self.cache, ignore_errors=True)

    def serve(self, *options, cache=None, **popen):
        server = subprocess.Popen(
            [MORAINE, "serve", self.store, "--port", "0", "--max-context", "2048", "--prefix-cache-dir",
             cache or self.cache, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.stderr.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        server.port = int(re.search(r"127\.0\.0\.1:(\d+)", server.stdout.readline()).group(1))
        return server

    def ask(self, server, prompt, **fields):
        """Text and how many tokens of the prompt were not computed."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return (answer["choices"][0]["text"],
                answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    def kv(self, server):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.request("GET", "/stats?layers=0")
        stats = json.loads(connection.getresponse().read())
        connection.close()
        return stats["kv"]

    def stop(self, server):
        server.send_signal(signal.SIGTERM)
        self.assertEqual(server.wait(60), 0)

    @staticmethod
    def prompt(count, seed):
        rng = random.Random(seed)
        return [rng.randrange(4000) for _ in range(count)]

    def test_a_restart_finds_what_was_computed(self):
        prompt = self.prompt(1000, 1)
        server = self.serve()
        text, cached = self.ask(server, prompt)
        self.assertEqual(cached, 0)
        self.stop(server)
        server = self.serve()
        self.assertEqual(self.ask(server, prompt), (text, 960))
        kv = self.kv(server)
        self.assertEqual((kv["restored_tokens"], kv["disk_blocks"], kv["disk_failures"]), (960, 15, 0))
        self.stop(server)
        # Other keys and values: nothing of it fits.
        server = self.serve("--kv", "bf16")
        self.assertEqual(self.ask(server, prompt)[1], 0)
        self.stop(server)
        self.assertEqual(len(os.listdir(self.cache)), 2)

    def test_what_a_kill_leaves_is_right_or_not_there(self):
        rng = random.Random(SEED)
        prompts = [self.prompt(600, seed) for seed in range(4)]
        server = self.serve(cache=self.path("other"))
        alone = [self.ask(server, prompt)[0] for prompt in prompts]
        self.stop(server)
        restored = 0
        for round_ in range(6):
            server = self.serve("--prefix-cache-disk-budget", str(16 * BLOCK_BYTES))
            for i in rng.sample(range(4), 2):
                text, _ = self.ask(server, prompts[i])
                self.assertEqual(text, alone[i], f"seed {SEED}, round {round_}, prompt {i}")
            restored += self.kv(server)["restored_tokens"]
            # Right after an answer blocks are being written.
            server.send_signal(signal.SIGKILL)
            server.wait()
            for name in os.listdir(self.cache):
                self.assertLessEqual(os.path.getsize(os.path.join(self.cache, name)),
                                     16 * BLOCK_BYTES + 4096)
        self.assertGreater(restored, 0)

    def test_a_full_disk_keeps_what_fits(self):
        prompt = self.prompt(1900, 2)
        server = self.serve()
        text, _ = self.ask(server, prompt)
        self.stop(server)
        shutil.rmtree(self.cache)
        # Python ignores SIGXFSZ, and so does the child.
        limit = 10 * BLOCK_BYTES + 4096
        server = self.serve(restore_signals=False,
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        self.assertEqual(self.ask(server, prompt), (text, 0))
        self.assertEqual(self.ask(server, self.prompt(1900, 3))[1], 0)
        self.assertEqual(self.ask(server, prompt)[0], text)
        self.stop(server)
        self.assertIn("file size limit", server.stderr.read())
        server = self.serve()
        again, cached = self.ask(server, prompt)
        self.assertEqual(again, text)
        self.assertLessEqual(cached, 10 * 64)
        self.stop(server)

    def test_a_directory_that_cannot_be_used_is_said_and_gone_without(self):
        with open(self.path("file"), "w") as file:
            file.write("no directory")
        server = self.serve(cache=self.path("file"))
        self.assertEqual(self.ask(server, self.prompt(200, 4))[1], 0)
        self.assertEqual(self.ask(server, self.prompt(200, 4))[1], 192)
        self.stop(server)
        self.assertIn("the prefix cache stays in memory only", server.stderr.read())

    def test_a_budget_that_is_none_is_refused(self):
        self.expect(FAILED, ["--prefix-cache-disk-budget", "much"], "serve", self.store, "--port", "0",
                    "--prefix-cache-dir", self.cache, "--prefix-cache-disk-budget", "much")


if __name__ == "__main__":
    unittest.main()
