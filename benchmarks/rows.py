"""The servers that are measured side by side, and how fast each has to be, as a ratio to the bare one."""

from math import comb
from statistics import median
from typing import NamedTuple

CONFIDENCE = 0.95


class Row(NamedTuple):
    """A kind of call. ``bars`` are the least ratios to bare gRPC: sync, asyncio, uvloop."""

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
    """The ratios of one row on one face, one of each repeat, and what is said of them.

    ``bar`` is the least that their median may be; None if there is none.
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
        """Where the true median lies, in 95 of 100 runs: between two of the ratios in their order.

        The more repeats, the narrower it is; with fewer than six it is all of them.
        """
        ordered, count = sorted(self.ratios), len(self.ratios)
        outside = 0
        while 2 * sum(comb(count, number) for number in range(outside + 1)) <= (1 - CONFIDENCE) * 2**count:
            outside += 1
        outside = max(1, outside)
        return ordered[outside - 1], ordered[-outside]

    @property
    def is_missed(self) -> bool:
        """Whether the bar is missed by more than the run's own spread."""
        return self.bar is not None and self.interval[1] < self.bar

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.ratios):.2f}..{max(self.ratios):.2f})"
