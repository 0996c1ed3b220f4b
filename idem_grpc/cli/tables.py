"""Aligned columns for people."""

import math
from collections.abc import Sequence

_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns are aligned; the last column is not padded."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def span(seconds: float) -> str:
    """A length of time, in the two units that say the most: "1 h 30 min"."""
    if math.isinf(seconds):
        return "without end"
    if seconds < 60:
        return f"{seconds:.3g} s"
    size, unit, smaller, name = next(units for units in _UNITS if seconds >= units[0])
    whole, rest = int(seconds) // size, int(seconds) % size // smaller
    return f"{whole} {unit}" + (f" {rest} {name}" if rest else "")
