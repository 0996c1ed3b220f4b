"""Mistakes in the store are refused with their reason, and nothing is retried without end."""

import grpc
import pytest

from idem_grpc import Policy, Reason, StoreUnavailable
from idem_grpc._core.clock import elapsed
from idem_grpc._core.digest import store_key
from idem_grpc._server import keeper
from idem_grpc._server.availability import Availability
from tests.server.ledger import order, run
from tests.support.redis_server import calls_of
from tests.support.wait import until

AT_WORK = "at work"


@pytest.fixture
def name(redis_server, kind, key):
    """The name in Redis of a server's record of the key."""

    def name(server):
        record = store_key(server.store.namespace, kind.path, b"", key)
        return f"{server.store.namespace}:{record.decode()}"

    return name


def swaps(client):
    """How many scripts the server has run so far."""
    calls = calls_of(client)
    return calls["eval"] + calls["evalsha"]


def test_a_key_of_another_type_is_refused_and_not_retried(own_redis_server, start, name, kind, key):
    server, client = start(own_redis_server.url), own_redis_server.client()
    client.lpush(name(server), "theirs")
    for _ in range(3):
        answer = server.client.call(kind, order(), key)
        assert (answer.code, answer.reason) == (grpc.StatusCode.INTERNAL, Reason.MISCONFIGURED)
    assert server.drain(0) == 0, "nothing is left to do in the background"
    assert not server.ledger.all_runs
    assert client.lrange(name(server), 0, -1) == [b"theirs"]
    assert server.client.call(kind, order(), f"{key}-other").ok
    client.close()


def test_a_key_that_changes_its_type_during_a_run_is_given_up_after_some_tries(
    own_redis_server, start, monkeypatch, caplog, name, kind, key
):
    monkeypatch.setattr(keeper, "MOST_MISTAKES", 3)
    server, client = (
        start(own_redis_server.url, default=Policy(lease=1, retention=600)),
        own_redis_server.client(),
    )
    request = order(run(gate=AT_WORK))
    call = server.client.begin(kind, request, key)
    server.ledger.gate(AT_WORK).await_arrival()
    client.delete(name(server))
    client.lpush(name(server), "theirs")
    before = swaps(client)
    server.ledger.gate(AT_WORK).open()
    assert call.answer().reason in (Reason.OUTCOME_PENDING, Reason.LEASE_LOST)
    until(lambda: server.drain(0) == 0)
    assert any("given up" in record.getMessage() for record in caplog.records)
    tried = swaps(client)
    assert tried - before <= 3 * keeper.MOST_MISTAKES
    assert server.client.call(kind, order(), f"{key}-other").ok
    assert swaps(client) == tried + 2, "and no more than that call's"
    client.close()


def test_failures_are_counted_in_the_log_while_other_swaps_succeed(caplog):
    """At maxmemory, claims are refused while leases are renewed."""
    availability = Availability()
    for _ in range(100):
        availability.failed(StoreUnavailable("out of memory", answered=True), elapsed())
        availability.answered(elapsed())
    lines = [record.getMessage() for record in caplog.records]
    assert sum("did not answer" in line for line in lines) == 7, "at the 1st, 2nd, 4th and so on"
    assert sum("answers again" in line for line in lines) == 7


def test_unexpected_exceptions_of_a_store_are_counted_in_the_log(caplog):
    availability = Availability()
    for _ in range(100):
        availability.failed(ConnectionError("of the store's own library"), elapsed())
    assert len(caplog.records) == 7
    assert all(record.exc_info for record in caplog.records)
