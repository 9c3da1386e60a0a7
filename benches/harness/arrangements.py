"""smol-graceful's own arrangements of threads, executors and listeners, measured side by side.

Unlike in `measures`, all servers of a case run at the same time, and rounds are short, so other
work of the machine slows all of them down. Each arrangement is compared with the first one, round
by round.
"""

import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles

from . import clients
from .measures import Load, system_calls
from .servers import Failure, Server
from .units import COUNT, MICROSECONDS, RATE, shown

BEGIN, END = "<!-- arrangements: begin -->", "<!-- arrangements: end -->"

# The errors that prevent one figure, and not the others.
FAILURES = (Failure, OSError, subprocess.TimeoutExpired)


@dataclass(frozen=True)
class Arrangement:
    """An arrangement: the second argument of the binary, and its meaning."""

    key: str
    what: str
    argument: str = None
    is_process_per_core: bool = False

    def start(self, stack, binary, cores):
        """Starts the processes of the arrangement, which end with the stack."""
        servers = []
        for _ in cores if self.is_process_per_core else [None]:
            port = servers[0].port if servers else None
            server = Server(binary, cores, arguments=[self.argument or self.key], port=port)
            servers.append(stack.enter_context(server))
        return servers


ARRANGEMENTS = [
    Arrangement("shared", "`run`: one executor on N worker threads"),
    Arrangement("one", "`Process::threads(1)`: one worker thread"),
    Arrangement("per-core", "N threads, each with a server, an executor and a listener of its own"
                            " (`reuse_port`), and one `Shutdown`"),
    Arrangement("processes", "N processes of `one`, which share the port by `reuse_port`",
                "process", is_process_per_core=True),
    Arrangement("embedded", "`Server::executor`, driven by N threads; `serve` on one that only parks"
                            " (`examples/embed.rs`)"),
    Arrangement("tokio", "`serve` polled by tokio (`examples/tokio.rs`)"),
    Arrangement("beside-tokio", "`serve` polled by tokio, with `Server::executor`, driven by N"
                                " threads of smol's that have entered tokio's runtime"),
]

CASES = {
    Load("keep-64", "keep", 64): "64 keep-alive connections",
    Load("keep-512", "keep", 512): "512 keep-alive connections",
    Load("keep-1", "keep", 1): "1 keep-alive connection",
    Load("download", "keep", 16, "/download"): "1 MiB down, 16 connections",
    Load("close", "close", 64): "a connection for each request, 64 at a time",
}

COUNTED = {1: "1 keep-alive connection", 16: "16 keep-alive connections"}


@dataclass(frozen=True)
class Place:
    """The cores of the server and those of the load."""

    server: frozenset
    load: frozenset

    def __str__(self):
        cores, load = (", ".join(map(str, sorted(cores))) for cores in (self.server, self.load))
        threads = len(self.server)
        return (f"N = {threads}: the server on core{'s' * (threads > 1)} {cores}, the load on "
                + ("the same" if self.server == self.load else load))


def compare(case, arrangements, binary, place, rounds, seconds):
    """Measures one case in all arrangements, in turns that rotate. Yields (key, figures, failure)
    for each round. If there are no figures, there is a failure."""
    with ExitStack() as stack:
        running = [(a.key, a.start(stack, binary, place.server)) for a in arrangements]
        for _, servers in running:
            # The first run is not measured, because the server makes some things at their first
            # use.
            clients.wrk(servers[0], case.how, case.path, case.connections, 1)
        for number in range(rounds):
            first = number % len(running)
            for key, servers in running[first:] + running[:first]:
                try:
                    yield key, _round(case, servers, seconds), None
                except FAILURES as failure:
                    # Each arrangement has an entry for the round, because they are compared round
                    # by round.
                    yield key, dict.fromkeys(_figures(case)), failure


def _figures(case):
    return [f"{case.name}.{of}" for of in ("cpu", "waited", "displaced", "rate")]


def _round(case, servers, seconds):
    before = [server.usage() for server in servers]
    told = clients.wrk(servers[0], case.how, case.path, case.connections, seconds)
    after = [server.usage() for server in servers]
    answered = case.answered(told)
    cpu, waited, displaced = (
        sum(field) for field in zip(*([b - a for a, b in zip(*pair)]
                                      for pair in zip(before, after))))
    by_request = [value / answered for value in (cpu, waited, displaced)]
    return dict(zip(_figures(case), [*by_request, answered / told["seconds"]]))


def count(arrangement, binary, place):
    """Returns the system calls per keep-alive request."""
    figures = {}
    for connections in COUNTED:
        with ExitStack() as stack:
            servers = arrangement.start(stack, binary, place.server)
            calls = system_calls(servers, connections)
        figures[f"syscalls.{connections}"] = sum(calls.values())
    return figures


def markdown(run):
    """Returns the text between the two marks."""
    told = {a.key: a.what for a in ARRANGEMENTS}
    command = f"benches/arrangements {run['arguments']}".rstrip()
    rounds = run["rounds"]
    lines = [
        BEGIN, "## Arrangements", "",
        f"Written by `{command}` on {run['date']} at {run['commit']}: medians of {rounds} "
        f"round{'s' * (rounds != 1)} of {run['seconds']} s in turn. {run['machine']}; "
        f"{', '.join(run['tools'])}.", "",
        *(f"- `{key}`: {told[key]}" for key in run["arrangements"]), "",
    ]
    for place, figures in run["places"].items():
        lines += [f"### {place}", "", *_tables(run["arrangements"], figures)]
    if run["failures"]:
        lines += ["What could not be measured:", "", *(f"- {f}" for f in run["failures"]), ""]
    return "\n".join([*lines, END]) + "\n"


def _tables(keys, figures):
    cases = {case.name: what for case, what in CASES.items()}

    def middle(figure, key, unit):
        values = [v for v in figures.get(figure, {}).get(key, []) if v is not None]
        return shown(median(values) if values else None, unit)

    def cpu(name, key):
        return middle(f"{name}.cpu", key, MICROSECONDS)

    def beside(name, key):
        return ratio(figures.get(f"{name}.cpu", {}), key, keys[0])

    def switches(name, key):
        both = [middle(f"{name}.{of}", key, ("", 1, 2)) for of in ("waited", "displaced")]
        return " + ".join(both) if "—" not in both else "—"

    def rate(name, key):
        return middle(f"{name}.rate", key, RATE)

    def calls(connections, key):
        return middle(f"syscalls.{connections}", key, COUNT)

    for title, rows, cell in (
        ("CPU time per request, µs", cases, cpu),
        (f"beside `{keys[0]}`", cases, beside),
        ("context switches per request", cases, switches),
        ("requests per second", cases, rate),
        ("system calls per request", COUNTED, calls),
    ):
        rows = [(row, what) for row, what in rows.items()
                if f"{row}.cpu" in figures or f"syscalls.{row}" in figures]
        if not rows:
            continue
        yield f"| {title} | " + " | ".join(f"`{key}`" for key in keys) + " |"
        yield "|---|" + "---:|" * len(keys)
        for row, what in rows:
            yield f"| {what} | " + " | ".join(cell(row, key) for key in keys) + " |"
        yield ""


def ratio(values, key, first):
    """Returns the median ratio of a figure to the first arrangement's in the same round, and the
    range of the middle half of the rounds."""
    pairs = zip(values.get(key, []), values.get(first, []))
    ratios = [own / base for own, base in pairs if own and base]
    if not ratios or key == first:
        return "1" if ratios else "—"
    text = f"{median(ratios):.2f}"
    if len(ratios) > 3:
        low, _, high = quantiles(ratios, method="inclusive")
        text += f" ({low:.2f}–{high:.2f})"
    return text
