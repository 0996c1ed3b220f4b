"""grpc-js, a client that uses nothing of this library but the name of a header."""

import json
import os
import subprocess
from pathlib import Path

from tests.server.client import REPLAYED, RUN, Kind
from tests.server.processes import ROOT
from tests.support.grpc_js import modules

__all__ = ["modules"]  # fixtures are found by name

PROTO = ROOT / "tests/protos/tests_pb/v1/ledger.proto"


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
    answers = json.loads(finished.stdout)
    kinds = [kind for kind in Kind if kind is not Kind.READ]
    assert list(answers) == [kind.value for kind in kinds]
    for kind in kinds:
        first, second = answers[kind.value]
        assert (first["code"], second["code"]) == (0, 0), answers
        assert len(first["responses"]) == (3 if kind.has_response_stream else 1)
        assert second["responses"] == first["responses"]
        assert first["trailing"][RUN] == second["trailing"][RUN]
        assert REPLAYED not in first["trailing"]
        assert second["trailing"][REPLAYED] == "true"
        for answer in (first, second):
            assert (answer["initial"].get(RUN) == first["trailing"][RUN]) is kind.has_response_stream
    assert len(server.ledger.all_runs) == len(kinds)
