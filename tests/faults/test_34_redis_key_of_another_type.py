"""A Redis key of another type, under a record's name, is a mistake that concerns this key alone."""

import asyncio
import json

import pytest

from idem_grpc import Policy, Reason
from idem_grpc._core.digest import digest, store_key, token_key
from idem_grpc._core.record import State
from idem_grpc._core.steps import Outage
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc._server.availability import Availability
from idem_grpc._server.keeper import attempt_all
from idem_grpc.stores import StoreError, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from idem_grpc.stores._redis import RedisStore
from tests.cli.conftest import run as run_command
from tests.cli.conftest import start as start_command
from tests.cli.records import KEY, OPERATION, RUNNING, SCOPE, write
from tests.server.client import Kind
from tests.server.harness import open_store as open_for
from tests.server.harness import starting
from tests.server.kinds import kinds
from tests.server.ledger import order, run
from tests.support.redis_server import calls_of
from tests.support.wait import until
from tests.tokens.servers import CHARGE, FACES, ask, get, revoke, wanted

kind = kinds(Kind.UNARY, Kind.BIDI)
command = run_command  # a fixture, by a name that no test's own run() hides
OTHERS = {
    "list": lambda client, name: client.rpush(name, "theirs"),
    "hash": lambda client, name: client.hset(name, "field", "theirs"),
    "set": lambda client, name: client.sadd(name, "theirs"),
    "zset": lambda client, name: client.zadd(name, {"theirs": 1}),
    "stream": lambda client, name: client.xadd(name, {"field": "theirs"}),
}


def swaps_of(key):
    yield from (Swap(key, None, b"one", TTL), Swap(key, b"one", b"two", TTL), Swap(key, b"one", b"one", TTL))
    yield from (Swap(key, b"one", None, TTL), Swap(key, b"one", b"two", TTL, 1.0))


@pytest.mark.parametrize("other", OTHERS)
def test_every_swap_of_such_a_key_is_refused_by_name_and_changes_nothing(redis, admin, other):
    OTHERS[other](admin, "idem:theirs")
    before = admin.dump("idem:theirs")

    async def refused_async(swap):
        async with open_async_store(redis.url) as store:
            await refused(store.swap(swap))
            await refused(store.swap_many([Swap(b"mine", None, b"one", TTL), swap]))

    async def refused(swapping):
        with pytest.raises(StoreError, match="key idem:theirs has a Redis type that is not") as caught:
            await swapping
        assert type(caught.value) is StoreError

    with open_store(redis.url) as store:
        for swap in swaps_of(b"theirs"):
            for send in (
                lambda swap: store.swap(swap),
                lambda swap: store.swap_many([Swap(b"mine", None, b"one", TTL), swap]),
            ):
                with pytest.raises(StoreError, match="key idem:theirs has a Redis type") as caught:
                    send(swap)
                assert type(caught.value) is StoreError
            asyncio.run(refused_async(swap))
    assert admin.dump("idem:theirs") == before
    assert admin.ttl("idem:theirs") == -1


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_other_swaps_of_a_batch_take_effect(redis, admin, face):
    """As the keeper sends them: through the sync store, or the sync half of an asyncio one."""
    opened = open_for(face, redis.url, "idem")
    store = opened if face == "sync" else opened.blocking
    admin.rpush("idem:theirs", "a list")
    store.swap(Swap(b"held", None, b"another's", TTL))
    keys = (b"one", b"theirs", b"held", b"two")
    one, theirs, held, two = attempt_all(
        store, [Swap(key, None, b"mine", TTL) for key in keys], Availability()
    )
    assert theirs == Outage(misused=True)
    assert (type(one), type(held), type(two)) == (Swapped, Held, Swapped)
    assert [admin.get(f"idem:{key}") for key in ("one", "held", "two")] == [b"mine", b"another's", b"mine"]
    store.close()


def test_a_call_with_such_a_key_is_refused_and_leaves_nothing_to_do(redis, admin, start, kind, key):
    server, request = start(redis.url), order()
    name = store_key(server.store.namespace, kind.path, b"", key)
    admin.rpush(f"{server.store.namespace}:{name.decode()}", "a list")
    for _ in range(2):
        answer = server.client.call(kind, request, key)
        assert (answer.code.name, answer.reason) == ("INTERNAL", Reason.MISCONFIGURED)
    assert not server.ledger.all_runs
    assert server.drain(30) == 0


def test_calls_that_run_at_the_same_time_keep_their_leases(redis, admin, start, kind):
    short = Policy(lease=0.6, retention=600, wait=0)
    server, other = start(redis.url, default=short), start(redis.url, default=short)
    requests = {key: order(run(gate=key)) for key in ("one", "broken", "two")}
    calls = {key: server.client.begin(kind, request, key) for key, request in requests.items()}
    for key in calls:
        server.ledger.gate(key).await_arrival()
    name = store_key(server.store.namespace, kind.path, b"", "broken").decode()
    admin.delete(f"{server.store.namespace}:{name}")
    admin.rpush(f"{server.store.namespace}:{name}", "a list")

    def renewals():
        return calls_of(admin)["pexpire"]

    before = renewals()
    until(lambda: renewals() >= before + 2 * 8)  # three a lease for each: more than two leases have gone by
    for key in ("one", "two"):
        assert other.client.call(kind, requests[key], key).reason is Reason.IN_PROGRESS
    for key in calls:
        server.ledger.gate(key).open()
    answers = {key: call.answer() for key, call in calls.items()}
    assert answers["one"].ok
    assert answers["two"].ok
    assert not answers["broken"].ok
    admin.delete(f"{server.store.namespace}:{name}")  # somebody corrects it, in time for the outcome
    until(lambda: server.record("broken", kind).state is State.DONE)
    for key in ("one", "two"):
        assert other.client.call(kind, requests[key], key).essence == answers[key].essence
    assert not other.ledger.all_runs


def test_tokens_of_such_a_name_are_refused_and_others_work(face, redis, admin):
    with starting(lambda url: open_for(face, url, "idem"), FACES[face]) as start:
        server = start(redis.url)
        admin.rpush("idem:" + token_key("idem", "idt_broken").decode(), "a list")
        for answer in (get(server.client, "idt_broken"), revoke(server.client, "idt_broken")):
            assert (answer.code.name, answer.reason) == ("INTERNAL", Reason.MISCONFIGURED)
        assert ask(server.client, "IssueTokens", wanted(count=3)).ok
        counter = digest("rate", b"idem", CHARGE.encode(), b"", size=24)
        admin.delete(b"idem:" + counter)
        admin.rpush(b"idem:" + counter, "a list")
        answer = ask(server.client, "IssueTokens", wanted())
        assert (answer.code.name, answer.reason) == ("INTERNAL", Reason.MISCONFIGURED)


@pytest.mark.parametrize("other", OTHERS)
def test_a_scan_skips_such_a_key_and_reports_it(redis, admin, caplog, other):
    with RedisStore(redis.url) as store:
        for number in range(150):
            store.swap(Swap(b"%d" % number, None, b"one", TTL))
        OTHERS[other](admin, "idem:theirs")
        assert len(dict(store.scan())) == 150
        assert "idem:theirs: the value's Redis type is not that of a record" in caplog.text
        OTHERS[other](admin, "idem:theirs-too")
        assert len(dict(store.scan())) == 150
        assert "idem:theirs and 1 more" in caplog.text


def test_a_scan_fails_if_it_may_not_read_a_key(redis, admin):
    admin.execute_command("ACL SETUSER shy on >pw ~* +@all -get")
    with RedisStore(redis.url.replace("://", "://shy:pw@")) as store:
        admin.set("idem:mine", "one")
        with pytest.raises(StoreError, match="lacks a permission"):
            list(store.scan())


def test_the_command_lists_the_other_keys_and_names_such_a_key(redis, admin):
    with open_store(redis.url) as store:
        name = write(store, "k", RUNNING)
    admin.rpush("idem:" + "x" * 32, "a list")
    ended = start_command("list", "--store", redis.url, "--json")
    assert ended.returncode == 0
    assert [record["key"] for record in json.loads(ended.stdout)] == [name]
    assert f"skipped idem:{'x' * 32}" in ended.stderr


@pytest.mark.parametrize("verb", ["inspect", "forget", "resolve", "revoke"])
def test_a_command_on_such_a_key_names_its_type(redis, admin, command, verb):
    which = ("--token", "t") if verb == "revoke" else ("k", *KEY)
    how = ("--rerun",) if verb == "resolve" else ()
    record = token_key("idem", "t") if verb == "revoke" else store_key("idem", OPERATION, SCOPE.encode(), "k")
    name = f"idem:{record.decode()}"
    admin.rpush(name, "a list")
    ended = command(verb, "--store", redis.url, *which, *how)
    assert ended.exit_code == 2
    assert f"the key {name} has a Redis type that is not that of a record" in ended.stderr
    assert admin.lrange(name, 0, -1) == [b"a list"]
