"""grpc-js, a client that knows nothing of this library, installed for the tests."""

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = {"@grpc/grpc-js": "1.14.7", "@grpc/proto-loader": "0.8.1"}
CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="module")
def modules() -> Path:
    """The node_modules folder with grpc-js. It is installed once and used by later test runs too."""
    for tool in ("node", "npm"):
        assert shutil.which(tool), f"there is no {tool} on the PATH: install Node.js 18 or later, with npm"
    CACHE.mkdir(exist_ok=True)
    folder = CACHE / ("grpc-js-" + "-".join(PACKAGES.values()))
    with (CACHE / "grpc-js.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may install it at once
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": PACKAGES}))
            quiet = ["--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(["npm", "install", *quiet], cwd=folder, check=True, timeout=100)
            (folder / "complete").touch()
    return folder / "node_modules"
