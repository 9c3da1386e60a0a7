"""What smol-graceful has to keep to, as issue 6 says it.

A bound is a number, or a part of what another server takes in the same run.
"""

from dataclasses import dataclass

KB = 1000
MB = 1000 * KB
LINGER = 0.100


# How far CPU per request may be from what it is without idle connections.
CROWD = 0.10


def flat(memory):
    """How far memory may reach from there, and still be called flat."""
    return 1.10 * memory + 1 * MB


@dataclass(frozen=True)
class Bound:
    """At most `limit`, or `limit` times what `peer` takes."""

    limit: float
    peer: str = None


@dataclass(frozen=True)
class Budget:
    """What a figure must be, and what is aimed at."""

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
    """A bound, and how it was met."""

    budget: Budget
    bound: Bound
    is_must: bool
    value: float  # in the figure's unit, or the ratio
    is_met: bool


def judge(median):
    """Judges every bound; `median(figure, peer)` is a number or None. What was not measured is
    left out."""
    for budget in BUDGETS:
        ours = median(budget.figure, "ours")
        bounds = [(bound, True) for bound in budget.must] + [(b, False) for b in budget.aim]
        for bound, is_must in bounds:
            other = median(budget.figure, bound.peer) if bound.peer else 1
            if ours is None or not other:
                continue
            yield Verdict(budget, bound, is_must, ours / other, ours / other <= bound.limit)
