"""Configuration files, the environment, and what is made from the command's own description.

Usage: config_test.py MORAINE CHECKOUT
"""
import os
import re
import shutil
import subprocess
import unittest

from moraine_command import FAILED, OK, USAGE, CommandTestCase


class ConfigTest(CommandTestCase):
    def setUp(self):
        self.file = self.path("config.toml")
        os.environ["MORAINE_CONFIG"] = self.file
        self.addCleanup(os.environ.pop, "MORAINE_CONFIG")

    def write(self, text):
        with open(self.file, "w") as file:
            file.write(text)

    def shown(self, *arguments):
        result = self.expect(OK, [], "config", "show", *arguments)
        return dict(line.split(" = ", 1) for line in result.stdout.splitlines() if " = " in line)

    def test_a_flag_goes_before_the_environment_before_the_file(self):
        self.write(f'[serve]\nstore = "{self.store}"\nport = 0\nram-budget = "nonsense-of-file"\n'
                   '[run]\nram-budget = "nonsense-of-file"\ntemperature = 0\nno-lookahead = true\n')
        self.expect(FAILED, ["nonsense-of-file"], "serve")
        self.expect(FAILED, ["nonsense-of-file"], "run", self.store, "Hi")
        os.environ["MORAINE_RAM_BUDGET"] = "nonsense-of-environment"
        self.addCleanup(os.environ.pop, "MORAINE_RAM_BUDGET")
        self.expect(FAILED, ["nonsense-of-environment"], "run", self.store, "Hi")
        self.expect(FAILED, ["nonsense-of-environment"], "serve")
        result = self.expect(OK, [], "run", self.store, "What is 247 + 6?", "--ram-budget", "25%", "--quiet")
        self.assertEqual(result.stdout.strip(), "247 + 6 = 253.")

    def test_show_names_the_origin_and_can_be_read_back(self):
        self.write('[serve]\nport = 9001\nallowed-host = ["a.example", "b.example"]\nno-lookahead = true\n'
                   'admin = true\napi-key = "secret"\n')
        os.environ["MORAINE_QUEUE"] = "3"
        self.addCleanup(os.environ.pop, "MORAINE_QUEUE")
        shown = self.shown("serve", "--origin")
        self.assertEqual(shown["port"], f"9001  # file: {self.file}")
        self.assertEqual(shown["queue"], "3  # environment: MORAINE_QUEUE")
        self.assertEqual(shown["grace"], "30  # default")
        self.assertEqual(shown["no-lookahead"], f"true  # file: {self.file}")
        self.assertNotIn("secret", str(shown))
        whole = self.expect(OK, [], "config", "show").stdout
        self.assertIn("[bench.io]", whole)
        self.assertIn("depth = [8, 32]", whole)
        self.write(whole.replace('"(hidden)"', '"k"'))
        self.assertEqual(self.shown("serve")["port"], "9001")
        self.expect(FAILED, ["'bogus' is no subcommand"], "config", "show", "bogus")

    def test_what_is_wrong_in_a_file_is_named_with_its_line(self):
        for text, words in [
                ("[serve]\nprot = 1\n", ["config.toml:2", "prot is no option of moraine serve"]),
                ("[serv]\nport = 1\n", ["config.toml:2", "[serv]"]),
                ("port = 1\n", ["config.toml:1", "found none"]),
                ("[serve]\n\nport = 123456\n", ["config.toml:3", "--port", "65535"]),
                ("[serve]\nport = [1, 2]\n", ["config.toml:2", "expected one value"]),
                ("[run]\nstore = \"s\"\n", ["config.toml:2", "store is one of several", "typed"]),
                ("[serve]\nadmin = 3\n", ["config.toml:2", "admin: expected true or false"]),
                ("[serve]\nhost = 127.0.0.1\n", ["config.toml:2", "a string in quotes"])]:
            with self.subTest(text=text):
                self.write(text)
                self.expect(USAGE, words, "stats")
        os.remove(self.file)
        self.expect(USAGE, [self.file, "No such file"], "stats")
        self.expect(USAGE, ["/absent.toml"], "--config", "/absent.toml", "stats")

    def test_man_pages_format_without_warnings(self):
        self.write("")
        pages = self.path("man")
        os.mkdir(pages)
        self.expect(OK, [], "man", "--directory", pages)
        names = sorted(os.listdir(pages))
        for name in ("moraine.1", "moraine-serve.1", "moraine-bench-io.1", "moraine-config-show.1"):
            self.assertIn(name, names)
        page = self.expect(OK, [], "man", "serve").stdout
        with open(os.path.join(pages, "moraine-serve.1")) as file:
            self.assertEqual(file.read(), page)
        self.assertIn("\\fB\\-\\-ram\\-budget\\fR", page)
        self.expect(FAILED, ["no subcommand"], "man", "bogus")
        if shutil.which("groff") is None:
            self.skipTest("groff is not installed")
        for name in names:
            result = subprocess.run(["groff", "-man", "-Tutf8", "-ww", os.path.join(pages, name)],
                                    capture_output=True, text=True, timeout=60)
            self.assertEqual((result.returncode, result.stderr), (0, ""), name)
            self.assertIn("SYNOPSIS", re.sub(".\b", "", result.stdout))  # bold is struck twice

    def test_bash_completes_commands_options_and_values(self):
        self.write("")
        script = self.expect(OK, [], "completion", "bash").stdout

        def complete(*words):
            program = script + "\nCOMP_WORDS=(" + " ".join(f"'{w}'" for w in words) + ")\n" \
                f"COMP_CWORD={len(words) - 1}\n_moraine\n" 'printf "%s\\n" "${COMPREPLY[@]}"\n'
            result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            return result.stdout.split()

        self.assertEqual(complete("moraine", "ser"), ["serve"])
        self.assertEqual(complete("moraine", "bench", "make"), ["make-store"])
        self.assertEqual(complete("moraine", "serve", "x", "--ram-budget-m"), ["--ram-budget-max"])
        self.assertEqual(complete("moraine", "run", "--kv", "b"), ["bf16"])
        self.assertIn("--help", complete("moraine", "bench", "io", "--"))
        for shell in ("bash", "zsh", "fish"):
            script = self.expect(OK, [], "completion", shell).stdout
            self.assertIn("ram-budget", script)
            if shutil.which(shell) is not None:
                checked = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, timeout=60)
                self.assertEqual((checked.returncode, checked.stderr), (0, ""), shell)
        self.expect(USAGE, ["SHELL", "csh"], "completion", "csh")


if __name__ == "__main__":
    unittest.main()
