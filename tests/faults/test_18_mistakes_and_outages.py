"""Mistakes, which a person must correct, are not reported as outages, which pass."""

import asyncio
import threading
import traceback
from contextlib import contextmanager, suppress

import pytest

from idem_grpc import OnOutage, Policy, Reason
from idem_grpc._core.swap import Swap
from idem_grpc.stores import StoreError, StoreUnavailable, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from tests.faults.redis_servers import SLOTS, at, cluster, running, scripted
from tests.server.client import Kind
from tests.server.ledger import order
from tests.support.wait import until

SECRET, RECORD = "s3cr3t", b"".join((b"a re", b"cord"))
SOON = "socket_timeout=0.2&socket_connect_timeout=0.2"


@contextmanager
def with_wrong_password():
    with running(password="right") as server:
        yield at(server, f":{SECRET}@")


@contextmanager
def with_unknown_user():
    with running() as server:
        yield at(server, f"nobody:{SECRET}@")


@contextmanager
def without_password():
    with running(password=SECRET) as server:
        yield at(server)


@contextmanager
def with_password_of_none():
    with running() as server:
        yield at(server, f":{SECRET}@")


@contextmanager
def without_auth():
    with running("--rename-command", "AUTH", "") as server:
        yield at(server, f":{SECRET}@")


@contextmanager
def with_wrong_database():
    with running() as server:
        yield at(server, path="/99")


def with_rules(rules):
    @contextmanager
    def opened():
        with running() as server, server.client() as client:
            client.execute_command(f"ACL SETUSER shy on >{SECRET} {rules}")
            yield at(server, f"shy:{SECRET}@")

    return opened


def without_command(name):
    @contextmanager
    def opened():
        with running("--rename-command", name, "") as server:
            yield at(server)

    return opened


@contextmanager
def a_key_elsewhere():
    with cluster(range(1), range(1, SLOTS)) as (node, _):
        yield at(node)


MISTAKES = {
    "wrong password": (with_wrong_password, "rejects the user name or password"),
    "unknown user": (with_unknown_user, "rejects the user name or password"),
    "user who is off": (with_rules("off ~* +@all"), "rejects the user name or password"),
    "no password": (without_password, "the URL has none"),
    "password of none": (with_password_of_none, "the server has none"),
    "no AUTH": (without_auth, "does not know the command AUTH"),
    "wrong database": (with_wrong_database, "no database with the number in the URL"),
    "no permission to run scripts": (with_rules("~* +@all -@scripting"), "lacks a permission"),
    "no permission to write": (with_rules("~* +@all -set"), "lacks a permission"),
    "no permission to read": (with_rules("~* +@all -get"), "lacks a permission"),
    "no permission for the key": (with_rules("~other:* +@all"), "lacks a permission"),
    "no EVALSHA": (without_command("EVALSHA"), "does not know the command EVALSHA"),
    "no EVAL": (without_command("EVAL"), "does not know the command EVAL"),
    "no SET": (without_command("SET"), "does not know the command that a script needs"),
    "a key on another node": (a_key_elsewhere, "a node of a Redis cluster"),
}


@pytest.fixture(params=MISTAKES)
def mistake(request):
    """The URL of a store that cannot be used until a person acts, and its error message."""
    opening, sentence = MISTAKES[request.param]
    with opening() as url:
        yield url, sentence


def all_said(error):
    """All text of an error that may reach a log."""
    return "".join(traceback.format_exception(error))


def each_use(url):
    """The ways to use a store, sync and asyncio, on connections of their own."""

    def plain(use):
        with open_store(url) as store:
            use(store)

    async def awaited(use):
        async with open_async_store(url) as store:
            await use(store)

    swaps = [Swap(b"%d" % number, None, RECORD, TTL) for number in range(3)]
    for use in (
        lambda store: store.check(),
        lambda store: store.swap(Swap(b"key", None, RECORD, TTL)),
        lambda store: store.swap_many(swaps),
    ):
        yield lambda use=use: plain(use)
        yield lambda use=use: asyncio.run(awaited(use))


def test_a_mistake_is_no_outage_and_its_error_says_what_to_do(mistake):
    url, sentence = mistake
    for use in each_use(url):
        with pytest.raises(StoreError, match=sentence) as caught:
            use()
        assert type(caught.value) is StoreError
        assert SECRET not in all_said(caught.value)
        assert RECORD.decode() not in all_said(caught.value)


def test_nothing_runs_during_a_mistake_even_under_on_outage_run(mistake, start, key, caplog):
    url, sentence = mistake
    server = start(url, default=Policy(on_outage=OnOutage.RUN))
    for _ in range(2):
        answer = server.client.call(Kind.UNARY, order(), key)
        assert (answer.code.name, answer.reason) == ("INTERNAL", Reason.MISCONFIGURED)
        assert SECRET not in answer.details
    assert not server.ledger.all_runs
    assert server.drain(30) == 0
    assert sentence in caplog.text
    assert SECRET not in caplog.text


def full(client):
    client.config_set("maxmemory", 1)


def replica_alone(client):
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", 1)


def busy(client):
    client.config_set("busy-reply-threshold", 1)

    def loop():
        with suppress(Exception):
            client.eval("while true do end", 0)

    threading.Thread(target=loop, daemon=True).start()


OUTAGES = {
    "OOM": (full, "maxmemory"),
    "READONLY": (lambda client: client.replicaof("127.0.0.1", 1), "read only replica"),
    "MASTERDOWN": (replica_alone, "MASTER is down"),
    "NOREPLICAS": (lambda client: client.config_set("min-replicas-to-write", 1), "NOREPLICAS"),
    "BUSY": (busy, "BUSY"),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_temporary_error_of_a_server_is_an_outage(own_redis_server, outage):
    act, said = OUTAGES[outage]
    with own_redis_server.client() as client, own_redis_server.client() as other:
        act(client)
        if outage == "BUSY":
            until(lambda: is_busy(other))
        for use in each_use(own_redis_server.url):
            with pytest.raises(StoreUnavailable, match=said) as caught:
                use()
            assert caught.value.answered
        if outage == "BUSY":
            other.script_kill()


def is_busy(client):
    try:
        return not client.ping()
    except Exception as error:
        return "BUSY" in str(error)


def test_a_cluster_that_is_down_is_an_outage():
    with running("--cluster-enabled", "yes") as server:
        for use in each_use(server.url):
            with pytest.raises(StoreUnavailable, match="Hash slot not served") as caught:
                use()
            assert caught.value.answered


def test_a_server_that_loads_its_data_is_an_outage():
    with scripted(b"-LOADING Redis is loading the dataset in memory\r\n") as url:
        for use in each_use(url):
            with pytest.raises(StoreUnavailable, match="loading") as caught:
                use()
            assert caught.value.answered


@pytest.mark.parametrize(
    "reply", [b"-ERR upstream failure\r\n", b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n"]
)
def test_an_unknown_error_is_an_outage(reply):
    """A mistake drops pending writes, and so an outcome, which only a certain mistake may do."""
    with scripted(reply) as url:
        for use in each_use(url):
            with pytest.raises(StoreUnavailable) as caught:
                use()
            assert caught.value.answered


def test_a_timeout_is_an_outage_without_an_answer(own_redis_server):
    own_redis_server.pause()
    for use in each_use(f"{own_redis_server.url}?{SOON}"):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert not caught.value.answered
    own_redis_server.kill()
    for use in each_use(f"{own_redis_server.url}?{SOON}"):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert not caught.value.answered


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_a_batch_reconnects_to_a_new_primary_like_a_single_swap(own_redis_server, face):
    """A server that has become a replica keeps its connections; a new connection may lead to the primary."""
    written = [Swap(b"%d" % number, None, b"one", TTL) for number in range(3)]
    refused = [Swap(swap.key, b"one", b"two", TTL) for swap in written]

    def demote():
        client.replicaof("127.0.0.1", 1)
        return connections()

    def connections():
        return client.info("stats")["total_connections_received"]

    async def swap_many():
        async with open_async_store(own_redis_server.url) as store:
            await store.swap_many(written)
            before = demote()
            with pytest.raises(StoreUnavailable, match="read only replica"):
                await store.swap_many(refused)
            return before

    with own_redis_server.client() as client:
        if face == "aio":
            before = asyncio.run(swap_many())
        else:
            with open_store(own_redis_server.url) as store:
                store.swap_many(written)
                before = demote()
                with pytest.raises(StoreUnavailable, match="read only replica"):
                    store.swap_many(refused)
        assert connections() - before == 1
