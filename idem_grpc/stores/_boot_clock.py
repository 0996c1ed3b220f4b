"""A clock that all processes of one host share, and that setting the wall clock does not move."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

_JUMP = 0.1  # seconds; a larger change between the two clocks means that one of them was set


class Moment(NamedTuple):
    """A point in time on two clocks, in seconds.

    boot: identifies the boot of the host; empty if boots cannot be distinguished.
    elapsed: seconds since that boot. All processes with the same ``boot`` share it, and it
        never goes back. It is ``wall`` if ``boot`` is empty.
    wall: seconds on the wall clock, which continues across boots, but may be set.
    """

    boot: str
    elapsed: float
    wall: float


class Clock(Protocol):
    def now(self) -> Moment: ...


@dataclass(frozen=True, slots=True)
class BootClock:
    """A clock built from functions that return the parts of a Moment, for tests."""

    boot: str
    elapsed: Callable[[], float]
    wall: Callable[[], float] = time.time

    def now(self) -> Moment:
        return Moment(self.boot, self.elapsed(), self.wall())


class HostClock:
    """This host's clock: on Linux the time since boot, elsewhere the wall clock alone.

    A container may have a time namespace, which adds an offset to CLOCK_BOOTTIME. ``elapsed``
    leaves that offset out, so that all processes on one kernel agree. A process that is restored
    from a checkpoint may be on another host or have another offset: both are read again when the
    difference between the time since boot and the wall clock changes by more than 0.1 s.
    """

    def __init__(self) -> None:
        self._identity = _identify()

    @property
    def boot(self) -> str:
        return self.now().boot

    def elapsed(self) -> float:
        return self.now().elapsed

    def now(self) -> Moment:
        boot, offset, behind = self._identity
        wall = time.time()
        if not boot:
            return Moment(boot, wall, wall)
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        if abs(wall - since_boot - behind) > _JUMP:
            self._identity = boot, offset, _ = _identify()
            if not boot:
                return Moment(boot, wall, wall)
        return Moment(boot, since_boot - offset, wall)


def host_clock() -> HostClock:
    return HostClock()


def _identify() -> tuple[str, float, float]:
    """Return the boot, the offset of CLOCK_BOOTTIME, and the wall clock's lead over it.

    The boot is empty if it or the offset cannot be read.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        offset = _boottime_offset()
        behind = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError, ValueError):
        return "", 0.0, 0.0
    # The suffix marks these times: the first release wrote the bare id, and its times include the offset.
    return f"{boot_id}/host", offset, behind


def _boottime_offset() -> float:
    """Return the seconds that this process's time namespace adds to CLOCK_BOOTTIME.

    Raises OSError or ValueError if they cannot be determined.
    """
    namespaces = "/proc/self/ns"
    if "time" not in os.listdir(namespaces):
        return 0.0  # the kernel has no time namespaces
    # timens_offsets describes the namespace of future children, which may not be this process's own.
    if os.readlink(f"{namespaces}/time") != os.readlink(f"{namespaces}/time_for_children"):
        raise ValueError("this process has created a time namespace without entering it")
    for line in Path("/proc/self/timens_offsets").read_text("ascii").splitlines():
        name, seconds, nanoseconds = line.split()
        if name in ("boottime", "7"):  # Linux 5.6 writes the clock's number instead of its name
            return int(seconds) + int(nanoseconds) / 1e9
    raise ValueError("/proc/self/timens_offsets has no line for boottime")
