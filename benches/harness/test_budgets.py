"""Tests of the verdicts on budgets."""

import unittest

from .budgets import BUDGETS, Budget, judge, rows, table
from .peers import PEERS
from .units import MILLISECONDS

BESIDE = Budget("cost", "keep.cpu", must=0.80, aim=0.70, peer="go", spin="spin.cpu")
ABSOLUTE = Budget("drain", "idle.drain", must=0.220, aim=0.180, unit=MILLISECONDS)
NAMES = {"go": "Go"}


def medians(**figures):
    """Returns a `median` that knows these figures: `figure__peer=number`, with `_` for `.`."""
    return lambda figure, peer: figures.get(f"{figure.replace('.', '_')}__{peer}")


class Budgets(unittest.TestCase):
    def words(self, median):
        return [row[-2:] for row in rows(judge(median, [BESIDE, ABSOLUTE]), NAMES)]

    def test_what_is_at_the_limit_is_met(self):
        told = medians(keep_cpu__ours=8, keep_cpu__go=10, idle_drain__ours=0.220)
        self.assertEqual(self.words(told), [("met", "missed"), ("met", "missed")])

    def test_what_is_above_the_limit_is_missed(self):
        told = medians(keep_cpu__ours=8.01, keep_cpu__go=10, idle_drain__ours=float("inf"))
        self.assertEqual(self.words(told), [("missed", "missed"), ("missed", "missed")])

    def test_an_aim_is_met_with_its_must(self):
        told = medians(keep_cpu__ours=7, keep_cpu__go=10, idle_drain__ours=0.1)
        self.assertEqual(self.words(told), [("met", "met"), ("met", "met")])

    def test_what_was_not_measured_is_not_met(self):
        for told in medians(), medians(keep_cpu__ours=7), medians(keep_cpu__go=10):
            verdict = judge(told, [BESIDE])[0]
            self.assertFalse(verdict.is_measured or verdict.is_met or verdict.is_aim_met)
            self.assertEqual(self.words(told)[0], ("not measured", "not measured"))

    def test_the_other_load_is_told_and_decides_nothing(self):
        told = medians(keep_cpu__ours=7, keep_cpu__go=10, spin_cpu__ours=30, spin_cpu__go=10)
        verdict = judge(told, [BESIDE])[0]
        self.assertEqual(verdict.with_spin, 3)
        self.assertTrue(verdict.is_met)

    def test_the_table_shows_each_number_in_its_unit(self):
        told = medians(keep_cpu__ours=7, keep_cpu__go=10, idle_drain__ours=0.2)
        text = table(judge(told, [BESIDE, ABSOLUTE]), NAMES)
        self.assertIn("cost, beside Go", text)
        self.assertIn("0.70 ×", text)
        self.assertIn("200.0 ms", text)

    def test_each_budget_is_of_a_known_server_and_its_aim_is_not_laxer(self):
        keys = {peer.key for peer in PEERS}
        for budget in BUDGETS:
            self.assertLessEqual(budget.aim, budget.must, budget.what)
            self.assertTrue(budget.peer in keys or budget.unit, budget.what)


if __name__ == "__main__":
    unittest.main()
