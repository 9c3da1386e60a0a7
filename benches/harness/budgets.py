"""The budgets of smol-graceful, and the verdict on each.

A limit is a number in the figure's unit, or a part of what another server takes in the same run.
"""

from dataclasses import dataclass

from .units import BYTES, CALLS, MEGABYTES, MILLISECONDS, shown

KB = 1000
MB = 1000 * KB
LINGER = 0.100

# The largest relative difference of CPU per request between a server with idle connections and one
# without.
CROWD = 0.10


def flat(memory):
    """Returns the most memory that still counts as flat, from this beginning."""
    return 1.10 * memory + 1 * MB


@dataclass(frozen=True)
class Budget:
    """Bounds a figure: `must` and `aim` are in `unit`, or parts of what `peer` takes. `spin` names
    the figure of the load that never sleeps, which is shown beside it."""

    what: str
    figure: str
    must: float
    aim: float
    peer: str = None
    unit: tuple = None
    spin: str = None


BUDGETS = [
    Budget("CPU per request, 64 connections", "keep-64.cpu", 0.80, 0.68, "before",
           spin="spin-64.cpu"),
    Budget("CPU per request, 64 connections", "keep-64.cpu", 0.80, 0.70, "go",
           spin="spin-64.cpu"),
    Budget("CPU per request, 64 connections", "keep-64.cpu", 1.05, 0.90, "trillium",
           spin="spin-64.cpu"),
    Budget("CPU per request, 64 connections", "keep-64.cpu", 1.30, 1.10, "hyper-smol",
           spin="spin-64.cpu"),
    Budget("CPU per request, a browser's 12 fields", "browser.cpu", 1.10, 0.95, "trillium",
           spin="spin-browser.cpu"),
    Budget("CPU per request, 512 connections", "keep-512.cpu", 0.90, 0.80, "hyper-smol",
           spin="spin-512.cpu"),
    Budget("system calls per request, 16 busy connections", "calls.busy-16", 2.4, 2.1, unit=CALLS),
    Budget("system calls per request, 16 that pause", "calls.pause-16", 4.0, 3.7, unit=CALLS),
    Budget("latency p99 of a newcomer beside 64 busy connections", "newcomer.p99", 1.1, 1.0,
           "before"),
    Budget("memory per idle connection", "idle.memory", 1.0 * KB, 0.8 * KB, unit=BYTES),
    Budget("peak memory at the start", "start.peak", 4.0 * MB, 3.0 * MB, unit=MEGABYTES),
    Budget("CPU per MiB down", "download.cpu", 1.05, 1.0, "hyper-tokio"),
    Budget("TERM to exit, 10,000 idle connections (linger: 100 ms)", "idle.drain",
           LINGER + 0.120, LINGER + 0.080, unit=MILLISECONDS),
]


@dataclass(frozen=True)
class Verdict:
    """A budget and the measured value, in the figure's unit or as a ratio to its peer. The value is
    None if it was not measured."""

    budget: Budget
    measured: float = None
    with_spin: float = None

    @property
    def is_measured(self):
        return self.measured is not None

    @property
    def is_met(self):
        """Returns `True` if the figure meets its bound. A missing figure does not."""
        return self.is_measured and self.measured <= self.budget.must

    @property
    def is_aim_met(self):
        return self.is_measured and self.measured <= self.budget.aim


def judge(median, budgets=BUDGETS):
    """Judges every budget. `median(figure, peer)` returns a number or None."""
    return [Verdict(budget, _beside(median, budget.figure, budget.peer),
                    _beside(median, budget.spin, budget.peer) if budget.spin else None)
            for budget in budgets]


def _beside(median, figure, peer):
    ours = median(figure, "ours")
    if ours is None or not peer:
        return ours
    other = median(figure, peer)
    return ours / other if other else None


def rows(verdicts, names):
    """Yields a row of cells for each verdict, in the order of `HEADINGS`. `names` are those of the
    peers."""
    for v in verdicts:
        budget = v.budget

        def value(number):
            if number is None:
                return "—"
            return f"{number:.2f} ×" if budget.peer else shown(number, budget.unit, True)

        what = budget.what + (f", beside {names[budget.peer]}" if budget.peer else "")
        must, aim = (_met(v.is_measured, is_met) for is_met in (v.is_met, v.is_aim_met))
        yield (what, value(budget.must), value(budget.aim), value(v.measured),
               value(v.with_spin), must, aim)


HEADINGS = ("budget", "must", "aim", "measured", "load that never sleeps", "must is", "aim is")


def table(verdicts, names):
    """Returns `rows` as text whose columns are aligned."""
    lines = [HEADINGS, *rows(verdicts, names)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in lines)


def _met(is_measured, is_met):
    if not is_measured:
        return "not measured"
    return "met" if is_met else "missed"
