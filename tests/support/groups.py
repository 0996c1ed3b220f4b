"""Programs that start others, in a process group of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def started(module: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """``python -m module``. Its group is gone afterwards, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def run(module: str, *options: str) -> tuple[int, str]:
    """Return its exit status and output. It must leave no process running, and print no traceback."""
    with started(module, *options) as process:
        printed, _ = process.communicate(timeout=90)
        assert not group_lives(process.pid)
    assert "Traceback" not in printed, printed
    return process.returncode, printed
