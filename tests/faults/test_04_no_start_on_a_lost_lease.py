"""A handler does not start under a lease that has run out or nearly so: its call claims again."""

import asyncio
import subprocess
import sys
import time
from threading import Event

import pytest

from idem_grpc import OnOutage, OnUnclear, Policy, Reason
from idem_grpc._core.digest import store_key
from idem_grpc._core.record import Record, State
from tests.cli.conftest import ENTRY
from tests.faults.redis_proxy import RedisProxy
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import order, run
from tests.server.processes import ENVIRONMENT, ServerProcess
from tests.support.namespaces import time_shifted
from tests.support.wait import until

PATIENT = "?socket_timeout=20&socket_connect_timeout=20"
SHORT = {"lease": 0.5, "wait": 10.0, "retention": 600.0}
RERUN = Policy(lease=0.5, wait=10, retention=600)
FAIL = Policy(lease=0.5, wait=10, retention=600, on_unclear=OnUnclear.FAIL)


@pytest.fixture
def proxy(redis_server):
    with RedisProxy(redis_server.port) as proxy:
        yield proxy


class Slow:
    """Delays each answer of a store by a number of seconds."""

    def __init__(self, store, seconds):
        self.store, self._seconds, self._swap = store, seconds, store.swap
        store.swap = self.swap

    def swap(self, swap):
        seen = self._swap(swap)
        Event().wait(self._seconds)  # the fault itself
        return seen


class AsyncSlow(Slow):
    async def swap(self, swap):
        seen = await self._swap(swap)
        await asyncio.sleep(self._seconds)  # the fault itself
        return seen


def lapsed(server, kind, key):
    """Wait until the lease of a claim has run out. Returns its record."""
    name = store_key(server.store.namespace, kind.path, b"", key)

    def found():
        held = server.store.read(name)
        record = Record.from_bytes(held.value)
        return (
            record if record.state is State.RUNNING and held.ttl_left <= record.ttl - record.lease else None
        )

    return until(found)


@pytest.mark.parametrize("unprotected", [False, True], ids=["refuse", "run"])
def test_a_call_ends_if_its_store_is_always_too_slow_for_its_lease(start, face, unprotected, kind, key):
    store = open_store(face, "memory:", key)
    policy = Policy(lease=0.01, retention=600, on_outage=OnOutage.RUN if unprotected else OnOutage.REFUSE)
    server = start(store=(Slow if face == "sync" else AsyncSlow)(store, 0.02).store, default=policy)
    request = order()
    answer = server.client.call(kind, request, key)
    assert answer.reason is (None if unprotected else Reason.STORE_UNAVAILABLE)
    assert len(server.ledger.runs(request)) == unprotected
    until(lambda: server.drain(0) == 0)
    assert server.record(key, kind).state is (State.DONE if unprotected else State.OPEN)


@pytest.mark.parametrize("plain", [False, True], ids=["own-style", "plain-functions"])
def test_a_claim_that_is_confirmed_after_another_ran_gets_the_answer_of_that_run(
    proxy, redis_server, start, plain, kind, key
):
    slow = start(proxy.url + PATIENT, default=RERUN, plain=plain)
    other = start(redis_server.url, default=RERUN)
    slow.client.call(kind, order(), "warm-up")
    request = order()
    proxy.allow(0)
    late = slow.client.begin(kind, request, key)
    lapsed(other, kind, key)
    answer = other.client.call(kind, request, key)
    assert answer.ok
    proxy.allow(None)
    assert late.answer().essence == answer.essence
    assert late.answer().replayed
    assert not slow.ledger.runs(request)


def test_a_claim_that_is_confirmed_while_another_runs_waits_for_it(proxy, redis_server, start, kind, key):
    slow, other = start(proxy.url + PATIENT, default=RERUN), start(redis_server.url, default=RERUN)
    slow.client.call(kind, order(), "warm-up")
    request = order(run(), run(gate="at work"))
    proxy.allow(0)
    late = slow.client.begin(kind, request, key)
    lapsed(other, kind, key)
    running = other.client.begin(kind, request, key)
    other.ledger.gate("at work").await_arrival()
    proxy.allow(None)
    until(lambda: slow.interceptor._protection.runs.left() and not late.done())
    other.ledger.gate("at work").open()
    assert running.answer().ok
    assert late.answer().essence == running.answer().essence
    assert not slow.ledger.runs(request)


def test_a_claim_that_is_confirmed_late_and_was_not_taken_over_runs_under_a_new_lease(
    proxy, redis_server, start, kind, key
):
    slow, other = start(proxy.url + PATIENT, default=RERUN), start(redis_server.url, default=RERUN)
    slow.client.call(kind, order(), "warm-up")
    request = order(run(gate="at work"))
    proxy.allow(0)
    late = slow.client.begin(kind, request, key)
    lapsed(other, kind, key)
    proxy.allow(None)
    slow.ledger.gate("at work").await_arrival()
    (only,) = slow.ledger.runs(request)
    assert not only.execution.lease_lost
    assert other.client.call(kind, request, key, timeout=1.0).replayed is False
    slow.ledger.gate("at work").open()
    assert late.answer().ok
    assert len(slow.ledger.runs(request)) == 1
    assert not other.ledger.runs(request)


def test_a_call_that_was_released_by_hand_under_fail_runs_once(proxy, redis_server, start, kind, key):
    slow, other = start(proxy.url + PATIENT, default=FAIL), start(redis_server.url, default=FAIL)
    slow.client.call(kind, order(), "warm-up")
    request = order()
    proxy.allow(0)
    late = slow.client.begin(kind, request, key)
    lapsed(other, kind, key)
    assert other.client.call(kind, request, key).reason is Reason.OUTCOME_UNKNOWN
    where = ["--store", redis_server.url, "--namespace", other.store.namespace]
    which = [key, "--operation", kind.path, "--scope", ""]
    subprocess.run([ENTRY, "resolve", *where, *which, "--rerun", "--yes"], check=True)
    answer = other.client.call(kind, request, key)
    assert answer.ok
    proxy.allow(None)
    assert late.answer().essence == answer.essence
    assert not slow.ledger.runs(request)


def test_a_process_that_is_stopped_between_claim_and_handler_does_not_run_it_late(
    face, redis_server, proxy, key
):
    stopped = ServerProcess(face, proxy.url + PATIENT, key, default=SHORT)
    other = ServerProcess(face, redis_server.url, key, default=SHORT)
    try:
        request = order()
        assert stopped.client.call(Kind.UNARY, order(), "warm-up").ok
        proxy.allow(0)
        late = stopped.client.begin(Kind.UNARY, request, key)
        until(lambda: proxy.held)
        stopped.pause()
        proxy.allow(None)  # the confirmation comes in time, and is read when the process goes on
        answer = other.client.persist(Kind.UNARY, request, key)
        assert answer.ok
        stopped.resume()
        assert late.answer().essence == answer.essence
        assert stopped.attempts(request) == []
    finally:
        stopped.close()
        other.close()


def test_leases_count_the_time_for_which_a_host_was_suspended():
    """CLOCK_BOOTTIME does. In a time namespace it differs from the clock that does not."""
    script = "import time; from idem_grpc._core.clock import elapsed; print(elapsed() - time.monotonic())"
    command = [*time_shifted(100_000), sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    difference = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    assert float(done.stdout) - difference == pytest.approx(100_000, abs=60)
