"""Shows the growth of costs as pictures (SVG), as tables, and in words.

Makes text of figures, and does no I/O. A figure with a `step` is a total, and should grow in
proportion to its size, apart from a fixed part. A figure without a `step` is the cost of one
connection or request, and should not grow.
"""

from dataclasses import dataclass
from html import escape
from math import log10
from statistics import median

from .units import BYTES, CALLS, MEGABYTES, MICROSECONDS, MILLISECONDS, RATE, WHOLE, shown

BEGIN, END = "<!-- growth: written by benches/growth -->", "<!-- end of the growth -->"

# Costs within this ratio count as the same, because rounds differ by as much.
FLAT = 1.15
LINEAR = 1.30

CONNECTION = ("connection", 1)
FIELD = ("field", 1)
MEBIBYTE = ("MiB", 1 << 20)


@dataclass(frozen=True)
class Panel:
    """A figure over its sizes. For a total, `step` is the unit whose cost is shown."""

    figure: str
    title: str
    unit: tuple
    step: tuple = None
    is_x_log: bool = False
    is_y_log: bool = False


@dataclass(frozen=True)
class Plot:
    """Panels with the same sizes, in one file."""

    name: str
    title: str
    sizes: str
    panels: tuple


PLOTS = [
    Plot("growth-idle", "Idle connections", "connections", (
        Panel("idle.memory", "Memory each", BYTES),
        Panel("idle.sweep", "CPU per second while all are idle", MICROSECONDS, CONNECTION),
        Panel("idle.drain", "TERM to exit, beyond the linger", MILLISECONDS, CONNECTION),
        Panel("idle.drain.cpu", "CPU from TERM to exit", MILLISECONDS, CONNECTION),
        Panel("handover.rate", "Handed over per second at a restart", RATE),
    )),
    Plot("growth-connections", "Busy connections", "connections", (
        Panel("connections.cpu", "CPU per request", MICROSECONDS, is_x_log=True),
        Panel("connections.switches", "Context switches per request", CALLS, is_x_log=True),
    )),
    Plot("growth-heads", "Fields of a head", "fields", (
        Panel("heads.cpu", "CPU per request", MICROSECONDS, FIELD),
        Panel("heads.instructions", "Instructions per request", WHOLE, FIELD),
    )),
    Plot("growth-bodies", "Bodies", "bytes", (
        Panel("bodies.up", "CPU per upload", ("ms", 1e3, 3), MEBIBYTE, True, True),
        Panel("bodies.down", "CPU per download", ("ms", 1e3, 3), MEBIBYTE, True, True),
        Panel("bodies.up.peak", "Peak memory, uploads", MEGABYTES, is_x_log=True),
        Panel("bodies.down.peak", "Peak memory, downloads", MEGABYTES, is_x_log=True),
    )),
]


def points(run, figure):
    """Returns the medians of a figure by its size: [(size, value)]."""
    sizes = run["figures"].get(figure, {})
    return sorted((int(size), median(values)) for size, values in sizes.items() if values)


def slope(panel, measured):
    """Describes the growth of a figure in words."""
    if len(measured) < 2:
        return "—"
    return _total(panel, measured) if panel.step else _each(panel, measured)


def _each(panel, measured):
    values = [value for _, value in measured]
    least, most = (pick(measured, key=lambda point: point[1]) for pick in (min, max))
    if least[1] > 0 and most[1] / least[1] <= FLAT:
        return f"flat: {shown(least[1], panel.unit)} to {shown(most[1], panel.unit, True)}"
    ends = f"from {shown(values[0], panel.unit)} to {shown(values[-1], panel.unit, True)}"
    if values == sorted(values):
        return f"grows, {ends}"
    if values == sorted(values, reverse=True):
        return f"falls, {ends}"
    turn, kind = (least, "least") if measured[0] != least != measured[-1] else (most, "most")
    return f"{ends}; {kind} at {sized(turn[0])}: {shown(turn[1], panel.unit, True)}"


def _total(panel, measured):
    name, step = panel.step
    further = [(y2 - y1) / (x2 - x1) * step
               for (x1, y1), (x2, y2) in zip(measured, measured[1:])]
    # A part of a unit has its own number of digits.
    costs = ", then ".join(_cost(value, panel.unit) for value in further)
    told = f"{costs} for each further {name}"
    if min(further) <= 0:
        return f"{told}: less than what the rounds differ by"
    first, last = further[0], further[-1]
    if max(further) / min(further) <= LINEAR:
        return f"linear: {told}"
    if last > first:
        return f"**more than linear**: {told}"
    return f"less than linear: {told}"


def _cost(value, unit):
    """Returns the value with three digits, in a unit that is small enough."""
    name, factor, _ = unit
    number = value * factor
    for smaller in ({"ms": ("µs", 1e3), "µs": ("ns", 1e3)}.get(name),):
        if smaller and abs(number) < 1:
            name, number = smaller[0], number * smaller[1]
    text = f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
    return f"{text} {name}".strip()


def sized(size):
    """Returns a size as text. Powers of 1,024 from 1 KiB on are bytes."""
    for name, factor in ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10):
        # 4,096 connections are not 4 KiB.
        if size >= factor and size % factor == 0 and size != 4096:
            return f"{size // factor} {name}"
    return f"{size:,}"


def markdown(run):
    """Returns the text between the two marks, with links to the pictures."""
    command, rounds = f"benches/growth {run['arguments']}".rstrip(), run["rounds"]
    lines = [
        BEGIN, "## How cost grows", "",
        f"Written by `{command}` on {run['date']} at {run['commit']}: medians of {rounds} "
        f"round{'s' * (rounds != 1)}, loads of {run['seconds']} s. {run['machine']}; the server on "
        f"core {run['server_cores']}, a load that never sleeps on core {run['load_cores']}. A dashed line"
        " is the cost that would grow in proportion, apart from a fixed part.", "",
    ]
    for plot in PLOTS:
        rows = [(panel, points(run, panel.figure)) for panel in plot.panels]
        rows = [(panel, measured) for panel, measured in rows if measured]
        if not rows:
            continue
        sizes = sorted({size for _, measured in rows for size, _ in measured})
        lines += [f"### {plot.title}", "", f"![{plot.title}]({plot.name}.svg)", "",
                  "| | " + " | ".join(map(sized, sizes)) + " | slope |",
                  "|---|" + "---:|" * len(sizes) + "---|"]
        for panel, measured in rows:
            values = dict(measured)
            title = f"{panel.title}, {panel.unit[0]}" if panel.unit[0] else panel.title
            cells = [shown(values.get(size), panel.unit) for size in sizes]
            lines.append(f"| {title} | " + " | ".join([*cells, slope(panel, measured)]) + " |")
        lines.append("")
    if run["failures"]:
        lines += ["What could not be measured:", "", *(f"- {f}" for f in run["failures"]), ""]
    return "\n".join([*lines, END]) + "\n"


WIDTH, HEIGHT = 450, 230
LEFT, RIGHT, TOP, BOTTOM = 66, 28, 54, 40


def svg(plot, run):
    """Draws the panels of a plot, two in a row."""
    panels = [(panel, points(run, panel.figure)) for panel in plot.panels]
    panels = [(panel, measured) for panel, measured in panels if measured]
    columns = min(2, len(panels)) or 1
    width, height = WIDTH * columns, HEIGHT * max(1, -(-len(panels) // columns))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(plot.title)}: how cost grows</title>",
        "<style>text{fill:#24292f}.t{font-weight:bold;font-size:14px}.a{fill:none;stroke:#9aa4af}"
        ".d{fill:none;stroke:#9aa4af;stroke-dasharray:4 4}.l{fill:none;stroke:#1f7a4d;stroke-width:2}"
        ".p{fill:#1f7a4d}.g{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#d8dee4}"
        ".a,.d{stroke:#59636e}.l{stroke:#3fb27a}.p{fill:#3fb27a}.g{fill:#0d1117}}</style>",
        f'<rect class="g" width="{width}" height="{height}"/>',
    ]
    for number, (panel, measured) in enumerate(panels):
        out += _panel(panel, measured, plot.sizes,
                      number % columns * WIDTH, number // columns * HEIGHT)
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(panel, measured, sizes, left, top):
    x_of = _scale([x for x, _ in measured], panel.is_x_log,
                  left + LEFT + 28 * panel.is_x_log, left + WIDTH - RIGHT)
    y_of = _scale([y for _, y in measured], panel.is_y_log,
                  top + HEIGHT - BOTTOM, top + TOP)
    bottom, right = top + HEIGHT - BOTTOM, left + WIDTH - RIGHT
    unit = f", {panel.unit[0]}" if panel.unit[0] else ""
    yield f'<text class="t" x="{left + 10}" y="{top + 22}">{escape(panel.title)}{unit}</text>'
    yield (f'<text x="{right}" y="{top + 22}" text-anchor="end">'
           f"{'high' if panel.unit == RATE else 'low'} is better</text>")
    yield f'<path class="a" d="M{left + LEFT} {top + TOP}V{bottom}H{right}"/>'
    if not panel.is_y_log:
        yield f'<text x="{left + LEFT - 6}" y="{bottom + 4}" text-anchor="end">0</text>'
    if line := _straight(panel, measured):
        yield f'<path class="d" d="{_path([(x_of(x), y_of(y)) for x, y in line])}"/>'
    places = [(x_of(x), y_of(y)) for x, y in measured]
    yield f'<path class="l" d="{_path(places)}"/>'
    for (size, value), (x, y) in zip(measured, places):
        anchor = "end" if x > right - 30 else "middle"
        yield f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        yield (f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="{anchor}">'
               f"{shown(value, panel.unit)}</text>")
        yield f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{sized(size)}</text>'
    yield (f'<text x="{(left + LEFT + right) / 2:.1f}" y="{bottom + 33}" text-anchor="middle">'
           f"{sizes}{_axes(panel)}</text>")


def _axes(panel):
    if panel.is_y_log:
        return " (both axes logarithmic)"
    return " (logarithmic)" if panel.is_x_log else ""


def _straight(panel, measured):
    """Returns the dashed line, on which a total grows in proportion. None for a cost."""
    (x1, y1), (x2, y2) = measured[0], measured[-1]
    if not panel.step or x1 == x2:
        return None
    if not panel.is_x_log:
        return [(x1, y1), (x2, y2)]
    # With logarithmic axes, a fixed part makes the line a curve.
    count = 24
    xs = [x1 * (x2 / x1) ** (number / count) for number in range(count + 1)]
    return [(x, y1 + (x - x1) * (y2 - y1) / (x2 - x1)) for x in xs]


def _scale(values, is_log, begin, end):
    """Returns the function from a value to its position. A linear axis begins at 0."""
    if is_log:
        low, high = log10(min(values)), log10(max(values))
        span = high - low or 1
        return lambda value: begin + (log10(value) - low) / span * (end - begin)
    high = max(values) or 1
    return lambda value: begin + value / high * (end - begin)


def _path(places):
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
