"""Tests of the words and pictures of how cost grows."""

import unittest
from xml.etree import ElementTree

from .plots import PLOTS, Panel, markdown, sized, slope, svg
from .units import BYTES, MICROSECONDS

EACH = Panel("each", "each", BYTES)
TOTAL = Panel("total", "total", MICROSECONDS, ("field", 1))


class Slope(unittest.TestCase):
    def each(self, *values):
        return slope(EACH, list(zip((1000, 4000, 16000), values)))

    def total(self, *values):
        return slope(TOTAL, list(zip((2, 12, 60), values)))

    def test_what_stays_is_flat(self):
        self.assertEqual(self.each(800, 820, 790), "flat: 790 to 820 bytes")

    def test_what_does_not_stay_says_how(self):
        self.assertEqual(self.each(800, 900, 1000), "grows, from 800 to 1,000 bytes")
        self.assertEqual(self.each(1000, 900, 800), "falls, from 1,000 to 800 bytes")
        self.assertEqual(self.each(900, 500, 800),
                         "from 900 to 800 bytes; least at 4,000: 500 bytes")
        self.assertEqual(self.each(500, 900, 600),
                         "from 500 to 600 bytes; most at 4,000: 900 bytes")

    def test_a_fixed_part_is_no_slope(self):
        self.assertEqual(self.total(7e-6, 8e-6, 12.8e-6),
                         "linear: 100 ns, then 100 ns for each further field")

    def test_what_gets_dearer_is_more_than_linear(self):
        self.assertTrue(self.total(7e-6, 8e-6, 24e-6).startswith("**more than linear**"))
        self.assertTrue(self.total(7e-6, 12e-6, 13e-6).startswith("less than linear"))

    def test_noise_is_called_noise(self):
        self.assertIn("less than what the rounds differ by", self.total(7e-6, 6e-6, 13e-6))

    def test_one_size_has_no_slope(self):
        self.assertEqual(slope(EACH, [(1000, 800)]), "—")

    def test_sizes(self):
        told = [sized(size) for size in (1, 1000, 4096, 1 << 10, 1 << 20, 1 << 30)]
        self.assertEqual(told, ["1", "1,000", "4,096", "1 KiB", "1 MiB", "1 GiB"])


class Pictures(unittest.TestCase):
    def setUp(self):
        figures = {
            panel.figure: {str(size): [size * 1e-6 + 1e-6] for size in (1, 64, 4096)}
            for plot in PLOTS for panel in plot.panels}
        self.run_ = {"arguments": "", "rounds": 1, "seconds": 1, "date": "2000-01-01",
                     "commit": "commit 0", "machine": "a machine", "server_cores": "0",
                     "load_cores": "1", "failures": ["nothing else"], "figures": figures}

    def test_each_picture_is_well_formed_and_has_each_point(self):
        for plot in PLOTS:
            root = ElementTree.fromstring(svg(plot, self.run_))
            circles = root.findall("{http://www.w3.org/2000/svg}circle")
            self.assertEqual(len(circles), 3 * len(plot.panels), plot.name)

    def test_the_page_has_each_picture_and_each_failure(self):
        page = markdown(self.run_)
        for plot in PLOTS:
            self.assertIn(f"({plot.name}.svg)", page)
        self.assertIn("- nothing else", page)

    def test_a_figure_that_is_missing_leaves_the_others(self):
        del self.run_["figures"]["idle.memory"]
        self.assertNotIn("Memory each", markdown(self.run_))
        self.assertIn("TERM to exit", svg(PLOTS[0], self.run_))


if __name__ == "__main__":
    unittest.main()
