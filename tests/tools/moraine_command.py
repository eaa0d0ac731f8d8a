"""What the tests of the moraine command share. Their usage: X_test.py MORAINE CHECKOUT"""
import os
import subprocess
import sys
import tempfile
import unittest

MORAINE, CHECKOUT = sys.argv.pop(1), sys.argv.pop(1)
DEMO = os.path.join(CHECKOUT, "models/demo")
GOLDEN = os.path.join(CHECKOUT, "tests/golden/demo")
OK, FAILED, USAGE = 0, 1, 2


def moraine(*arguments, stdout=subprocess.PIPE):
    return subprocess.run([MORAINE, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, timeout=120)


class CommandTestCase(unittest.TestCase):
    """Has a scratch directory and an imported demo model, for all tests of the class."""
    import_options = ("--experts", "q4")

    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.store = cls.path("store")
        imported = moraine("import", DEMO, cls.store, *cls.import_options)
        assert imported.returncode == OK, imported.stderr

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    @classmethod
    def path(cls, name):
        return os.path.join(cls.scratch.name, name)

    def expect(self, code, words, *arguments, **options):
        """The result of a command that ends with this code and says these words on stderr."""
        result = moraine(*arguments, **options)
        self.assertEqual(result.returncode, code, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        return result
