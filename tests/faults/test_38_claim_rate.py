"""The rate of new keys of one caller, which bounds how many records it can make the store keep."""

import math
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2

import idem_grpc
from idem_grpc import Policy
from idem_grpc._core.digest import digest, store_key
from idem_grpc._core.flow import FENCE_TTL
from idem_grpc._core.rate import NotCounted, counted
from idem_grpc._core.record import State
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._memory import AsyncMemoryStore, MemoryStore
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.kinds import ALL, kinds
from tests.server.ledger import SERVICE, order, run
from tests.server.stores import watched
from tests.support.wait import until

TENANT = "x-tenant"
AT_WORK = "at work"
PERIOD = 600.0

kind = kinds(*ALL)


def limited(most, **policy):
    return {
        "scope": idem_grpc.metadata(TENANT),
        "default": Policy(claim_rate=(most, PERIOD), wait=0, **policy),
    }


def call(server, kind, key=None, tenant="shop", request=None):
    metadata = [(TENANT, tenant)]
    return server.client.call(kind, request or order(run()), key or uuid4().hex, metadata=metadata)


def begin(server, kind, request, key, tenant="shop"):
    return server.client.begin(kind, request, key, metadata=[(TENANT, tenant)])


def is_refused(answer):
    if answer.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return False
    delay = answer.detail(error_details_pb2.RetryInfo).retry_delay
    assert delay.ToMilliseconds() == round(answer.pushback * 1000)
    assert 0 < answer.pushback <= PERIOD
    assert not answer.messages
    assert answer.run is None
    return True


def test_a_caller_with_too_many_new_keys_is_refused_and_nothing_is_run_or_kept(start, url, kind, key):
    server = start(url, **limited(3))
    assert all(call(server, kind).ok for _ in range(3))
    request = order(run())
    for _ in range(3):
        assert is_refused(call(server, kind, key, request=request))
    assert not server.ledger.runs(request)
    record = server.record(key, kind, scope="shop")
    assert (record.state, record.attempt, record.fingerprint) == (State.OPEN, 0, None)
    name = store_key(server.store.namespace, kind.path, b"shop", key)
    assert server.store.read(name).ttl_left <= FENCE_TTL


def test_duplicates_are_not_counted_and_not_refused(start, url, kind, key):
    server = start(url, **limited(1))
    request = order(run(gate=AT_WORK))
    first = begin(server, kind, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    duplicates = [begin(server, kind, request, key) for _ in range(10)]
    assert {one.answer().code for one in duplicates} == {grpc.StatusCode.UNAVAILABLE}
    server.ledger.gate(AT_WORK).open()
    answer = first.answer()
    assert answer.ok
    for _ in range(3):
        replay = call(server, kind, key, request=request)
        assert replay.essence == answer.essence
        assert replay.replayed
    assert len(server.ledger.runs(request)) == 1
    assert is_refused(call(server, kind))


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_concurrent_duplicates_count_as_one_key(start, url, key):
    server, other = start(url, **limited(1)), start(url, **limited(1))
    request = order(run())
    with ThreadPoolExecutor(30) as pool:
        servers = [server, other] * 15
        calls = [pool.submit(call, one, Kind.UNARY, key, request=request) for one in servers]
        codes = {one.result().code for one in calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert len(server.ledger.runs(request) + other.ledger.runs(request)) == 1


def test_callers_and_operations_have_a_rate_of_their_own(start, url):
    server = start(url, **limited(2))
    for kind in ALL:
        for tenant in ("shop", "bakery"):
            assert all(call(server, kind, tenant=tenant).ok for _ in range(2))
            assert is_refused(call(server, kind, tenant=tenant))


def test_methods_that_share_an_operation_share_its_rate(start, url):
    server = start(url, **limited(2, operation="ledger"))
    assert call(server, Kind.UNARY).ok
    assert call(server, Kind.BIDI).ok
    assert is_refused(call(server, Kind.UNARY))
    assert is_refused(call(server, Kind.SERVER_STREAM))


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_servers_share_one_exact_count(start, url):
    servers = [start(url, **limited(20)) for _ in range(3)]
    with ThreadPoolExecutor(30) as pool:
        calls = [pool.submit(call, servers[number % 3], Kind.UNARY) for number in range(60)]
        answers = [one.result() for one in calls]
    assert sum(answer.ok for answer in answers) == 20
    assert sum(is_refused(answer) for answer in answers) == 40


def test_attempts_at_a_key_count_as_one_key(start, url, kind, key):
    failing = run(code=grpc.StatusCode.ABORTED, details="busy")
    server = start(url, **limited(1))
    request = order(failing, failing, run())
    for _ in range(2):
        assert call(server, kind, key, request=request).details == "busy"
    assert call(server, kind, key, request=request).ok
    assert [one.execution.attempt for one in server.ledger.runs(request)] == [1, 2, 3]
    assert is_refused(call(server, kind))


def test_a_refused_key_may_come_again_with_another_request(face, start, kind, key):
    now = 0.0

    def clock():
        return now

    store = MemoryStore(clock=clock) if face == "sync" else AsyncMemoryStore(clock=clock)
    server = start(store=store, **limited(1))
    assert call(server, kind).ok
    now += PERIOD - 10
    refused = call(server, kind, key)
    assert is_refused(refused)
    assert refused.pushback == 10
    now += 9.9
    assert is_refused(call(server, kind, key)), "being refused makes the window neither shorter nor longer"
    now += 0.1
    request = order(run())
    answer = call(server, kind, key, request=request)
    assert answer.ok
    (only,) = server.ledger.runs(request)
    assert only.execution.attempt == 1, "nothing was run before"
    assert is_refused(call(server, kind))


def test_calls_without_a_key_are_not_counted(start, url, kind):
    server = start(url, **limited(1))
    for _ in range(3):
        assert server.client.call(kind, order(run()), metadata=[(TENANT, "shop")]).ok
    assert call(server, kind).ok


def test_one_method_may_have_a_rate(start, url):
    policies = {
        f"/{SERVICE}/*": Policy(claim_rate=(1, PERIOD)),
        f"/{SERVICE}/Bidi": Policy(claim_rate=()),
    }
    server = start(url, scope=idem_grpc.metadata(TENANT), policies=policies)
    assert call(server, Kind.UNARY).ok
    assert is_refused(call(server, Kind.UNARY))
    assert all(call(server, Kind.BIDI).ok for _ in range(3))


@pytest.mark.parametrize("rate", [(), (5, PERIOD)])
def test_a_rate_takes_one_swap_for_a_first_call_and_none_for_a_replay(face, start, url, rate, key):
    store = watched(open_store(face, url, uuid4().hex))
    policy = Policy(claim_rate=rate)
    server = start(store=store, scope=idem_grpc.metadata(TENANT), default=policy, cache_bytes=0)
    request = order(run())
    assert call(server, Kind.UNARY, key, request=request).ok
    assert len(store.swaps) == (3 if rate else 2)
    before = len(store.swaps)
    assert call(server, Kind.UNARY, key, request=request).replayed
    assert len(store.swaps) == before + 1


def test_calls_run_if_the_count_is_unreadable(start, url):
    server = start(url, **limited(1))
    parts = (server.store.namespace.encode(), Kind.UNARY.path.encode(), b"shop")
    name = digest("claim rate", *parts, size=24)
    assert server.store.swap(Swap(name, None, b"\xff junk", PERIOD)) == Swapped(0)
    assert all(call(server, Kind.UNARY).ok for _ in range(3))


def test_a_store_that_goes_away_between_claim_and_count_keeps_no_claim(own_redis_server, start, key):
    """The claim was acknowledged: counted or not, the call runs, or its key is given back."""
    server = start(own_redis_server.url + "?socket_timeout=0.2&socket_connect_timeout=0.2", **limited(1))
    assert call(server, Kind.UNARY).ok
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call, server, Kind.UNARY) for _ in range(8)]
        own_redis_server.pause()
        answers = [one.result() for one in calls]
        own_redis_server.resume()
    assert all(is_refused(one) or one.code is grpc.StatusCode.UNAVAILABLE or one.ok for one in answers)
    until(lambda: is_refused(call(server, Kind.UNARY, key)))
    assert server.drain(30) == 0
    states = {server.record(key, Kind.UNARY, scope="shop").state}
    assert states == {State.OPEN}


@pytest.mark.parametrize(
    "rate", [(0, 60), (-1, 60), (10, 0), (10, -1), (10,), [10, 60], 10, ("10", 60), (10, math.inf), (True, 1)]
)
def test_an_invalid_rate_fails_at_construction(rate):
    with pytest.raises((ValueError, TypeError), match="claim_rate"):
        Policy(claim_rate=rate)


def test_a_count_ends_when_its_window_does():
    now = 0.0
    store = MemoryStore(clock=lambda: now)

    def add(number):
        steps = counted(b"key", number, (10, 60.0))
        try:
            swap = next(steps)
            while True:
                seen = store.swap(Swap(swap.key, swap.expected, swap.new, swap.ttl))
                swap = steps.send(seen)
        except StopIteration as end:
            return end.value

    assert [add(4), add(6)] == [0, 0]
    now = 20.0
    assert add(1) == 40
    assert add(11) == 60, "that many are never added"
    now = 60.0
    assert add(10) == 0
    steps = counted(b"key", 1, (10, 60.0))
    next(steps)
    with pytest.raises(NotCounted):
        steps.send(Held(b"\xff", 1.0))
