"""drain waits for everything that a stopped server still has to run or to store."""

import subprocess
import sys
import threading
from uuid import uuid4

import pytest

from idem_grpc import Reason
from idem_grpc._core.digest import store_key
from idem_grpc._core.record import Record, State
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import order, run
from tests.server.processes import ENVIRONMENT, ROOT
from tests.support.wait import until

AT_WORK = "at work"


@pytest.fixture
def gate(kind):
    """A gate at which the request has arrived completely, so that the run goes on without its caller."""
    return run(gate=AT_WORK, responses_before_gate=3 if kind is Kind.BIDI else 0)


def in_the_background(call):
    """Call it on a thread, and return a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()

    def result():
        thread.join()
        return results[0]

    return result


def test_drain_waits_for_a_run_whose_server_was_stopped(start, url, kind, key, gate):
    server, request = start(url), order(gate)
    call = server.client.begin(kind, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    server.stop(grace=0)
    assert not call.answer().ok
    assert server.drain(0.05) == 1
    left = in_the_background(lambda: server.drain(30))
    server.ledger.gate(AT_WORK).open()
    assert left() == 0
    assert server.record(key, kind).state is State.DONE
    assert len(server.ledger.runs(request)) == 1


def test_drain_of_an_idle_server_returns_at_once(start, kind, key):
    server = start()
    assert server.client.call(kind, order(), key).ok
    until(lambda: server.drain(0) == 0)


@pytest.mark.parametrize("kind", [Kind.UNARY], indirect=True)
def test_drain_waits_for_outcomes_that_are_not_stored_yet(own_redis_server, start, kind, key, gate):
    server = start(own_redis_server.url + "?socket_timeout=1")
    request = order(gate)
    call = server.client.begin(kind, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    own_redis_server.pause()
    server.ledger.gate(AT_WORK).open()
    assert call.answer().reason is Reason.OUTCOME_PENDING
    server.stop(grace=0)
    assert server.drain(0.05) == 1
    left = in_the_background(lambda: server.drain(30))
    own_redis_server.resume()
    assert left() == 0
    assert server.record(key, kind).state is State.DONE


SHUTDOWN = """
import asyncio, sys
import grpc
from tests_pb.v1 import ledger_pb2_grpc
import idem_grpc.aio
from tests.server.client import Client, Kind
from tests.server.ledger import Ledger, order, run
from tests.server.servicers import AsyncServicer

url, namespace, on_unclear, kind, ending = sys.argv[1:]

async def main():
    policy = idem_grpc.Policy(on_unclear=idem_grpc.OnUnclear[on_unclear])
    store = idem_grpc.aio.open_store(url, namespace=namespace)
    interceptor = idem_grpc.aio.ServerInterceptor(store, scope=idem_grpc.SHARED, default=policy)
    server = grpc.aio.server(interceptors=[interceptor])
    ledger = Ledger()
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(AsyncServicer(ledger), server)
    client = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    call = client.begin(Kind(kind), order(run(gate="at work")), "key")
    await asyncio.to_thread(ledger.gate("at work").await_arrival)
    if ending == "stop":
        await server.stop(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
@pytest.mark.parametrize("ending", ["return", "stop"])
@pytest.mark.parametrize("on_unclear", ["RERUN", "FAIL"])
@pytest.mark.parametrize("kind", [Kind.UNARY], indirect=True)
def test_an_event_loop_that_ends_leaves_nothing_running(url, kind, on_unclear, ending):
    namespace = uuid4().hex
    arguments = [url, namespace, on_unclear, kind.value, ending]
    subprocess.run(
        [sys.executable, "-c", SHUTDOWN, *arguments], check=True, timeout=30, cwd=ROOT, env=ENVIRONMENT
    )
    with open_store("sync", url, namespace) as store:
        name = store_key(namespace, kind.path, b"", "key")
        left = Record.from_bytes(store.read(name).value)
    assert left.state is {"RERUN": State.OPEN, "FAIL": State.UNKNOWN}[on_unclear]
    assert left.attempt == 1
