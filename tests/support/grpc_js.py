"""grpc-js, a client of another make, as a fixture that installs it."""

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.processes import ROOT

PACKAGES = {"@grpc/grpc-js": "1.14.7", "@grpc/proto-loader": "0.8.1"}


@pytest.fixture(scope="module")
def modules() -> Path:
    """Where grpc-js is installed, for this run of the tests and for all to come."""
    for tool in ("node", "npm"):
        assert shutil.which(tool), f"there is no {tool} on the PATH: install Node.js 18 or later, with npm"
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    folder = cache / ("grpc-js-" + "-".join(PACKAGES.values()))
    with (cache / "grpc-js.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several runs may want it at once
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": PACKAGES}))
            quiet = ["--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(["npm", "install", *quiet], cwd=folder, check=True, timeout=100)
            (folder / "complete").touch()
    return folder / "node_modules"
