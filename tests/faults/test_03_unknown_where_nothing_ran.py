"""Under OnUnclear.FAIL, a claim that was never executed does not end UNKNOWN."""

import grpc
import pytest

from idem_grpc import KeyRule, OnUnclear, Policy, Reason
from idem_grpc._core.digest import store_key, token_key
from idem_grpc._core.record import Binding, Record, State
from idem_grpc._core.swap import Swap
from idem_grpc._server import keeper
from tests.faults.redis_proxy import RedisProxy
from tests.server.client import Kind
from tests.server.ledger import order
from tests.support.wait import until

LEASE = 0.5
NEVER = "?socket_timeout=0.3&socket_connect_timeout=0.3"
PATIENT = "?socket_timeout=2&socket_connect_timeout=2"
OPERATION = "pay"


@pytest.fixture
def proxy(redis_server):
    with RedisProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def own_proxy(own_redis_server):
    with RedisProxy(own_redis_server.port) as proxy:
        yield proxy


@pytest.fixture(params=[Kind.UNARY, Kind.BIDI], ids=lambda kind: kind.value)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["own-key", "token"])
def policy(request):
    return Policy(
        on_unclear=OnUnclear.FAIL,
        lease=LEASE,
        wait=10,
        retention=600,
        key=KeyRule.TOKEN if request.param else KeyRule.REQUIRED,
        operation=OPERATION,
    )


@pytest.fixture
def known(policy, key):
    """Issue the key if it is a token: ``known(server)``. Returns a function that reads its record."""

    def known(server):
        name = token_key(server.store.namespace, key)
        if policy.key is KeyRule.TOKEN:
            unused = Record(state=State.OPEN, binding=Binding.of(OPERATION, ""))
            server.store.swap(Swap(name, None, unused.to_bytes(), 600.0))
        else:
            name = store_key(server.store.namespace, OPERATION, b"", key)
        return lambda: Record.from_bytes(server.store.read(name).value)

    return known


def connected(start, url, policy):
    """A server whose calls have a connection to the store, while the thread that renews leases has none.

    That thread would give a claim back before a test could see that it took effect. So the call that opens
    the first connection has a long lease, which is not renewed however slow the machine is.
    """
    first = Kind.SERVER_STREAM
    lasting = Policy(key=KeyRule.REQUIRED, lease=100, retention=600)
    server = start(url, default=policy, policies={first.path: lasting})
    assert server.client.call(first, order(), "first").ok
    return server


def test_a_claim_whose_reply_was_lost_is_taken_back_after_others_took_it_for_dead(
    proxy, redis_server, start, known, policy, kind, key
):
    cut_off, other = connected(start, proxy.url + NEVER, policy), start(redis_server.url, default=policy)
    record, request = known(other), order()
    proxy.allow(0)
    refused = cut_off.client.call(kind, request, key)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.STORE_UNAVAILABLE)
    assert record().state is State.RUNNING, "the claim took effect"
    assert other.client.call(kind, request, key).reason is Reason.OUTCOME_UNKNOWN
    assert record().state is State.UNKNOWN
    proxy.cut()
    proxy.allow(None)
    until(lambda: record().state is State.OPEN)
    assert other.client.persist(kind, request, key).ok
    assert len(other.ledger.runs(request)) == 1
    assert not cut_off.ledger.runs(request)


def test_a_claim_that_the_client_library_sends_again_after_its_lease_is_the_calls_own(
    proxy, redis_server, start, known, policy, kind, key
):
    slow, other = connected(start, proxy.url + PATIENT, policy), start(redis_server.url, default=policy)
    record, request = known(other), order()
    proxy.allow(0)
    call = slow.client.begin(kind, request, key)
    until(lambda: record().state is State.RUNNING)
    assert other.client.call(kind, request, key).reason is Reason.OUTCOME_UNKNOWN
    proxy.cut()  # so the library sends the claim again
    proxy.allow(None)
    answer = call.answer()
    assert answer.ok, answer
    assert len(slow.ledger.runs(request)) == 1
    assert other.client.call(kind, request, key).essence == answer.essence
    assert not other.ledger.runs(request)


def test_a_claim_whose_reply_was_lost_in_an_outage_is_given_back_before_others_take_it_for_dead(
    own_proxy, own_redis_server, start, known, monkeypatch, policy, kind, key
):
    monkeypatch.setattr(keeper, "FIRST_PAUSE", keeper.LONGEST_PAUSE)  # as in an outage that has lasted
    cut_off = connected(start, own_proxy.url + NEVER, policy)
    other = start(own_redis_server.url + NEVER, default=policy)
    record, request = known(other), order()
    own_proxy.allow(0)
    assert cut_off.client.call(kind, request, key).reason is Reason.STORE_UNAVAILABLE
    assert record().state is State.RUNNING, "the claim took effect"
    own_redis_server.pause()
    assert other.client.call(kind, order(), "see-the-outage").reason is Reason.STORE_UNAVAILABLE
    own_proxy.allow(None)
    own_redis_server.resume()
    assert other.client.persist(kind, request, key).ok
    assert len(other.ledger.runs(request)) == 1
    assert not cut_off.ledger.runs(request)
