"""Stock clients, whose own retries make five attempts, get the answer of a long run."""

import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem_grpc import Policy, Reason, service_config
from idem_grpc._core.problem import Outlook, pushback_ms
from tests.server.client import Client, Kind
from tests.server.harness import open_store
from tests.server.kinds import FIRST_AND_LAST
from tests.server.ledger import order, run
from tests.server.processes import ServerProcess
from tests.server.stores import watched
from tests.support.grpc_js import modules
from tests.support.wait import until

__all__ = ["modules"]  # fixtures are found by name

LONG = 21.0
"""Seconds: 250 ms, 1, 4 and 10 s are at most 18.3 with their jitter, which is what the waits once were."""

PATIENCE = 36.0
"""Seconds of the clients' deadlines. The last wait leaves room for them, so the tests are over sooner."""

CONFIG = service_config(["tests.v1.LedgerService"])
GRPC_JS = Path(__file__).parent.parent / "client" / "foreign.cjs"
SHORTEST, MIDDLE, LONGEST = (lambda low, high: low), (lambda low, high: 1.0), (lambda low, high: high)
seconds = st.floats(0.01, 1e6)


def waits(uniform, *, lasted=0.0, time_left=float("inf"), **policy):
    """The waits of a client that comes when the run has ``lasted`` so long, and is refused four times."""
    found, waited = [], 0.0
    for attempt in range(4):
        outlook = Outlook(time_left - waited, lasted + waited, **policy)
        found.append(pushback_ms(attempt, uniform, outlook) / 1000)
        waited += found[-1]
    return found


def test_the_waits_of_the_default_policy():
    policy = Policy()
    assert (policy.lease, policy.wait, policy.max_run) == (None, None, None), "see the built-in ones"
    assert waits(MIDDLE, lease=30, wait=10, max_run=3600) == [0.25, 1.25, 6.25, 37.5]
    assert sum(waits(SHORTEST, lease=30, wait=10, max_run=3600)) > 36


@given(lease=seconds, wait=seconds)
def test_five_attempts_cover_a_takeover_and_the_wait_of_the_policy(lease, wait):
    total = sum(waits(SHORTEST, lease=lease, wait=wait))
    assert total >= max(31, lease, wait) - 0.01


@given(lasted=st.floats(1, 1e5))
def test_five_attempts_cover_eight_times_what_a_run_has_lasted(lasted):
    assert lasted + sum(waits(SHORTEST, lasted=lasted)) >= 8 * lasted


@given(lasted=st.floats(0, 1e5))
def test_an_early_attempt_does_not_wait_much_longer_than_the_run_has_lasted(lasted):
    first, second, third, _ = waits(LONGEST, lasted=lasted)
    assert first <= 0.3
    assert second <= max(1.5, 0.6 * (lasted + first) + 0.01)
    assert third <= max(7.5, 0.6 * (lasted + first + second) + 0.01)


@given(
    lasted=seconds, lease=seconds, wait=seconds, max_run=seconds, uniform=st.sampled_from([SHORTEST, LONGEST])
)
def test_no_wait_is_longer_than_the_longest_run_has_left(lasted, lease, wait, max_run, uniform):
    waited = 0.0
    for each in waits(uniform, lasted=lasted, lease=lease, wait=wait, max_run=max_run):
        left = max(0.0, max_run + lease - lasted - waited)
        assert each <= max(0.3, 1.2 * left) + 0.001
        waited += each


@given(time_left=st.floats(0.5, 1e6), lease=seconds)
def test_the_last_attempt_comes_before_the_callers_deadline(time_left, lease):
    assert sum(waits(LONGEST, time_left=time_left, lease=lease)) < time_left + 0.02


@pytest.mark.parametrize("kind", FIRST_AND_LAST, indirect=True, ids=lambda kind: kind.value)
def test_the_pushback_of_a_server_follows_the_run(start, kind, key, monkeypatch):
    policy = Policy(lease=100, wait=0, max_run=5000, retention=10_000)
    server, request = start(default=policy), order(run(gate="at work"))
    server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    (first,) = server.interceptor._protection.runs._runs.values()

    def after(attempts, timeout=None):
        metadata = [("grpc-previous-rpc-attempts", str(attempts))]
        return server.client.call(kind, request, key, metadata=metadata, timeout=timeout).pushback

    assert 5 <= after(2) <= 7.5
    assert 100 <= after(3) <= 150, "a lease"
    assert after(3, timeout=20) <= 0.9 * 20.1, "the deadline, which grpc rounds up to 100 ms"
    monkeypatch.setattr("idem_grpc._server.protection.elapsed", lambda: first.began + 1000)
    assert 0.2 <= after(0) <= 0.3
    assert 400 <= after(1) <= 600, "half of what the run has lasted"
    assert 3200 <= after(3) <= 4800, "four times"
    monkeypatch.setattr("idem_grpc._server.protection.elapsed", lambda: first.began + 4900)
    assert 160 <= after(3) <= 240, "until it must be over, or may be taken over"


def test_a_key_that_is_free_has_a_short_pushback(start, face, key, tmp_path):
    """A duplicate on another server waited for a run that left no answer, so the lease does not matter."""
    url, policy = f"sqlite:///{tmp_path}/store.db", Policy(lease=1000, wait=60, retention=10_000)
    one = start(url, default=policy)
    store = watched(open_store(face, url, one.store.namespace))
    other = start(store=store, default=policy)
    request = order(run(code=grpc.StatusCode.INTERNAL, gate="at work"))
    first = one.client.begin(Kind.UNARY, request, key)
    one.ledger.gate("at work").await_arrival()
    sent = [("grpc-previous-rpc-attempts", "3")]
    second = other.client.begin(Kind.UNARY, request, key, metadata=sent, timeout=None)
    until(lambda: len(store.swaps) >= 2)  # it has seen who runs, and waits
    one.ledger.gate("at work").open()
    assert first.answer().code is grpc.StatusCode.INTERNAL
    assert second.answer().reason is Reason.IN_PROGRESS
    assert 25 <= second.answer().pushback <= 37.5


def stock_client(address):
    """A client that retries by service_config, and has nothing else of idem_grpc."""
    return Client(address, ("grpc.enable_retries", 1), ("grpc.service_config", CONFIG))


@pytest.fixture
def in_javascript(modules):
    """Make a call with grpc-js: ``in_javascript(address, request, key)`` returns its code."""

    def call(address, request, key):
        arguments = (address, Kind.UNARY.path, key, CONFIG, request.SerializeToString().hex())
        done = subprocess.run(
            ["node", str(GRPC_JS), *arguments, str(round(PATIENCE * 1000))],
            env=os.environ | {"NODE_PATH": str(modules)},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)["code"]

    return call


@pytest.mark.parametrize("face", ["sync"])
def test_all_clients_get_the_answer_of_a_run_longer_than_the_wait(start, in_javascript, key):
    server, request = start(), order(run(gate="at work"))
    open_later = threading.Timer(LONG, server.ledger.gate("at work").open)
    open_later.start()
    server.client.begin(Kind.UNARY, request, key, timeout=None)
    server.ledger.gate("at work").await_arrival()

    def call(_):
        with closing(stock_client(server.address).channel) as channel:
            method = channel.unary_unary(Kind.UNARY.path)
            return method(request.SerializeToString(), metadata=[("idempotency-key", key)], timeout=PATIENCE)

    with ThreadPoolExecutor(14) as threads:
        answers = [threads.submit(call, number) for number in range(12)]
        foreign = [threads.submit(in_javascript, server.address, request, key) for _ in range(2)]
        assert len({answer.result() for answer in answers}) == 1
        assert [code.result() for code in foreign] == [0, 0]
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("face", ["sync"])
def test_all_clients_get_the_answer_of_a_run_that_takes_over(face, in_javascript, key, tmp_path):
    """The first owner dies right after it has claimed the key, so that its whole lease is left."""
    policy = {"lease": LONG, "wait": 0}
    store = (face, f"sqlite:///{tmp_path}/idem.db", uuid4().hex)
    request = order(run(gate="at work"), run())
    servers = [ServerProcess(*store, default=policy)]
    try:
        first = Client(servers[0].address)
        first.begin(Kind.UNARY, request, key)
        servers[0].await_gate("at work")
        servers[0].kill()
        first.channel.close()
        servers.append(ServerProcess(*store, default=policy))

        def call(_):
            with closing(stock_client(servers[1].address).channel) as channel:
                method = channel.unary_unary(Kind.UNARY.path)
                sent = [("idempotency-key", key)]
                return method(request.SerializeToString(), metadata=sent, timeout=PATIENCE)

        with ThreadPoolExecutor(6) as threads:
            answers = [threads.submit(call, number) for number in range(4)]
            foreign = [threads.submit(in_javascript, servers[1].address, request, key) for _ in range(2)]
            assert len({answer.result() for answer in answers}) == 1
            assert [code.result() for code in foreign] == [0, 0]
        assert [server.attempts(request) for server in servers] == [[1], [2]]
    finally:
        for server in servers:
            server.close()
