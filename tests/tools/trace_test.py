"""`moraine trace` as a user meets it: a trace is recorded, and replayed.

Usage: trace_test.py MORAINE CHECKOUT
"""
import gzip
import json
import os
import unittest

from moraine_command import FAILED, GOLDEN, OK, USAGE, CommandTestCase


def rows(path):
    """Per token and layer: [experts, what the next router expects, what the one after expects, ...]."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        return [line.rstrip("\n").split(",")[2:] for line in file if not line.startswith("#")]


class TraceTest(CommandTestCase):
    import_options = ("--experts", "bf16", "--dense", "bf16")

    def record(self, name, *options):
        self.expect(OK, [], "trace", "record", self.store, self.path(name), *options)
        return rows(self.path(name))

    def test_a_text_routes_as_the_reference_recorded_it(self):
        # The reference was computed in another order of summation, so a near tie may go the other way, and
        # with it what follows in that token.
        golden = rows(os.path.join(GOLDEN, "routing-books.csv.gz"))
        recorded = self.record("books.csv.gz", "--text", os.path.join(GOLDEN, "valid-books.txt"),
                               "--max-tokens", "128")
        self.assertEqual(len(recorded), len(golden))
        for column in range(3):
            same = sum(set(a[column].split()) == set(b[column].split())
                       for a, b in zip(recorded, golden))
            self.assertGreater(same, 0.98 * len(golden), f"column {column}")

    def test_what_is_in_memory_changes_nothing(self):
        text = ["--text", os.path.join(GOLDEN, "valid-chat.txt"), "--max-tokens", "600"]
        all_resident = self.record("all.csv", *text, "--ram-budget", "100%")
        self.assertEqual(len(all_resident), 600 * 8)
        self.assertEqual(all_resident, self.record("some.csv", *text, "--ram-budget", "20%"))
        self.assertEqual(all_resident, self.record("plain.csv", *text, "--ram-budget", "20%",
                                                   "--no-lookahead"))

    def test_a_prompt_and_its_answer_are_replayed(self):
        recorded = self.record("sum.csv.gz", "--prompt", "What is 247 + 6?")
        for i, row in enumerate(recorded):
            layer = i % 8
            self.assertEqual(len(row[0].split()), 4)
            self.assertEqual(len(row[1].split()), 4 if layer < 7 else 0)
            self.assertEqual(len(row[2].split()), 4 if layer < 6 else 0)
            weights = [float(w) for w in row[3].split()]
            self.assertEqual(weights, sorted(weights, reverse=True))
        with gzip.open(self.path("sum.csv.gz"), "rt") as file:
            self.assertIn("prefill_tokens=18 ", file.readline())
        lines = [json.loads(line) for line in
                 self.expect(OK, [], "trace", "replay", self.path("sum.csv.gz"), "--policy",
                             "heat,lru", "--cache", "20%", "--json").stdout.splitlines()]
        self.assertEqual([line["policy"] for line in lines], ["heat", "lru"])
        for line in lines:
            self.assertEqual(line["tokens"], len(recorded) // 8 - 18)
            self.assertEqual(line["slots"], 51)
            self.assertLessEqual(line["decode_hit_rate"], line["opt_hit_rate"])
            self.assertLessEqual(line["opt_hit_rate"], line["opt_bypass_hit_rate"])

    def test_errors_say_what_is_wrong_and_leave_no_file(self):
        out = self.path("none.csv")
        self.expect(USAGE, ["--prompt", "--text"], "trace", "record", self.store, out)
        self.expect(USAGE, ["--prompt", "--text"], "trace", "record", self.store, out, "--prompt",
                    "a", "--text", "b")
        self.expect(FAILED, ["/nonexistent/text"], "trace", "record", self.store, out, "--text",
                    "/nonexistent/text")
        self.expect(FAILED, ["--lossy-defer", "recorded without"], "trace", "record", self.store, out,
                    "--prompt", "a", "--lossy-defer", "1")
        self.expect(FAILED, ["/nonexistent/trace"], "trace", "record", self.store,
                    "/nonexistent/trace", "--prompt", "a")
        self.assertFalse(os.path.exists(out))


if __name__ == "__main__":
    unittest.main()
