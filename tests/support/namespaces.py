"""Linux namespaces, which make a process of this host one of a container."""

import os

_USER = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]


def unshared(*options: str) -> list[str]:
    """What to put before a command so that it runs in namespaces of its own, as util-linux makes them.

    Killing the process kills the command too.
    """
    return ["unshare", "--kill-child", *_USER, *options]


def time_shifted(seconds: int) -> list[str]:
    """The same, where CLOCK_BOOTTIME is ``seconds`` ahead of the host's."""
    return unshared("--time", f"--boottime={seconds}")
