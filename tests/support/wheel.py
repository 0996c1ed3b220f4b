"""The wheel as it is published, and environments that have nothing else."""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints. AssertionError, with that, if it fails.

    Unless ``env`` says otherwise, no PYTHONPATH of whoever runs the tests helps it.
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
    """Make an sdist, and the wheel from that: so the sdist has all it needs."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path, *requirements: str | Path) -> Path:
    """A new environment with ``requirements``; returns its folder of commands."""
    venv.create(folder, with_pip=False)
    commands = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", commands / "python")
    run(*pip, "install", "--quiet", *requirements)
    return commands
