"""Time that processes of one host agree on, whatever is done to its wall clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BootClock:
    """What a host knows of time: which boot it is in, and seconds by two clocks.

    ``elapsed`` is the same for every process of this ``boot``, and never goes
    back. ``wall`` outlives the boot, and may be set. Where boots cannot be told
    apart ``boot`` is empty, and ``elapsed`` has to be ``wall``.
    """

    boot: str
    elapsed: Callable[[], float]
    wall: Callable[[], float] = time.time


def host_clock() -> BootClock:
    """This host's clock: on Linux the time since boot, elsewhere the wall clock alone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return BootClock("", time.time)
    return BootClock(boot, lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
