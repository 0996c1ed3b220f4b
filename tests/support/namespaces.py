"""Linux namespaces, in which a process runs as it would in a container."""

import os
from contextlib import suppress
from pathlib import Path

_USER = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]


def unshared(*options: str) -> list[str]:
    """The command prefix that runs a command in namespaces of its own, by unshare of util-linux.

    Killing the process kills the command too.
    """
    return ["unshare", "--kill-child", *_USER, *options]


def time_shifted(seconds: int) -> list[str]:
    """The same, where CLOCK_BOOTTIME is ``seconds`` ahead of the host's."""
    return unshared("--time", f"--boottime={seconds}")


class SmallDisk:
    """A file system of ``size`` bytes at ``path``, for the process that is started ``within`` it."""

    def __init__(self, path: Path, size: int) -> None:
        path.mkdir()
        self._path = path
        mount = f'mount -t tmpfs -o size={size} none {path} && exec "$@"'
        self.within = unshared("--mount", "sh", "-c", mount, "sh")

    def fill(self, pid: int) -> None:
        """Leave no space on it. ``pid`` is that of the process that was started by ``within``."""
        with suppress(OSError), self._ballast(pid).open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def make_room(self, pid: int) -> None:
        self._ballast(pid).unlink()

    def _ballast(self, pid: int) -> Path:
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return Path(f"/proc/{child}/root{self._path}/ballast")
