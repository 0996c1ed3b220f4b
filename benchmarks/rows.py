"""The servers that are measured side by side, and the bar for each, as a ratio to the bare server."""

from math import comb
from statistics import median
from typing import NamedTuple

CONFIDENCE = 0.95


class Row(NamedTuple):
    """A kind of call. ``bars`` are the minimum ratios to bare gRPC: sync, asyncio, uvloop."""

    name: str
    store: str
    bars: tuple[float, float, float] | None


ROWS = (
    Row("bare", "memory", None),
    Row("unprotected", "memory", (0.98, 0.98, 0.98)),
    Row("redis first", "redis", (0.50, 0.50, 0.48)),
    Row("redis replay, store", "redis", (0.58, 0.58, 0.57)),
    Row("redis replay, cache", "redis", (0.93, 0.86, 0.86)),
    Row("memory first", "memory", (0.68, 0.64, 0.60)),
    Row("sqlite first", "sqlite", (0.42, 0.38, 0.35)),
)


class Verdict(NamedTuple):
    """The ratios of one row on one face, one per repeat, and whether they reach the bar.

    ``bar`` is the minimum for their median; None if there is none.
    """

    row: str
    face: str
    ratios: tuple[float, ...]
    bar: float | None

    @property
    def median(self) -> float:
        return median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the median, between two of the sorted ratios.

        It narrows with more repeats. With fewer than six, it covers all of them.
        """
        ordered, count = sorted(self.ratios), len(self.ratios)
        outside = 0
        while 2 * sum(comb(count, number) for number in range(outside + 1)) <= (1 - CONFIDENCE) * 2**count:
            outside += 1
        outside = max(1, outside)
        return ordered[outside - 1], ordered[-outside]

    @property
    def is_missed(self) -> bool:
        """Whether the whole confidence interval lies below the bar."""
        return self.bar is not None and self.interval[1] < self.bar

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.ratios):.2f}..{max(self.ratios):.2f})"
