"""moraine tune: what it prints and remembers, and who uses it when.

Usage: tune_test.py MORAINE CHECKOUT
"""
import json
import os
import unittest

from moraine_command import DEMO, FAILED, OK, USAGE, CommandTestCase, moraine

SHORT = ["--seconds", "20", "--rounds", "1", "--prompt-tokens", "200", "--tokens", "8"]


class TuneTest(CommandTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        os.environ["XDG_CACHE_HOME"] = cls.path("cache")
        os.environ["MORAINE_CONFIG"] = cls.path("config.toml")
        cls.configure("")
        tuned = moraine("tune", cls.store, "--ram-budget", "25%", "--json", *SHORT)
        assert tuned.returncode == OK, tuned.stderr
        cls.report = json.loads(tuned.stdout)

    @classmethod
    def tearDownClass(cls):
        del os.environ["XDG_CACHE_HOME"], os.environ["MORAINE_CONFIG"]
        super().tearDownClass()

    @classmethod
    def configure(cls, text):
        with open(cls.path("config.toml"), "w") as file:
            file.write(text)

    def setUp(self):
        self.configure("")

    def remember(self, key=None, text=None, **settings):
        """Has these settings, in the user's cache, newer than what the store has."""
        record = dict(self.report["found"], settings=settings)
        record["saved_unix_s"] += 1000
        record["key"] = dict(record["key"], **(key or {}))
        inspected = json.loads(self.expect(OK, [], "inspect", self.store, "--json").stdout)
        directory = self.path("cache/moraine/tuning")
        os.makedirs(directory, exist_ok=True)
        file = os.path.join(directory, inspected["store_uuid"] + ".json")
        self.addCleanup(lambda: os.path.exists(file) and os.remove(file))
        with open(file, "w") as out:
            out.write(text or json.dumps({"version": 1, "records": [record]}))
        return file

    def run_demo(self, *arguments):
        return self.expect(OK, [], "run", self.store, "What is 247 + 6?", "--ram-budget", "25%",
                           "--temperature", "0", "--quiet", *arguments)

    def test_every_setting_has_one_chosen_candidate_and_figures(self):
        settings = {row["setting"] for row in self.report["rows"]}
        expected = {"prefill-chunk", "lookahead"} | ({"threads"} if os.cpu_count() > 1 else set())
        self.assertLessEqual(expected, settings)
        for setting in settings:
            rows = [row for row in self.report["rows"] if row["setting"] == setting]
            self.assertEqual(sum(row["chosen"] for row in rows), 1, rows)
            self.assertEqual(sum(row["default"] for row in rows), 1, rows)
        if self.report["complete"]:
            self.assertTrue(all(row["tok_per_s"] for row in self.report["rows"] if row["chosen"]))
        found = self.report["found"]
        self.assertGreater(found["prefill_tok_per_s"], 0)
        self.assertGreater(found["decode_tok_per_s"], 0)
        self.assertEqual(found["key"]["RAM budget"], "25%")
        self.assertEqual(self.report["saved_in"], "the store")
        shown = json.loads(self.expect(OK, [], "tune", self.store, "--ram-budget", "25%", "--show",
                                       "--json").stdout)
        self.assertEqual([record["fits"] for record in shown], [True])
        self.assertEqual(shown[0]["settings"], found["settings"])

    def test_what_is_given_is_not_varied(self):
        result = self.expect(OK, [], "tune", self.store, "--ram-budget", "100%", "--threads", "1", "--json",
                             *SHORT)
        self.assertEqual({row["setting"] for row in json.loads(result.stdout)["rows"]}, {"prefill-chunk"})
        self.expect(FAILED, ["nothing to find out"], "tune", self.store, "--ram-budget", "100%", "--threads",
                    "1", "--prefill-chunk", "64", *SHORT)

    def test_it_is_used_where_the_user_has_said_nothing(self):
        self.remember(prefill_chunk=96, threads=1)
        plain = self.run_demo("--no-tuned")
        self.assertNotIn("tuned", plain.stderr)
        tuned = self.run_demo()
        self.assertIn("tuned for this machine: threads 1, prefill chunk 96", tuned.stderr)
        self.assertEqual(tuned.stdout, plain.stdout)
        self.assertIn("tuned for this machine: threads 1\n", self.run_demo("--prefill-chunk", "64").stderr)
        # Another budget is another optimum.
        other = self.expect(OK, [], "run", self.store, "Hi", "--ram-budget", "50%", "--max-tokens", "2",
                            "--quiet")
        self.assertNotIn("tuned", other.stderr)

    def shown(self, *arguments):
        result = self.expect(OK, [], "config", "show", *arguments, "--origin")
        return dict(line.split(" = ", 1) for line in result.stdout.splitlines() if " = " in line)

    def test_a_flag_then_the_environment_then_the_file_then_what_was_tuned(self):
        self.remember(prefill_chunk=96, threads=1, lookahead=False)
        self.configure(f'[serve]\nstore = "{self.store}"\nram-budget = "25%"\n')
        shown = self.shown("serve")
        self.assertEqual(shown["prefill-chunk"], "96  # tuned")
        self.assertEqual(shown["threads"], "1  # tuned")
        self.assertEqual(shown["no-lookahead"], "true  # tuned")
        self.configure(f'[serve]\nstore = "{self.store}"\nram-budget = "25%"\nprefill-chunk = 80\n'
                       'no-lookahead = true\n[run]\nprefill-chunk = 80\n')
        shown = self.shown("serve")
        self.assertIn("80  # file", shown["prefill-chunk"])
        self.assertEqual(shown["threads"], "1  # tuned")
        self.assertIn("tuned for this machine: threads 1, no lookahead\n", self.run_demo().stderr)
        os.environ["MORAINE_THREADS"] = "2"
        self.addCleanup(os.environ.pop, "MORAINE_THREADS")
        self.assertEqual(self.shown("serve")["threads"], "2  # environment: MORAINE_THREADS")
        self.configure('[run]\nram-budget = "25%"\n')
        self.assertEqual(self.shown("run", "--store", self.store)["prefill-chunk"], "96  # tuned")
        self.assertNotIn("prefill-chunk", self.shown("run"))
        self.configure('[run]\nram-budget = "25%"\nno-tuned = true\n')
        self.assertNotIn("prefill-chunk", self.shown("run", "--store", self.store))

    def test_what_does_not_fit_or_is_damaged_is_not_used(self):
        self.remember(key={"CPU": "Zilog Z80"}, prefill_chunk=96)
        self.assertNotIn("prefill chunk 96", self.run_demo().stderr)
        shown = self.expect(OK, [], "tune", self.store, "--ram-budget", "25%", "--show").stdout
        self.assertIn("does not fit: CPU is Zilog Z80, here ", shown)
        file = self.remember(text='{"version":1,"records":[{"key":{},"settings":{"threads":"all"}}]}')
        damaged = self.run_demo().stderr
        self.assertIn(f"{file}: record 0: settings: threads: expected a number", damaged)
        self.expect(FAILED, [file], "tune", self.store, "--show")

    def test_forgotten_is_forgotten(self):
        store = self.path("forgetful")
        self.expect(OK, [], "import", DEMO, store, *self.import_options)
        self.expect(OK, ["answers of"], "tune", store, "--seconds", "1", "--rounds", "1", "--prompt-tokens",
                    "32", "--tokens", "2", "--max-context", "256")
        shown = ["tune", store, "--max-context", "256", "--show"]
        self.assertIn("fits this machine", self.expect(OK, [], *shown).stdout)
        self.assertIn("forgotten: 1", self.expect(OK, [], "tune", store, "--forget").stdout)
        self.assertIn("nothing was tuned", self.expect(OK, [], *shown).stdout)
        self.expect(USAGE, ["--forget", "--show"], "tune", store, "--forget", "--show")


if __name__ == "__main__":
    unittest.main()
