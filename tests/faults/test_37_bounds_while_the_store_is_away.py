"""A silent store delays no call for long, and the number of calls that wait for it is bounded."""

from time import monotonic

import grpc
import pytest
from idem_grpc_pb.v1.token_pb2 import IssueTokensResponse

from idem_grpc import OnOutage, Policy, Reason, StoreUnavailable
from idem_grpc._core.clock import elapsed
from idem_grpc._core.record import Record, State
from idem_grpc._server import keeper
from tests.faults.redis_proxy import RedisProxy
from tests.server.client import Kind
from tests.server.harness import open_store, starting
from tests.server.kinds import kinds
from tests.server.ledger import order
from tests.support.wait import until
from tests.tokens.servers import FACES, wanted

AT_WORK = "at work"
THREADS = 8
IMPATIENT = "?socket_timeout=0.4&socket_connect_timeout=0.4"

kind = kinds(Kind.UNARY, Kind.BIDI)


def took(call):
    began = monotonic()
    answer = call()
    return answer, monotonic() - began


def test_calls_that_need_no_store_do_not_wait_for_calls_that_do(own_redis_server, start, kind, key):
    """Without a breaker, all threads of the pool would wait for the store, in several waves of calls."""
    server = start(own_redis_server.url + IMPATIENT, workers=THREADS)
    assert server.client.call(kind, order(), "warm-up").ok
    own_redis_server.pause()
    first, patience = took(lambda: server.client.call(kind, order(), f"{key}-first"))
    assert first.reason is Reason.STORE_UNAVAILABLE

    def crowd():
        calls = [server.client.begin(kind, order(), f"{key}-{number}") for number in range(8 * THREADS)]
        unkeyed = server.client.call(kind, order())
        return unkeyed, {call.answer().reason for call in calls}

    (unkeyed, reasons), seconds = took(crowd)
    assert unkeyed.ok
    assert reasons == {Reason.STORE_UNAVAILABLE}
    assert seconds < 4 * patience
    own_redis_server.resume()
    assert server.client.persist(kind, order(), key).ok


@pytest.mark.parametrize("face", ["aio"], indirect=True)
def test_a_caller_that_leaves_during_a_probe_does_not_block_other_probes(face, own_redis_server, key):
    """In asyncio, the call of a token's caller ends with it."""
    with (
        RedisProxy(own_redis_server.port) as proxy,
        starting(lambda url: open_store(face, url, key), FACES[face]) as start,
    ):
        server = start(proxy.url + IMPATIENT)
        issuing = server.client.channel.unary_unary("/idem.v1.TokenService/IssueTokens")
        proxy.allow(0)
        refused = issuing.future(wanted().SerializeToString())
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        until(lambda: not proxy.held)
        finding_out = issuing.future(wanted().SerializeToString())
        until(lambda: proxy.held)
        before = server.tasks()
        finding_out.cancel()
        until(lambda: server.tasks() < before)
        proxy.allow(None)
        assert len(IssueTokensResponse.FromString(issuing(wanted().SerializeToString())).tokens) == 1


def test_the_first_call_after_the_store_is_back_succeeds(own_redis_server, start, kind, key):
    server, request = start(own_redis_server.url + IMPATIENT), order()
    own_redis_server.pause()
    for number in range(3):
        refused = server.client.call(kind, order(), f"{key}-{number}")
        assert refused.reason is Reason.STORE_UNAVAILABLE
    own_redis_server.resume()
    until(lambda: server.drain(0) == 0)
    assert server.client.call(kind, request, key).ok
    assert server.client.call(kind, request, key).replayed


def test_on_outage_run_runs_at_once(own_redis_server, start, kind, key):
    policy = Policy(on_outage=OnOutage.RUN)
    server = start(own_redis_server.url + IMPATIENT, default=policy, workers=THREADS)
    own_redis_server.pause()
    first, patience = took(lambda: server.client.call(kind, order(), f"{key}-first"))
    assert first.ok
    calls = [server.client.begin(kind, order(), f"{key}-{number}") for number in range(8 * THREADS)]
    answers, seconds = took(lambda: [call.answer() for call in calls])
    assert all(answer.ok for answer in answers)
    assert seconds < 4 * patience
    own_redis_server.resume()


def test_one_call_at_a_time_probes_whether_the_store_is_back(own_redis_server, start, kind, key):
    server = start(own_redis_server.url + IMPATIENT)
    own_redis_server.pause()
    assert server.client.call(kind, order(), key).reason is Reason.STORE_UNAVAILABLE
    availability = server.interceptor._protection.availability
    assert availability.admits() is not None, "one may find out"
    for _ in range(3):
        availability.failed(StoreUnavailable("begun before"), elapsed() - 1)
        assert availability.admits() is None, "and no other call meanwhile"
    own_redis_server.resume()


class Forgetful:
    """Makes a store refuse the ends of runs, while claims still reach it."""

    def __init__(self, store):
        self.store = store
        self.is_stuck = False
        self._swap = store.swap
        store.swap = self.swap

    def refuse(self, new):
        if self.is_stuck and Record.from_bytes(new).state in (State.DONE, State.OPEN):
            raise StoreUnavailable("no room for answers", answered=True)

    def swap(self, swap):
        self.refuse(swap.new)
        return self._swap(swap)


class AsyncForgetful(Forgetful):
    def __init__(self, store):
        super().__init__(store)
        self._blocking_swap = store.blocking.swap
        store.blocking.swap = self.blocking_swap

    async def swap(self, swap):
        self.refuse(swap.new)
        return await self._swap(swap)

    def blocking_swap(self, swap):
        self.refuse(swap.new)
        return self._blocking_swap(swap)


@pytest.fixture
def stuck(face, key):
    """A store that can be made to accept claims but no ends of runs."""
    return (Forgetful if face == "sync" else AsyncForgetful)(open_store(face, "memory:", key))


@pytest.mark.parametrize("bound", ["MAX_OUTCOMES", "MAX_OUTCOME_BYTES"])
def test_no_further_run_begins_while_too_many_outcomes_wait_to_be_stored(
    start, monkeypatch, stuck, bound, kind, key
):
    most = 3
    server = start(store=stuck.store)
    kept = order()
    answer = server.client.call(kind, kept, f"{key}-kept")
    assert answer.ok
    size = sum(map(len, answer.messages))
    monkeypatch.setattr(keeper, bound, most if bound == "MAX_OUTCOMES" else most * size)
    stuck.is_stuck = True
    sent = {f"{key}-{number}": order() for number in range(most)}
    for each, request in sent.items():
        assert server.client.call(kind, request, each).reason is Reason.OUTCOME_PENDING
    further = order()
    refused = server.client.call(kind, further, key)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.STORE_UNAVAILABLE)
    assert refused.pushback > 0
    assert not server.ledger.runs(further)
    assert server.client.call(kind, kept, f"{key}-kept").essence == answer.essence, "replays need no room"
    stuck.is_stuck = False
    for each, request in sent.items():
        assert server.client.persist(kind, request, each).replayed
        assert len(server.ledger.runs(request)) == 1
    assert server.client.persist(kind, further, key).ok


def test_claims_over_the_bound_are_left_to_their_leases_and_the_log_says_so(
    start, monkeypatch, own_redis_server, caplog, kind, key
):
    monkeypatch.setattr(keeper, "MAX_GIVE_BACKS", 2)
    server = start(own_redis_server.url + IMPATIENT, default=Policy(lease=1, wait=10, retention=600))
    assert server.client.call(kind, order(), "warm-up").ok
    own_redis_server.pause()
    sent = {f"{key}-{number}": order() for number in range(THREADS)}
    calls = [server.client.begin(kind, request, each) for each, request in sent.items()]
    assert {call.answer().reason for call in calls} == {Reason.STORE_UNAVAILABLE}
    assert any("are given up" in record.getMessage() for record in caplog.records)
    own_redis_server.resume()
    for each, request in sent.items():
        assert server.client.persist(kind, request, each).ok
        assert len(server.ledger.runs(request)) == 1
