"""The servers that are measured side by side, and how fast each has to be, as a ratio to the bare one."""

from typing import NamedTuple


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
    """The ratios of one row on one face: of each repeat, and what is said of them."""

    row: str
    face: str
    ratios: tuple[float, ...]
    bar: float | None

    @property
    def median(self) -> float:
        ordered = sorted(self.ratios)
        half = len(ordered) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2

    @property
    def is_missed(self) -> bool:
        """Whether the bar is missed by more than the run's own spread: even the best repeat is below it."""
        return self.bar is not None and max(self.ratios) < self.bar
