"""Writes figures as Markdown and as a chart."""

import os
import platform
import re
from datetime import date
from html import escape
from statistics import median

from .budgets import HEADINGS, judge, rows, table
from .measures import CONNECTIONS
from .peers import PEERS, tools, version
from .units import (
    BYTES, CALLS, COUNT, MEGABYTES, MICROSECONDS, MILLISECONDS, RATE, WHOLE, shown,
)

NAMES = {peer.key: peer.name for peer in PEERS}
BEGIN, END = "<!-- figures: written by benches/compare -->", "<!-- end of the figures -->"


def connections(count):
    return f"{count:,} keep-alive connection{'s' * (count != 1)}"


# The loads by wrk and by the load that never sleeps.
LOADS = [
    *((f"keep-{count}", connections(count)) for count in CONNECTIONS),
    ("close", "a connection for each request, 64 at a time"),
    ("pipeline", "64 connections, 16 requests pipelined"),
    ("browser", "64 connections, a browser's fields"),
    ("download", "1 MiB down, 16 connections"),
]
SPINS = [
    *((f"spin-{count}", connections(count)) for count in CONNECTIONS),
    ("spin-browser", "64 connections, a browser's fields"),
]
SPINNING = ", with the load that never sleeps"

# The tables: title, unit, rows of (figure, what), and `True` to show the least and the most, too.
TABLES = [
    ("CPU time per request", MICROSECONDS, [(f"{key}.cpu", what) for key, what in LOADS], True),
    ("CPU time per request" + SPINNING, MICROSECONDS,
     [(f"{key}.cpu", what) for key, what in SPINS], True),
    ("CPU time per MiB", MICROSECONDS, [
        ("download.cpu", "down, 1 MiB at a time"),
        ("upload.cpu", "up, 16 MiB at a time"),
        ("echo.cpu", "up and back, 16 MiB at a time"),
    ], True),
    ("Requests per second", RATE, [(f"{key}.rate", what) for key, what in LOADS]),
    ("Requests per second" + SPINNING, RATE, [(f"{key}.rate", what) for key, what in SPINS]),
    ("MiB per second", RATE, [
        ("upload.rate", "up, 16 MiB at a time"),
        ("echo.rate", "up and back, 16 MiB at a time"),
    ]),
    ("Latency, median", MILLISECONDS,
     [(f"{key}.p50", what) for key, what in LOADS if key != "pipeline"]),
    ("Latency, 99th percentile", MILLISECONDS,
     [(f"{key}.p99", what) for key, what in LOADS if key != "pipeline"]),
    ("Latency, 99th percentile" + SPINNING, MILLISECONDS,
     [(f"{key}.p99", what) for key, what in SPINS]),
    ("Latency of a newcomer beside 64 busy connections", MILLISECONDS, [
        ("newcomer.p50", "median"),
        ("newcomer.p99", "99th percentile"),
    ]),
    ("Peak memory", MEGABYTES, [
        ("start.peak", "after the first answer"),
        *((f"{key}.peak", what) for key, what in LOADS),
        ("upload.peak", "16 MiB up"),
        ("echo.peak", "16 MiB up and back"),
    ]),
    ("Memory per idle keep-alive connection", BYTES, [("idle.memory", "10,000 of them")]),
    ("Start and size", None, [
        ("start.time", "exec to first answer", MILLISECONDS),
        ("size", "stripped binary", MEGABYTES),
    ]),
    ("Drain", MILLISECONDS, [
        ("idle.drain", "TERM to exit, 10,000 idle connections"
                       " (ours keeps them for its linger, 100 ms)"),
        ("last.drain", "last response to exit, one request in flight"),
    ]),
    ("Counted, per keep-alive request", None, [
        ("calls.busy-16", "system calls, 16 busy connections", CALLS),
        ("calls.pause-16", "system calls, 16 connections that pause 0.5 ms each", CALLS),
        ("syscalls.1", "system calls under strace, 1 connection", COUNT),
        ("syscalls.16", "system calls under strace, 16 connections that ask together", COUNT),
        ("instructions", "instructions, 1 connection", WHOLE),
    ]),
]

CHARTS = [
    ("keep-64.cpu", "CPU per keep-alive request", MICROSECONDS),
    ("pipeline.cpu", "CPU per pipelined request", MICROSECONDS),
    ("download.cpu", "CPU per MiB down", MICROSECONDS),
    ("upload.cpu", "CPU per MiB up", MICROSECONDS),
    ("idle.memory", "Memory per idle connection", ("KB", 1e-3, 1)),
    ("start.time", "From exec to first answer", MILLISECONDS),
]


class Report:
    """The figures of a run. `figures[figure][peer]` has one number for each round."""

    def __init__(self, run):
        self.run = run
        self.figures = run["figures"]
        self.peers = [peer for peer in PEERS if peer.key in run["peers"]]

    def median(self, figure, peer):
        """Returns the median of the rounds, or None if there is none."""
        values = self._rounds(figure, peer)
        return median(values) if values else None

    def _rounds(self, figure, peer):
        return [v for v in self.figures.get(figure, {}).get(peer, []) if v is not None]

    def markdown(self):
        """Returns the text between the two marks."""
        parts = [BEGIN, *self._about(), "", *self._budgets(), ""]
        for table in TABLES:
            parts += self._table(*table)
        parts += self._switches()
        parts += self._names() + self._failures() + self._versions() + [END]
        return "\n".join(parts) + "\n"

    def write(self, directory):
        """Writes the part of `benchmarks.md` between the marks, and `benchmarks.svg`."""
        directory.mkdir(parents=True, exist_ok=True)
        page, chart = directory / "benchmarks.md", directory / "benchmarks.svg"
        chart.write_text(self.svg())
        beginning = f"# Benchmarks\n\n![The main figures as bars]({chart.name})\n\n"
        text = page.read_text() if page.exists() else f"{beginning}{BEGIN}\n{END}\n"
        figures = self.markdown()
        page.write_text(between(text, BEGIN, END, figures)
                        or text.rstrip("\n") + "\n\n" + figures)
        return page, chart

    def _about(self):
        run, rounds = self.run, self.run["rounds"]
        command = f"benches/compare {run['arguments']}".rstrip()
        yield (f"Written by `{command}` on {run['date']}: medians of {rounds} "
               f"round{'s' * (rounds != 1)} of {run['seconds']} s for each load and server, in turn;"
               f" of CPU time also the least and the most. "
               f"{run['machine']}; the servers on core {run['server_cores']}, the load on core "
               f"{run['load_cores']}; over loopback. {', '.join(run['tools'])}.")

    def verdicts(self):
        """Returns the verdict on each budget."""
        return judge(self.median)

    def verdict_table(self):
        """Returns the verdicts as text."""
        return table(self.verdicts(), NAMES)

    def _budgets(self):
        verdicts = self.verdicts()
        measured = [v for v in verdicts if v.is_measured]
        if not measured:
            return
        met = sum(v.is_met for v in measured)
        yield "## Budgets"
        yield ""
        yield (f"Of {len(verdicts)} that must be met, {met} are, {len(measured) - met} are missed, and"
               f" {len(verdicts) - len(measured)} were not measured.")
        yield ""
        yield "| " + " | ".join(HEADINGS) + " |"
        yield "|---|" + "---:|" * 4 + "---|" * 2
        for row in rows(verdicts, NAMES):
            yield "| " + " | ".join("**missed**" if c == "missed" else c for c in row) + " |"

    def _table(self, title, unit, rows, spread=False):
        rows = [row for row in rows if row[0] in self.figures]
        if not rows:
            return
        yield f"## {title}" + (f", {unit[0]}" if unit and unit[0] else "")
        yield ""
        yield "| | " + " | ".join(peer.name for peer in self.peers) + " |"
        yield "|---|" + "---:|" * len(self.peers)
        for figure, what, *own in rows:
            own_unit = own[0] if own else unit
            cells = [shown(self.median(figure, peer.key), own_unit)
                     + (self._spread(figure, peer.key, own_unit) if spread else "")
                     for peer in self.peers]
            label = what + (f", {own_unit[0]}" if own and own_unit[0] else "")
            yield f"| {label} | " + " | ".join(cells) + " |"
        yield ""

    def _spread(self, figure, peer, unit):
        values = self._rounds(figure, peer)
        if len(values) < 2:
            return ""
        return f" ({shown(min(values), unit)} to {shown(max(values), unit)})"

    def _switches(self):
        """Yields the lines with the voluntary and involuntary context switches."""
        cases = [(key, f"{what}{suffix}") for cases, suffix in ((LOADS, ""), (SPINS, SPINNING))
                 for key, what in cases if f"{key}.waited" in self.figures]
        if not cases:
            return
        yield "## Context switches per request, voluntary + involuntary"
        yield ""
        yield "| | " + " | ".join(peer.name for peer in self.peers) + " |"
        yield "|---|" + "---:|" * len(self.peers)
        for key, what in cases:
            cells = []
            for peer in self.peers:
                both = [shown(self.median(f"{key}.{of}", peer.key), ("", 1, 2))
                        for of in ("waited", "displaced")]
                cells.append("—" if "—" in both else " + ".join(both))
            yield f"| {what} | " + " | ".join(cells) + " |"
        yield ""

    def _names(self):
        rows = [(peer, self.figures.get("syscalls.1.names", {}).get(peer.key),
                 self.figures.get("syscalls.16.names", {}).get(peer.key)) for peer in self.peers]
        rows = [(peer, one[0], many[0]) for peer, one, many in rows if one and many]
        if not rows:
            return []
        table = ["## System calls, by name", "",
                 "| | 1 connection | 16 connections |", "|---|---|---|"]
        return table + [f"| {peer.name} | {one} | {many} |" for peer, one, many in rows] + [""]

    def _failures(self):
        failures = self.run["failures"]
        if not failures:
            return []
        return ["What could not be measured:", "", *(f"- {failure}" for failure in failures), ""]

    def _versions(self):
        versions = [f"- {peer.name}: {self.run['versions'][peer.key]}" for peer in self.peers]
        return ["## Versions", "", *versions, ""]

    def svg(self):
        """Returns bars, with a panel for each figure, and smol-graceful in colour."""
        charts = [chart for chart in CHARTS if chart[0] in self.figures]
        columns, bar, gap, top = 2, 15, 5, 34
        width, label = 450, 112
        height = top + len(self.peers) * (bar + gap) + 22
        whole = (width * columns, height * max(1, -(-len(charts) // columns)))
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole[0]} {whole[1]}"'
            f' width="{whole[0]}" height="{whole[1]}" font-family="sans-serif" font-size="12">',
            "<title>smol-graceful beside other servers: shorter is better</title>",
            "<style>text{fill:#24292f}.t{font-weight:bold;font-size:14px}.b{fill:#9aa4af}"
            ".o{fill:#1f7a4d}.g{fill:#fff}@media(prefers-color-scheme:dark)"
            "{text{fill:#d8dee4}.b{fill:#59636e}.o{fill:#3fb27a}.g{fill:#0d1117}}</style>",
            f'<rect class="g" width="{whole[0]}" height="{whole[1]}"/>',
        ]
        for number, (figure, title, unit) in enumerate(charts):
            x, y = number % columns * width, number // columns * height
            out.append(f'<text class="t" x="{x + 10}" y="{y + 22}">'
                       f"{escape(title)}, {unit[0]}</text>")
            out.append(f'<text x="{x + width - 10}" y="{y + 22}" text-anchor="end">'
                       "short is better</text>")
            values = {peer.key: self.median(figure, peer.key) for peer in self.peers}
            longest = max((v for v in values.values() if v), default=1)
            for line, peer in enumerate(self.peers):
                value, line_y = values[peer.key], y + top + line * (bar + gap)
                length = max(1, (value or 0) / longest * (width - label - 75))
                kind = "o" if peer.key == "ours" else "b"
                out.append(f'<text x="{x + label}" y="{line_y + 12}" text-anchor="end">'
                           f"{escape(peer.name)}</text>")
                if value is not None:
                    out.append(f'<rect class="{kind}" x="{x + label + 8}" y="{line_y}"'
                               f' width="{length:.1f}" height="{bar}"/>')
                out.append(f'<text x="{x + label + 14 + (length if value is not None else 0):.1f}"'
                           f' y="{line_y + 12}">{shown(value, unit)}</text>')
        return "\n".join([*out, "</svg>"]) + "\n"


def about_machine():
    """Returns the kind of the machine in a few words."""
    with open("/proc/cpuinfo") as file:
        text = file.read()
    names = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    virtual = " of a virtual machine" * bool(re.search(r"(?m)^flags\s*:.* hypervisor", text))
    cpu = re.sub(r"\s+", " ", names[0]) if names else platform.machine()
    cores, kernel = os.cpu_count(), f"Linux {platform.release()}"
    return f"{cpu}, {cores} cores{virtual}, {kernel}"


def about_run(peers):
    """Returns the facts of a run beside its figures."""
    return {
        "date": date.today().isoformat(),
        "machine": about_machine(),
        "tools": tools(),
        "versions": {peer.key: version(peer) for peer in peers if peer.key != "before"},
    }


def between(text, begin, end, figures):
    """Returns the text with the part between the marks replaced, or None if a mark is missing."""
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    return before + figures.rstrip("\n") + after if has_begin and has_end else None
