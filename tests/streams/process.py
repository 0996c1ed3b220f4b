"""Processes of a test's own: a server that may be killed, and any other module to run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


def start_python(
    module: str, *arguments: str, stdout: int | IO[bytes] | None = None
) -> "subprocess.Popen[str]":
    """Run a module with what this process can import."""
    paths = [str(ROOT), *(path for path in sys.path if path)]
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        text=True,
    )
