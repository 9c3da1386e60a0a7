"""The format of the figures: (unit, factor, digits)."""

from math import isinf

MICROSECONDS = ("µs", 1e6, 1)
MILLISECONDS = ("ms", 1e3, 2)
MEGABYTES = ("MB", 1e-6, 1)
BYTES = ("bytes", 1, 0)
COUNT = ("", 1, 1)
CALLS = ("", 1, 2)
WHOLE = ("", 1, 0)
RATE = ("1/s", 1, 0)


def shown(value, unit, with_unit=False):
    """Returns a figure as text. None is a dash."""
    if value is None:
        return "—"
    name, factor, digits = unit
    if isinf(value):
        return "> 40 s"
    number = as_number(value * factor, digits)
    return f"{number} {name}".strip() if with_unit else number


def as_number(value, digits):
    """Returns the number with enough digits for a small value, and with about four at most."""
    if digits and value >= 100:
        digits = 0 if value >= 1000 else 1
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text and digits == 3 else text
