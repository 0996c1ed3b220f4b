"""Time that the processes of one host agree on, whatever is done to its wall clock."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

_JUMP = 0.1  # seconds; by more, two clocks part only if one of them was set


class Moment(NamedTuple):
    """Now: seconds ``elapsed`` in the boot called ``boot``, and seconds by the wall clock.

    ``elapsed`` is the same for every process that has this ``boot``, and never goes
    back. ``wall`` outlives the boot, and may be set. Where boots cannot be told apart
    ``boot`` is empty, and ``elapsed`` is ``wall``.
    """

    boot: str
    elapsed: float
    wall: float


class Clock(Protocol):
    def now(self) -> Moment: ...


@dataclass(frozen=True, slots=True)
class BootClock:
    """A clock made of the parts of a Moment, for tests."""

    boot: str
    elapsed: Callable[[], float]
    wall: Callable[[], float] = time.time

    def now(self) -> Moment:
        return Moment(self.boot, self.elapsed(), self.wall())


class HostClock:
    """This host's clock: on Linux the time since boot, elsewhere the wall clock alone.

    In a time namespace, which a container may have, CLOCK_BOOTTIME is moved by an offset.
    ``elapsed`` is without it, so all processes on one kernel agree. A checkpoint from
    which this process was restored may have moved it to another host or offset: both are
    read again when the time since boot and the wall clock part suddenly.
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
    """The boot, the offset of CLOCK_BOOTTIME, and how far it is behind the wall clock.

    The boot is empty where it or the offset is not known.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        offset = _boottime_offset()
        behind = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError, ValueError):
        return "", 0.0, 0.0
    # A bare id is what the first release wrote, with times that had the offset of the writer in them.
    return f"{boot_id}/host", offset, behind


def _boottime_offset() -> float:
    """Seconds that this process's time namespace adds to CLOCK_BOOTTIME.

    Raises OSError or ValueError where that cannot be known.
    """
    namespaces = "/proc/self/ns"
    if "time" not in os.listdir(namespaces):
        return 0.0  # a kernel that has none
    # The file tells of the namespace that children will be in.
    if os.readlink(f"{namespaces}/time") != os.readlink(f"{namespaces}/time_for_children"):
        raise ValueError("this process has made a time namespace without entering it")
    for line in Path("/proc/self/timens_offsets").read_text("ascii").splitlines():
        name, seconds, nanoseconds = line.split()
        if name in ("boottime", "7"):  # Linux 5.6 has the clock's number
            return int(seconds) + int(nanoseconds) / 1e9
    raise ValueError("no offset of the time since boot")
