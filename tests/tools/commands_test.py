"""The moraine command as a user meets it: exit codes, and errors that say what was expected.

Usage: commands_test.py MORAINE CHECKOUT
"""
import json
import os
import unittest

from moraine_command import DEMO, FAILED, GOLDEN, OK, USAGE, CommandTestCase, moraine


class CommandsTest(CommandTestCase):
    def test_a_wrong_command_line_is_a_usage_error_that_names_option_found_and_expected(self):
        self.expect(USAGE, ["'bogus'", "subcommand"], "bogus")
        self.expect(USAGE, ["--experts", "q5", "q4"], "import", DEMO, self.store, "--experts", "q5")
        for option, value, expected in [
                ("--policy", "mru", "sieve"), ("--io", "mmap", "pread"), ("--isa", "sse", "avx2"),
                ("--temperature", "warm", "a number"), ("--top-k", "-1", "a whole number"),
                ("--seed", "x", "a whole number"), ("--max-tokens", "1e99", "a whole number")]:
            with self.subTest(option=option):
                self.expect(USAGE, [option, value, expected], "run", self.store, "Hi", option, value)

    def test_a_budget_below_the_minimum_names_the_minimum(self):
        self.expect(FAILED, ["40.0 MiB", "the minimum is"], "run", self.store, "Hi",
                    "--ram-budget", "40MiB")
        self.expect(FAILED, ["2%", "the minimum is"], "run", self.store, "Hi", "--ram-budget", "2%")

    def test_the_same_import_again_succeeds_and_another_one_is_refused(self):
        again = self.expect(OK, [], "import", DEMO, self.store, "--experts", "q4", "--json")
        summary = json.loads(again.stdout)
        self.assertEqual(summary["resumed_bytes"], summary["bytes"])
        self.expect(FAILED, ["was q4, now q8"], "import", DEMO, self.store, "--experts", "q8")

    def test_an_import_says_at_once_that_the_tokenizer_is_unusable(self):
        checkpoint = os.path.join(self.scratch.name, "no_tokenizer")
        os.mkdir(checkpoint)
        for name in os.listdir(DEMO):
            if name != "tokenizer.json":
                os.symlink(os.path.join(DEMO, name), os.path.join(checkpoint, name))
        self.expect(OK, ["tokenizer.json", "will not work"], "import", checkpoint,
                    os.path.join(self.scratch.name, "weights_only"))

    def test_run_answers_and_its_json_is_valid(self):
        result = self.expect(OK, [], "run", self.store, "What is 247 + 6?", "--temperature", "0",
                             "--ram-budget", "25%", "--json", "--quiet")
        self.assertEqual(json.loads(result.stdout)["text"], "247 + 6 = 253.")

    def test_plan_predicts_for_a_store_a_checkpoint_a_config_and_a_published_model(self):
        config = os.path.join(DEMO, "config.json")
        for model, source in [(self.store, "store"), (DEMO, "checkpoint"), (config, "config"),
                              ("deepseek-v3", "config")]:
            with self.subTest(model=model):
                rates = ["--memory-gbps", "50", "--drive-gbps", "5", "--tops", "1"]
                result = self.expect(OK, [], "plan", model, *rates, "--ram-budget", "50%",
                                     "--ram-budget", "100%", "--max-context", "256", "--json")
                plan = json.loads(result.stdout)
                self.assertEqual(plan["source"], source)
                half, everything = plan["budgets"]
                self.assertAlmostEqual(half["resident_share"], 0.5, places=2)
                self.assertEqual(everything["read_bytes_per_token"], 0)
                bytes_of_token = plan["dense_bytes_per_token"] + plan["expert_bytes_per_token"]
                self.assertAlmostEqual(everything["decode_tok_per_s"], 50e9 / bytes_of_token, places=3)
        self.expect(FAILED, ["nosuch", "kimi-k2"], "plan", "nosuch")

    def test_plan_divides_vram(self):
        rates = ["--memory-gbps", "50", "--drive-gbps", "5", "--tops", "1", "--link-gbps", "25",
                 "--vram-gbps", "700", "--gpu-tflops", "1000000", "--max-context", "4096"]
        result = self.expect(OK, [], "plan", "qwen3-235b", *rates, "--vram-budget", "24GiB",
                             "--vram-budget", "512GiB", "--json")
        streamed, resident = json.loads(result.stdout)["vram"]
        self.assertLessEqual(streamed["dense_bytes"] + streamed["kv_bytes"] + streamed["scratch_bytes"] +
                             streamed["expert_bytes"] + streamed["ring_bytes"], 24 << 30)
        self.assertEqual(streamed["prefill_bound_by"], "link")
        self.assertAlmostEqual(streamed["prefill_tok_per_s"],
                               streamed["chunk"] * 25e9 / streamed["streamed_bytes"], places=3)
        self.assertGreater(streamed["hot_slots"], 100)
        self.assertLessEqual(streamed["dense_bytes"] + streamed["kv_bytes"] + streamed["scratch_bytes"] +
                             streamed["ring_bytes"] + streamed["hot_bytes"], 24 << 30)
        self.assertEqual(resident["hot_slots"], 0)
        self.assertEqual(resident["streamed_layers"], 0)
        self.assertEqual(resident["decode_bound_by"], "VRAM")
        half = self.expect(OK, [], "plan", "qwen3-235b", *rates, "--vram-budget", "24GiB",
                           "--ram-budget", "50%", "--json")
        self.assertEqual(json.loads(half.stdout)["vram"][0]["prefill_bound_by"], "drive")
        self.expect(FAILED, ["are needed"], "plan", self.store, *rates, "--vram-budget", "1MiB")
        self.expect(FAILED, ["sliding window"], "plan", "gpt-oss-120b", *rates,
                    "--vram-budget", "24GiB")

    def test_several_gpus_are_for_everything_on_them(self):
        self.expect(FAILED, ["--gpus needs --gpu"], "run", self.store, "x", "--gpus", "0,1")
        self.expect(FAILED, ["'0,': expected numbers"], "run", self.store, "x", "--gpu", "--gpus", "0,")
        self.expect(FAILED, ["names 2 GPUs", "--gpu-prefill and --gpu-hybrid use one"], "run", self.store, "x",
                    "--gpu-prefill", "--gpus", "0,1")

    def test_make_store_makes_a_store_that_verifies_and_runs(self):
        store = os.path.join(self.scratch.name, "synthetic")
        made = self.expect(OK, [], "bench", "make-store", store, "--shape", "tiny", "--layers", "4",
                           "--json", "--quiet")
        summary = json.loads(made.stdout)
        self.assertEqual(summary["experts"], 4 * 128)
        self.assertTrue(any("synthetic" in note for note in summary["notes"]))
        self.expect(OK, [], "verify", store)
        texts = set()
        for budget in ("100%", "10%"):
            result = self.expect(OK, [], "run", store, "Hi", "--temperature", "0", "--max-tokens",
                                 "16", "--ram-budget", budget, "--json", "--quiet")
            texts.add(json.loads(result.stdout)["text"])
        self.assertEqual(len(texts), 1)
        self.expect(USAGE, ["--shape", "gpt-5", "kimi-k2"], "bench", "make-store", store, "--shape",
                    "gpt-5")
        self.expect(FAILED, ["--layers 3", "no experts"], "bench", "make-store", store + "2",
                    "--shape", "deepseek-v3", "--layers", "3")

    def test_a_striped_store_runs_like_any_other_and_names_a_missing_drive(self):
        store, a, b = (os.path.join(self.scratch.name, name) for name in ("striped", "a", "b"))
        for arguments, words in [(("--stripe", a), ["at least two"]),
                                 (("--stripe", f"{a},{b}", "--weights", "1"), ["--weights", "2"])]:
            self.expect(FAILED, words, "import", DEMO, store, "--experts", "q4", *arguments)
        self.expect(OK, [], "import", DEMO, store, "--experts", "q4", "--stripe", f"{a},{b}",
                    "--weights", "2,1", "--quiet")
        self.assertTrue(os.path.exists(os.path.join(b, "experts-001.pack")))
        result = self.expect(OK, [], "run", store, "What is 247 + 6?", "--temperature", "0",
                             "--ram-budget", "25%", "--json", "--quiet")
        self.assertEqual(json.loads(result.stdout)["text"], "247 + 6 = 253.")
        os.rename(b, b + "-away")
        self.expect(FAILED, [os.path.join(b, "experts-001.pack"), "missing"], "verify", store)

    def test_bench_io_reads_the_store_and_stats_compare_a_run_with_it(self):
        self.expect(USAGE, ["subcommand"], "bench")
        self.expect(FAILED, ["/absent"], "bench", "io", "/absent")
        self.expect(FAILED, ["--chunk 5KB", "4 KiB"], "bench", "io", self.store, "--chunk", "5KB")
        result = self.expect(OK, [], "bench", "io", self.store, "--json", "--seconds", "0.1",
                             "--rounds", "2", "--no-fio", "--depth", "1,4", "--chunk", "8KiB,0",
                             "--verify", "--ablation", "--save")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual(len(lines), 4 * 10)
        self.assertEqual({line["depth"] for line in lines}, {1, 4})
        self.assertEqual(len({line["request_bytes"] for line in lines}), 2)
        for line in lines:
            self.assertGreater(line["gb_per_s"], 0)
            self.assertGreaterEqual(line["record_p99_us"], line["record_p50_us"])
            self.assertIsNone(line["fio"])
        self.expect(OK, [], "run", self.store, "What is 2 + 2?", "--ram-budget", "10%", "--quiet")
        stats = self.expect(OK, [], "stats", "--store", self.store)
        drive = stats.stdout[stats.stdout.index("max%"):].splitlines()[1].split()
        self.assertGreater(float(drive[1]), 0)  # the share of what was measured

    def test_bench_kernels_prints_a_line_for_every_case(self):
        self.expect(USAGE, ["--isa"], "bench", "kernels", "--isa", "mmx")
        result = self.expect(OK, [], "bench", "kernels", "--json", "--gib", "0.0625", "--threads", "2",
                             "--repetitions", "1", "--encoding", "q4", "--tokens", "1", "128",
                             "--matrix", "experts", "--isa", "avx2")
        barrier, gemv, gemm = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual((barrier["bench"], barrier["threads"]), ("barrier", 2))
        common = ["bench", "encoding", "isa", "threads"]
        self.assertEqual(list(gemv)[:7], common + ["gb_per_s", "peak_gb_per_s", "fraction"])
        self.assertEqual(list(gemm)[:7], common + ["tops", "peak_tops", "fraction"])
        self.assertEqual([gemv[key] for key in common], ["gemv", "q4", "avx2", 2])
        self.expect(FAILED, ["--gib 0.0625", "1048576 positions"], "bench", "kernels", "--matrix",
                    "attention", "--positions", "1048576", "--gib", "0.0625")
        result = self.expect(OK, [], "bench", "kernels", "--json", "--gib", "0.0625", "--threads", "2",
                             "--repetitions", "1", "--tokens", "1", "16", "--matrix", "attention",
                             "--isa", "avx2", "--kv", "q8", "--positions", "512")
        _, token, tokens = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([token[key] for key in common], ["attention", "q8", "avx2", 2])
        self.assertEqual((token["tokens"], tokens["tokens"]), (1, 16))
        for line, value, peak in ((gemv, "gb_per_s", "peak_gb_per_s"), (gemm, "tops", "peak_tops"),
                                  (token, "gb_per_s", "peak_gb_per_s"),
                                  (tokens, "tops", "peak_tops")):
            half = 0.0006  # all three are rounded to three digits
            self.assertGreaterEqual(line["fraction"] + half,
                                    (line[value] - half) / (line[peak] + half))
            self.assertLessEqual(line["fraction"] - half,
                                 (line[value] + half) / max(line[peak] - half, 1e-9))

    def test_doctor_looks_at_a_store_or_a_directory_and_leaves_nothing_behind(self):
        result = moraine("doctor", self.store, "--json", "--seconds", "0.3")
        diagnosis = json.loads(result.stdout)
        self.assertEqual(result.returncode, OK if diagnosis["ok"] else FAILED)
        self.assertTrue(diagnosis["store"])
        self.assertEqual(len(diagnosis["curve"]), 16)
        checks = {check["check"]: check for check in diagnosis["checks"]}
        for name in ("filesystem", "direct_io", "free_space", "io_uring", "memlock", "memory",
                     "governor", "huge_pages", "numa", "simd", "swap", "drive_speed"):
            self.assertIn(checks[name]["status"], ("ok", "warning", "problem", "unknown"))
        self.assertEqual(diagnosis["ok"],
                         all(check["status"] != "problem" for check in checks.values()))
        directory = os.path.join(self.scratch.name, "empty")
        os.mkdir(directory)
        looked = moraine("doctor", directory, "--no-measure")
        self.assertIn("filesystem", looked.stdout)
        self.assertEqual(os.listdir(directory), [])
        self.expect(FAILED, ["--save needs a store"], "doctor", directory, "--save")
        self.expect(FAILED, ["/absent"], "doctor", "/absent")

    def test_doctor_calls_memory_a_problem(self):
        if not os.path.isdir("/dev/shm"):
            self.skipTest("no tmpfs at /dev/shm")
        result = moraine("doctor", "/dev/shm", "--no-measure", "--json")
        self.assertEqual(result.returncode, FAILED)
        problems = [check["check"] for check in json.loads(result.stdout)["checks"]
                    if check["status"] == "problem"]
        self.assertIn("filesystem", problems)

    def test_a_mirrored_store_reads_both_copies_and_verify_names_the_bad_one(self):
        store, mirror = (os.path.join(self.scratch.name, name) for name in ("mirrored", "mirror"))
        self.expect(FAILED, ["--weights", "2"], "import", DEMO, store, "--experts", "q4", "--mirror",
                    mirror, "--weights", "1")
        self.expect(OK, [], "import", DEMO, store, "--experts", "q4", "--mirror", mirror,
                    "--weights", "2,1", "--quiet")
        result = self.expect(OK, [], "verify", store, "--json")
        self.assertEqual(json.loads(result.stdout)["copies"], 2)
        copy = os.path.join(mirror, "experts-000.pack")
        with open(copy, "r+b") as pack:
            pack.seek(4096)
            pack.write(b"rotten")
        result = self.expect(FAILED, [], "verify", store)
        for word in ("bad: " + copy, "layer 0 expert 0", "experts-000.pack is right"):
            self.assertIn(word, result.stdout)
        result = self.expect(OK, [], "run", store, "What is 247 + 6?", "--temperature", "0",
                             "--ram-budget", "25%", "--json", "--quiet")
        self.assertEqual(json.loads(result.stdout)["text"], "247 + 6 = 253.")
        os.rename(mirror, mirror + "-away")
        self.expect(FAILED, [copy, "missing", "DRIVES"], "run", store, "Hi")

    def test_a_full_disk_behind_stdout_is_an_error(self):
        with open("/dev/full", "w") as full:
            self.expect(FAILED, ["standard output"], "inspect", self.store, stdout=full)

    def test_eval_digest_is_the_same_whatever_the_budget_reader_policy_and_kernels(self):
        digests = set()
        for options in [[], ["--ram-budget", "2.4%"], ["--ram-budget", "10%", "--policy", "lru"],
                        ["--ram-budget", "25%", "--policy", "sieve", "--io", "pread"],
                        ["--ram-budget", "10%", "--io", "simulated", "--io-seed", "7"],
                        ["--threads", "1", "--isa", "scalar"]]:
            result = self.expect(OK, [], "eval", self.store, "--json", "--reference",
                                 os.path.join(GOLDEN, "reference.json"), *options)
            digests.add(json.loads(result.stdout)["digest"])
        self.assertEqual(len(digests), 1)


if __name__ == "__main__":
    unittest.main()
