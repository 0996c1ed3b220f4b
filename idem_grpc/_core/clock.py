"""The clock with which a process measures its leases."""

import time
from collections.abc import Callable
from functools import partial

# Linux stops CLOCK_MONOTONIC while the host is suspended; CLOCK_BOOTTIME goes on. macOS has no
# CLOCK_BOOTTIME, and its CLOCK_MONOTONIC goes on.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))

elapsed: Callable[[], float] = time.monotonic if _CLOCK is None else partial(time.clock_gettime, _CLOCK)
"""Seconds since an arbitrary moment, including the time during which the host was suspended."""
