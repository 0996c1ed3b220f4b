"""The clock by which a process measures its leases."""

import time

# Linux stops CLOCK_MONOTONIC while the host is suspended; CLOCK_BOOTTIME goes on. macOS has no
# CLOCK_BOOTTIME, and its CLOCK_MONOTONIC goes on.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))

if _CLOCK is None:
    elapsed = time.monotonic
else:

    def elapsed(_clock: int = _CLOCK) -> float:
        """Seconds since some moment in the past, those included in which the host was suspended."""
        return time.clock_gettime(_clock)
