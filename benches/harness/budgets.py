"""The bounds that smol-graceful has to keep.

A bound is a number, or a part of another server's figure in the same run.
"""

from dataclasses import dataclass

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
class Bound:
    """A bound: at most `limit`, or `limit` times the figure of `peer`."""

    limit: float
    peer: str = None


@dataclass(frozen=True)
class Budget:
    """The bounds of a figure: those that it must keep, and those that are the aim."""

    what: str
    figure: str
    must: tuple
    aim: tuple


BUDGETS = [
    Budget("memory per idle keep-alive connection", "idle.memory",
           (Bound(1.0 * KB), Bound(1 / 8, "hyper-tokio"), Bound(1 / 8, "go")), (Bound(0.7 * KB),)),
    Budget("CPU per small keep-alive request", "keep-64.cpu",
           (Bound(0.85, "go"), Bound(0.45, "naive")),
           (Bound(1.0, "trillium"), Bound(1.2, "hyper-smol"))),
    Budget("CPU per pipelined request", "pipeline.cpu",
           (Bound(0.5, "go"),), (Bound(1.5, "hyper-tokio"),)),
    Budget("CPU per MiB down", "download.cpu", (Bound(1.0, "go"),), (Bound(1.0, "hyper-tokio"),)),
    Budget("CPU per MiB up", "upload.cpu", (Bound(1.0, "go"),), (Bound(1.0, "hyper-tokio"),)),
    Budget("system calls per keep-alive request, 1 connection", "syscalls.1",
           (Bound(4),), (Bound(3),)),
    Budget("system calls per keep-alive request, 16 connections", "syscalls.16",
           (Bound(4),), (Bound(3),)),
    Budget("exec to first answer", "start.time", (Bound(0.6, "go"),), (Bound(1.0, "hyper-tokio"),)),
    Budget("stripped binary", "size", (Bound(2.5 * MB),), (Bound(1.5 * MB),)),
    Budget("peak memory at start", "start.peak", (Bound(4 * MB),), (Bound(3 * MB),)),
    Budget("TERM to exit, 10,000 idle connections (linger: 100 ms)", "idle.drain",
           (Bound(LINGER + 0.150),), (Bound(LINGER + 0.050),)),
    Budget("last response to exit", "last.drain", (Bound(0.005),), (Bound(0.001),)),
]


@dataclass(frozen=True)
class Verdict:
    """A bound, with the measured value."""

    budget: Budget
    bound: Bound
    is_must: bool
    value: float  # in the figure's unit, or the ratio
    is_met: bool


def judge(median):
    """Judges every bound. `median(figure, peer)` returns a number or None. Figures that were not
    measured are left out."""
    for budget in BUDGETS:
        ours = median(budget.figure, "ours")
        bounds = [(bound, True) for bound in budget.must] + [(b, False) for b in budget.aim]
        for bound, is_must in bounds:
            other = median(budget.figure, bound.peer) if bound.peer else 1
            if ours is None or not other:
                continue
            yield Verdict(budget, bound, is_must, ours / other, ours / other <= bound.limit)
