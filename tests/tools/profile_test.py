"""Profiles as a user meets them: `moraine profile`, `moraine warm`, and what a kill -9 leaves.

Usage: profile_test.py MORAINE CHECKOUT
"""
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import unittest

from moraine_command import FAILED, MORAINE, OK, CommandTestCase


class ProfileTest(CommandTestCase):
    def setUp(self):
        self.store = self.path(self.id())  # its own, hiding the class's
        shutil.copytree(type(self).store, self.store)

    def run_model(self, *options):
        return json.loads(self.expect(OK, [], "run", self.store, "What is 247 + 6?", "--temperature",
                                      "0", "--ram-budget", "25%", "--json", "--quiet",
                                      *options).stdout)

    def profiles(self):
        return {p["name"]: p for p in
                json.loads(self.expect(OK, [], "profile", "list", self.store, "--json").stdout)}

    def test_what_a_run_learns_is_listed_shown_moved_and_deleted(self):
        self.expect(FAILED, ["no profile 'default'", "--order static"], "warm", self.store)
        self.run_model("--profile", "sums")
        self.assertEqual(list(self.profiles()), ["sums"])
        self.assertGreater(self.profiles()["sums"]["tokens"], 10)
        shown = self.expect(OK, [], "profile", "show", self.store, "sums").stdout
        self.assertIn("layer  experts", shown)
        file = os.path.join(self.scratch.name, "sums.json")
        self.expect(OK, [], "profile", "export", self.store, "sums", file)
        self.expect(OK, [], "profile", "import", self.store, file, "again")
        for name in ("sums", "again"):
            self.expect(OK, [], "profile", "export", self.store, name, file + "." + name)
        with open(file + ".sums") as one, open(file + ".again") as other:
            self.assertEqual(one.read(), other.read())
        self.expect(OK, [], "profile", "delete", self.store, "sums")
        self.assertEqual(list(self.profiles()), ["again"])
        self.expect(FAILED, ["sums"], "profile", "delete", self.store, "sums")
        self.expect(FAILED, ["sums"], "profile", "show", self.store, "sums")
        self.expect(FAILED, ["profile", "'a/b'"], "run", self.store, "Hi", "--profile", "a/b")

    def test_a_file_that_is_cut_or_another_models_changes_nothing(self):
        self.run_model()
        file = os.path.join(self.scratch.name, "export.json")
        self.expect(OK, [], "profile", "export", self.store, "default", file)
        with open(file) as stream:
            whole = stream.read()
        other = json.loads(whole)
        other["model"]["routers"] = "0123456789abcdef"
        for text, words in [(whole[:len(whole) // 2], ["JSON"]), ("", ["JSON"]),
                            (json.dumps(other), ["another model's", "routers"])]:
            with open(file, "w") as stream:
                stream.write(text)
            before = self.profiles()
            self.expect(FAILED, [file, *words], "profile", "import", self.store, file, "default")
            self.assertEqual(self.profiles(), before)

    def test_warm_fills_the_cache_in_every_order(self):
        prompts = os.path.join(self.scratch.name, "prompts.txt")
        with open(prompts, "w") as stream:
            stream.write("What is 247 + 6? What is 12 + 30? " * 20)
        filled = []
        for options in (["--order", "static"], ["--prompts", prompts], ["--order", "profile"]):
            summary = json.loads(self.expect(OK, [], "warm", self.store, "--ram-budget", "25%",
                                             "--json", *options).stdout)
            filled.append(summary["resident_experts"])
        # What fits: 25 % of 256 experts less prefill's ring.
        self.assertGreater(filled[0], 40)
        self.assertEqual(filled, [filled[0]] * 3)
        self.assertGreater(self.profiles()["default"]["tokens"], 200)

    def test_a_run_begins_with_what_the_last_one_had(self):
        def misses(result):
            stats = result["stats"]["residency"]
            return sum(stats[phase]["cold_miss"] for phase in ("prefill", "decode"))
        first, second = self.run_model(), self.run_model()
        self.assertEqual(first["text"], second["text"])
        self.assertLess(misses(second), misses(first))

    def test_a_kill_in_the_middle_of_a_generation_costs_seconds_at_most(self):
        server = subprocess.Popen([MORAINE, "serve", self.store, "--port", "0", "--ram-budget", "25%"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        port = int(re.search(r"serves .* at http://127.0.0.1:(\d+)", server.stdout.readline())[1])
        killed = threading.Event()
        generations = []  # status, for each event that was streamed

        def generate():
            body = json.dumps({"messages": [{"role": "user", "content": "Tell me a story."}],
                               "max_tokens": 1800, "stream": True, "ignore_eos": True})
            while not killed.is_set():
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    connection.request("POST", "/v1/chat/completions", body,
                                       {"content-type": "application/json"})
                    response = connection.getresponse()
                    while (line := response.readline()) and b"[DONE]" not in line:
                        generations.append(response.status)
                except (OSError, http.client.HTTPException):
                    pass  # by the kill
                finally:
                    connection.close()

        client = threading.Thread(target=generate)
        client.start()
        self.addCleanup(client.join)
        self.addCleanup(killed.set)
        deadline = time.monotonic() + 60
        seen = []  # each save that was seen while the server generated
        while len(seen) < 2:
            self.assertLess(time.monotonic(), deadline, "nothing was saved during a generation")
            saved = self.profiles().get("default", {"tokens": 0})["tokens"]
            if saved > (seen[-1] if seen else 0):
                seen.append(saved)
        at_kill = len(generations)
        server.send_signal(signal.SIGKILL)
        server.wait()
        killed.set()
        self.assertGreater(at_kill, 0)
        self.assertEqual(set(generations), {200})

        self.expect(OK, [], "verify", self.store)
        kept = self.profiles()["default"]
        self.assertGreaterEqual(kept["tokens"], seen[-1])
        self.assertGreater(kept["warm_set"], 40)
        self.assertEqual(self.run_model()["text"], "247 + 6 = 253.")
        self.assertGreater(self.profiles()["default"]["tokens"], kept["tokens"])


if __name__ == "__main__":
    unittest.main()
