"""A client in another language, which has only the service config of this library, gets its answer."""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from examples.retries.proxy import Proxy
from idem_grpc import Policy, Reason, Replied, Reporter, service_config
from tests.server.client import Kind
from tests.server.conftest import face, key, start
from tests.server.ledger import DEADLINE, order, run
from tests.server.processes import ServerProcess
from tests.support.grpc_js import modules
from tests.support.wait import until

__all__ = ["face", "key", "modules", "start"]  # fixtures are found by name

SCRIPT = Path(__file__).parent / "foreign.cjs"
AT_WORK = "at-work"


class Replies(Reporter):
    def __init__(self):
        self.events: list[Replied] = []

    def replied(self, event):
        self.events.append(event)

    def refusals(self):
        return [event for event in self.events if event.reason is Reason.IN_PROGRESS]


@pytest.fixture
def calling(modules):
    """Start a call of grpc-js. Gives a function that waits for what came of it."""

    @contextmanager
    def calling(address, request, key, **settings):
        config = service_config(["tests.v1.LedgerService"], **settings)
        call = (address, Kind.UNARY.path, key, config, request.SerializeToString().hex())
        process = subprocess.Popen(
            ["node", str(SCRIPT), *call],
            env=os.environ | {"NODE_PATH": str(modules)},
            stdout=subprocess.PIPE,
            text=True,
        )

        def answer():
            printed, _ = process.communicate(timeout=90)
            assert process.returncode == 0
            return json.loads(printed)

        with process:
            try:
                yield answer
            finally:
                process.kill()

    return calling


def test_it_comes_again_until_the_call_that_runs_is_done(start, calling, key):
    replies = Replies()
    server = start(default=Policy(wait=0), reporter=replies)
    request = order(run(gate=AT_WORK))
    first = server.client.begin(Kind.UNARY, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    with calling(server.address, request, key) as answer:
        until(lambda: len(replies.refusals()) >= 2)
        server.ledger.gate(AT_WORK).open()
        found = answer()
    assert (found["code"], found["replayed"]) == (0, "true")
    (message,) = first.answer().messages
    assert bytes.fromhex(found["message"]) == message
    assert len(server.ledger.runs(request)) == 1


def test_it_gives_up_after_the_attempts_that_grpc_allows(start, calling, key):
    """What our config cannot do: IN_PROGRESS costs a native retry an attempt."""
    replies = Replies()
    server = start(default=Policy(wait=0), reporter=replies)
    request = order(run(gate=AT_WORK))
    server.client.begin(Kind.UNARY, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    with calling(server.address, request, key, max_attempts=2) as answer:
        assert answer()["code"] == grpc.StatusCode.UNAVAILABLE.value[0]
    assert len(replies.refusals()) == 2


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_it_gets_its_answer_from_a_server_that_was_killed_and_started_again(face, calling, key, tmp_path):
    policy = {"lease": 0.5, "retention": 600}
    store = (face, f"sqlite:///{tmp_path}/idem.db", uuid4().hex)
    request = order(run(gate=AT_WORK), run())
    servers = [ServerProcess(*store, default=policy)]
    try:
        # Connections to the address are held while the server is down, so that the test does not
        # race the start of a process with five short attempts.
        with Proxy(servers[0].address) as proxy, calling(proxy.address, request, key) as answer:
            servers[0].await_gate(AT_WORK)
            servers[0].kill()
            servers.append(ServerProcess(*store, default=policy))
            proxy.targets[:] = [servers[1].address]
            found = answer()
        assert found["code"] == 0, found
        assert pb.LedgerResponse.FromString(bytes.fromhex(found["message"])).order == request.order
        assert [server.attempts(request) for server in servers] == [[1], [2]]
        again = servers[1].client.call(Kind.UNARY, request, key, timeout=DEADLINE)
        assert again.replayed
        assert [message.hex() for message in again.messages] == [found["message"]]
    finally:
        for server in servers:
            server.close()
