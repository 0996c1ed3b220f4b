"""A client of another make, grpc-js, which knows nothing of this library but the name of a header."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.client import REPLAYED, RUN, Kind
from tests.server.processes import ROOT

PACKAGES = {"@grpc/grpc-js": "1.14.7", "@grpc/proto-loader": "0.8.1"}
PROTO = ROOT / "tests/protos/tests_pb/v1/ledger.proto"


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


def test_a_foreign_client_gets_replays_of_every_kind(start, modules, key):
    server = start()
    finished = subprocess.run(
        ["node", str(Path(__file__).parent / "foreign.cjs"), server.address, str(PROTO), key],
        env={**os.environ, "NODE_PATH": str(modules)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
    )
    told = json.loads(finished.stdout)
    kinds = [kind for kind in Kind if kind is not Kind.READ]
    assert list(told) == [kind.value for kind in kinds]
    for kind in kinds:
        first, second = told[kind.value]
        assert (first["code"], second["code"]) == (0, 0), told
        assert len(first["responses"]) == (3 if kind.has_response_stream else 1)
        assert second["responses"] == first["responses"]
        assert first["trailing"][RUN] == second["trailing"][RUN]
        assert REPLAYED not in first["trailing"]
        assert second["trailing"][REPLAYED] == "true"
        for answer in (first, second):
            assert (answer["initial"].get(RUN) == first["trailing"][RUN]) is kind.has_response_stream
    assert len(server.ledger.all_runs) == len(kinds)
