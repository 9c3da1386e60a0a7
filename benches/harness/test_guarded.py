"""Tests of the limits of the guard."""

import unittest

from .guarded import Counts

COMMITTED = Counts(30_000, 3.80, "rustc 1.95.0")


class Guarded(unittest.TestCase):
    def test_what_is_written_is_read(self):
        self.assertEqual(Counts.read(COMMITTED.written()), COMMITTED)

    def test_a_file_without_one_of_them_is_named(self):
        for text in "", "30000 by rustc 1.95.0\n", "3.80 system calls\n":
            with self.assertRaisesRegex(ValueError, "no line such as"):
                Counts.read(text)

    def test_a_little_more_passes(self):
        self.assertEqual(COMMITTED.dearer(Counts(30_890, 4.05, "")), "")

    def test_more_is_named(self):
        self.assertEqual(COMMITTED.dearer(Counts(31_000, 3.8, "")), "3.3% more instructions")
        self.assertEqual(COMMITTED.dearer(Counts(29_000, 4.8, "")), "1.00 more system calls")


if __name__ == "__main__":
    unittest.main()
