"""Importance as a user meets it: `moraine calibrate`, `import --importance`, what they refuse.

Usage: importance_test.py MORAINE CHECKOUT
"""
import json
import os
import struct
import unittest

from moraine_command import DEMO, FAILED, GOLDEN, OK, USAGE, CommandTestCase, moraine

TOKENS = 3000


class ImportanceTest(CommandTestCase):
    import_options = ()  # bf16: what one calibrates with

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.file = cls.path("books.importance")
        cls.text = cls.path("books.txt")
        with open(os.path.join(GOLDEN, "valid-books.txt")) as books, open(cls.text, "w") as text:
            text.write(books.read(20000))
        made = moraine("calibrate", cls.store, "--text", cls.text, "--max-tokens", str(TOKENS),
                       cls.file, "--json")
        assert made.returncode == OK, made.stderr
        cls.made = json.loads(made.stdout)

    def header(self):
        with open(self.file, "rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(length))

    def test_the_file_tells_what_was_measured(self):
        self.assertEqual(self.made["tokens"], TOKENS)
        self.assertLess(self.made["unreached_experts"], self.made["experts"])
        header = self.header()
        self.assertEqual(header["__metadata__"]["tokens"], str(TOKENS))
        self.assertEqual(header["__metadata__"]["checksum"], self.made["checksum"])
        self.assertEqual(header["layers.7.experts.down"]["shape"], [32, 64])

    def test_a_weighted_import_says_so_and_is_nearer_to_the_original_where_it_was_calibrated(self):
        kl = {}
        for name, options in (("plain", ()), ("weighted", ("--importance", self.file))):
            store = self.path(name)
            self.expect(OK, [], "import", DEMO, store, "--experts", "q4", "--quiet", *options)
            self.expect(OK, [], "verify", store)
            compared = self.expect(OK, [], "eval", store, "--against", self.store, "--text",
                                   self.text, "--json")
            kl[name] = json.loads(compared.stdout)["divergence"]["books.txt"]["kl"]
        # On its own text; what it does to others is for docs/quantisation.md.
        self.assertLess(kl["weighted"], kl["plain"])
        shown = self.expect(OK, [], "inspect", self.path("weighted")).stdout
        for word in ("weighted by books.importance", self.made["checksum"]):
            self.assertIn(word, shown)
        self.assertNotIn("weighted", self.expect(OK, [], "inspect", self.path("plain")).stdout)

        # The same again is done already; anything else is refused.
        weighted = ("import", DEMO, self.path("weighted"), "--experts", "q4")
        self.expect(OK, [], *weighted, "--importance", self.file, "--quiet")
        self.expect(FAILED, ["notes", "by books.importance (checksum " + self.made["checksum"]],
                    *weighted)
        other = self.path("other.importance")
        self.expect(OK, [], "calibrate", self.store, "--text", self.text, "--max-tokens", "600",
                    other, "--quiet")
        self.expect(FAILED, ["by books.importance", "now", "by other.importance"], *weighted,
                    "--importance", other)

    def test_what_cannot_be_used_is_refused_by_file_and_field(self):
        store = self.path("refused")

        def refuse(words, *options):
            self.expect(FAILED, words, "import", DEMO, store, *options)
            self.assertFalse(os.path.exists(store))

        with open(self.file, "rb") as file:
            whole = file.read()
        bad = self.path("bad.importance")
        flipped = bytearray(whole)
        flipped[-5] ^= 1
        for content, words in ((whole[:-4], ["checksum", "truncated"]), (flipped, ["checksum"]),
                               (whole[:40], ["header"]), (b"", ["header"]),
                               (b"\x02" + bytes(7) + b"[]", ["header"]),
                               (whole.replace(b'"version":"1"', b'"version":"2"'),
                                ["__metadata__.version", "expected 1, found 2"])):
            with open(bad, "wb") as file:
                file.write(content)
            refuse([bad, *words], "--experts", "q4", "--importance", bad)
        refuse(["/absent"], "--experts", "q4", "--importance", "/absent")
        refuse([self.file, "nothing to weight"], "--importance", self.file)

    def test_calibrate_needs_a_text(self):
        out = self.path("none.importance")
        self.expect(USAGE, ["--text"], "calibrate", self.store, out)
        self.expect(FAILED, ["/absent"], "calibrate", self.store, out, "--text", "/absent")
        self.assertFalse(os.path.exists(out))


if __name__ == "__main__":
    unittest.main()
