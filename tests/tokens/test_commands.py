"""How many Redis commands it takes to issue, use and replay a token."""

from uuid import uuid4

import pytest

from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import order
from tests.tokens.servers import get, issue, issue_many, revoke
from tests.tokens.stores import counted


@pytest.fixture
def server(start, own_redis_server):
    """A server that is connected to a Redis of its own, which has loaded the script."""
    server = start(own_redis_server.url, cache_bytes=0)
    server.client.call(Kind.UNARY, order(), issue(server.client))
    return server


@pytest.fixture
def spent(own_redis_server):
    """Return ``spent(do)``: how many scripts Redis runs for a call of ``do``."""

    def counts():
        calls = own_redis_server.calls()
        return calls["evalsha"] + calls["eval"]

    def spent(do):
        before = counts()
        do()
        return counts() - before

    return spent


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.BIDI])
def test_a_token_costs_as_many_scripts_as_a_client_key(server, spent, kind):
    request, token = order(), issue(server.client)
    assert spent(lambda: server.client.call(kind, request, token)) == 2
    for _ in range(3):
        assert spent(lambda: server.client.call(kind, request, token)) == 1
    assert len(server.ledger.runs(request)) == 1


def test_a_refusal_is_one_script(server, spent):
    assert spent(lambda: server.client.call(Kind.UNARY, order(), "idt_unknown")) == 1
    elsewhere = issue(server.client)
    assert spent(lambda: server.client.call(Kind.SERVER_STREAM, order(), elsewhere)) == 1


def test_a_hundred_tokens_are_a_rate_check_and_a_batch(server, spent):
    assert spent(lambda: issue_many(server.client, count=100)) in (101, 102)


def test_get_token_is_one_script_and_revoke_is_two(server, spent):
    token = issue(server.client)
    assert spent(lambda: get(server.client, token)) == 1
    assert spent(lambda: revoke(server.client, token)) == 2


def test_tokens_go_to_the_store_in_one_batch(start, face, url):
    store = counted(open_store(face, url, uuid4().hex))
    server = start(store=store)
    issue_many(server.client, count=100)
    assert store.batches == [1, 100]
    issue_many(server.client, count=100)
    assert store.batches == [1, 100, 1, 1, 100], "the count is read, then raised"
    assert len(server.ledger.all_runs) == 0


def test_a_batch_takes_few_round_trips(server, own_redis_server):
    """The server reads a pipeline in a few reads, and counts them."""

    def reads():
        with own_redis_server.client() as client:
            return int(client.info("stats")["total_reads_processed"])

    before = reads()
    issue_many(server.client, count=100)
    assert reads() - before < 20
