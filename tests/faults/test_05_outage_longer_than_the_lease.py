"""An outage of the store that all servers see causes no second run, however long it lasts."""

from dataclasses import replace
from threading import Thread

import grpc
import pytest

from idem_grpc import OnUnclear, Policy, Reason, StoreUnavailable
from idem_grpc._core.digest import store_key
from idem_grpc._core.record import Record, State
from idem_grpc._core.swap import Swap
from idem_grpc._server import keeper
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.kinds import kinds
from tests.server.ledger import order, run
from tests.server.processes import ServerProcess
from tests.support.wait import until

RUNS = 12
LEASE = 1.5
NOT_YET = (Reason.STORE_UNAVAILABLE, Reason.IN_PROGRESS, Reason.OUTCOME_PENDING)
IMPATIENT = "?socket_timeout=0.2&socket_connect_timeout=0.2"
AT_WORK = "at work"

kind = kinds(Kind.UNARY, Kind.SERVER_STREAM)


@pytest.fixture(params=list(OnUnclear), ids=lambda mode: mode.name)
def policy(request):
    return Policy(lease=LEASE, wait=0, retention=600, on_unclear=request.param)


@pytest.fixture
def servers(redis, start, policy):
    """Two servers on one store, which act like two processes."""
    return [start(redis.url + IMPATIENT, default=policy) for _ in range(2)]


def record(server, kind, key):
    name = store_key(server.store.namespace, kind.path, b"", key)
    return Record.from_bytes(server.store.read(name).value)


def lapse(redis, server, execution):
    """Keep the store away until the lease of a run has run out, with duplicates that see it."""
    redis.pause()
    until(lambda: execution.lease_lost)
    refused = server.client.call(Kind.UNARY, order(), "see-the-outage")
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.STORE_UNAVAILABLE)


class Duplicates:
    """Calls that are repeated in parallel, without a pause, until each is answered."""

    def __init__(self, server, kind, sent):
        self._server, self._kind = server, kind
        self._answers = {}
        self._threads = [Thread(target=self._persist, args=pair) for pair in sent.items()]
        for thread in self._threads:
            thread.start()

    def _persist(self, key, request):
        while (answer := self._server.client.call(self._kind, request, key)).reason in NOT_YET:
            pass
        self._answers[key] = answer

    def answers(self):
        for thread in self._threads:
            thread.join()
        return self._answers


def test_runs_of_living_owners_are_not_taken_over(redis, servers, kind, key):
    owner, other = servers
    sent = {f"{key}-{number}": order(run(gate=AT_WORK)) for number in range(RUNS)}
    calls = {each: owner.client.begin(kind, request, each) for each, request in sent.items()}
    until(lambda: len(owner.ledger.all_runs) == RUNS)
    lapse(redis, other, owner.ledger.all_runs[0].execution)
    duplicates = Duplicates(other, kind, sent)
    redis.resume()
    until(lambda: not any(run.execution.lease_lost for run in owner.ledger.all_runs))
    owner.ledger.gate(AT_WORK).open()
    answers = duplicates.answers()
    assert all(answers[each].ok for each in sent)
    assert {each: call.answer().essence for each, call in calls.items()} == {
        each: answers[each].essence for each in sent
    }
    assert all(len(owner.ledger.runs(request)) == 1 for request in sent.values())
    assert not [run for run in other.ledger.all_runs if run.request in sent.values()]


def test_outcomes_that_wait_for_the_store_are_written_before_a_takeover(redis, servers, kind, key):
    owner, other = servers
    sent = {f"{key}-{number}": order(run(gate=AT_WORK)) for number in range(RUNS)}
    calls = {each: owner.client.begin(kind, request, each) for each, request in sent.items()}
    until(lambda: len(owner.ledger.all_runs) == RUNS)
    lapse(redis, other, owner.ledger.all_runs[0].execution)
    owner.ledger.gate(AT_WORK).open()
    assert {call.answer().reason for call in calls.values()} == {Reason.OUTCOME_PENDING}
    duplicates = Duplicates(other, kind, sent)
    redis.resume()
    answers = duplicates.answers()
    assert all(answers[each].replayed for each in sent)
    assert all(len(owner.ledger.runs(request)) == 1 for request in sent.values())
    assert not [run for run in other.ledger.all_runs if run.request in sent.values()]


def test_outcomes_that_wait_for_the_store_are_written_even_past_max_run(
    redis, start, monkeypatch, policy, kind, key
):
    monkeypatch.setattr(keeper, "FIRST_PAUSE", keeper.LONGEST_PAUSE)  # as in an outage that has lasted
    brief = replace(policy, max_run=LEASE)
    owner, other = (start(redis.url + IMPATIENT, default=brief) for _ in range(2))
    request = order(run(gate=AT_WORK))
    call = owner.client.begin(kind, request, key)
    until(lambda: owner.ledger.all_runs)
    with redis.client() as client:
        client.config_set("maxmemory", 1)  # a store that takes no more, and so no command in flight either
        owner.ledger.gate(AT_WORK).open()
        assert call.answer().reason is Reason.OUTCOME_PENDING
        until(lambda: owner.ledger.all_runs[0].execution.lease.run_left < -LEASE)
        assert other.client.call(kind, order(), "see-the-outage").reason is Reason.STORE_UNAVAILABLE
        client.config_set("maxmemory", 0)
    assert Duplicates(other, kind, {key: request}).answers()[key].replayed
    assert len(owner.ledger.runs(request)) == 1
    assert not other.ledger.runs(request)


def test_a_run_whose_owner_died_is_taken_over_once_owners_had_time_to_renew(
    face, redis, start, policy, kind, key
):
    other = start(redis.url + IMPATIENT, default=policy)
    settings = {"lease": LEASE, "retention": 600, "on_unclear": policy.on_unclear.name}
    owner = ServerProcess(face, redis.url, other.store.namespace, default=settings)
    try:
        request = order(run(gate=AT_WORK), run())
        owner.client.begin(kind, request, key)
        owner.await_gate(AT_WORK)
    finally:
        owner.close()
    redis.pause()
    refused = other.client.call(kind, order(), "see-the-outage")
    assert refused.reason is Reason.STORE_UNAVAILABLE
    redis.resume()
    answer = other.client.persist(kind, request, key)
    if policy.on_unclear is OnUnclear.FAIL:
        assert answer.reason is Reason.OUTCOME_UNKNOWN
        assert record(other, kind, key).state is State.UNKNOWN
    else:
        assert answer.ok
        assert len(other.ledger.runs(request)) == 1


class Unsteady:
    """Makes a store fail once, each time that a test requests it."""

    def __init__(self, store):
        self.store = store
        self.fails = False
        self._swap = store.swap
        store.swap = self.swap

    def fail(self):
        fails, self.fails = self.fails, False
        if fails:
            raise StoreUnavailable("a packet was lost")

    def swap(self, swap):
        self.fail()
        return self._swap(swap)


class AsyncUnsteady(Unsteady):
    async def swap(self, swap):
        self.fail()
        return await self._swap(swap)


def test_occasional_failures_of_swaps_do_not_prevent_takeovers(start, face, kind, key):
    """With many calls some swap always fails, and dead owners must still be taken over."""
    unsteady = (Unsteady if face == "sync" else AsyncUnsteady)(open_store(face, "memory:", key))
    server = start(store=unsteady.store, default=Policy(lease=60, wait=0, retention=600))
    dead = Record(state=State.RUNNING, attempt=1, owner=b"dead", lease=60.0, ttl=600.0)
    name = store_key(server.store.namespace, kind.path, b"", key)
    server.store.swap(Swap(name, None, dead.to_bytes(), 539.0))
    assert server.client.call(kind, order(), f"{key}-before").ok
    unsteady.fails = True
    assert server.client.call(kind, order(), f"{key}-fails").reason is Reason.STORE_UNAVAILABLE
    assert server.client.call(kind, order(), f"{key}-after").ok
    assert server.client.call(kind, order(), key).ok
