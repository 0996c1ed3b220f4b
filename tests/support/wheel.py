"""The wheel as it is published, and virtual environments to install it in."""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command, and return what it prints. Raises AssertionError, with the output, if it fails.

    Unless ``env`` is given, the command gets the environment of the tests without PYTHONPATH.
    """
    if env is None:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=cwd,
        env=env,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def build(folder: Path) -> Path:
    """Build an sdist, and the wheel from it, which fails if the sdist lacks a file."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path, *requirements: str | Path) -> Path:
    """Create a virtual environment with ``requirements``, and return its bin folder."""
    venv.create(folder, with_pip=False)
    commands = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", commands / "python")
    run(*pip, "install", "--quiet", *requirements)
    return commands
