"""How many Redis commands a call takes: two scripts for the first, one for each duplicate."""

from uuid import uuid4

import pytest

from tests.server.client import Kind
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import order

kind = kinds(*FIRST_AND_LAST)

COMMANDS = ("evalsha", "eval", "script|load")


@pytest.fixture
def server(start, own_redis_server):
    """A server that is connected to a Redis of its own, which has loaded the script."""
    server = start(own_redis_server.url, cache_bytes=0)
    for kind in Kind:
        server.client.call(kind, order(), uuid4().hex)
    return server


@pytest.fixture
def spent(own_redis_server):
    """Count the commands that Redis runs for a call, by name, without those of scripts."""

    def spent(call):
        before = own_redis_server.calls()
        call()
        now = own_redis_server.calls()
        return {command: now[command] - before[command] for command in COMMANDS}

    return spent


def test_first_call_and_replay(server, spent, kind, key):
    request = order()
    assert spent(lambda: server.client.call(kind, request, key)) == {
        "evalsha": 2,
        "eval": 0,
        "script|load": 0,
    }
    for _ in range(3):
        assert spent(lambda: server.client.call(kind, request, key)) == {
            "evalsha": 1,
            "eval": 0,
            "script|load": 0,
        }
    assert len(server.ledger.runs(request)) == 1


def test_a_refusal_is_one_script(server, spent, kind, key):
    server.client.call(kind, order(), key)
    assert spent(lambda: server.client.call(kind, order(), key))["evalsha"] == 1


def test_calls_that_are_not_protected_take_no_command(server, spent, kind, key):
    free = {"evalsha": 0, "eval": 0, "script|load": 0}
    assert spent(lambda: server.client.call(kind, order())) == free
    assert spent(lambda: server.client.call(Kind.READ, order(), key)) == free


def test_the_script_is_loaded_again_if_redis_lost_it(server, own_redis_server, kind, key):
    request = order()
    with own_redis_server.client() as client:
        client.script_flush()
        first = server.client.call(kind, request, key)
        client.script_flush()
    assert first.ok
    assert server.client.call(kind, request, key).essence == first.essence
    assert len(server.ledger.runs(request)) == 1
