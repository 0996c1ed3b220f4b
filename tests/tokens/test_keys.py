"""TokenKeys: tokens that are fetched ahead for calls, for threads and for asyncio."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import grpc
import pytest

import idem_grpc
import idem_grpc.aio
from idem_grpc import Operation
from idem_grpc._core.keys import Outgoing
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import DEADLINE, order
from tests.support.wait import until
from tests.tokens.servers import CHARGE, TENANT, OnSync, shown
from tests.tokens.stores import Counted

CALL = Outgoing(Kind.UNARY.path, None, ())
RATE = {CHARGE: Operation(issue_rate=(300, 900))}


@pytest.fixture
def store():
    return Counted(open_store("sync", "memory:", uuid4().hex))


@pytest.fixture
def server(store):
    server = OnSync(store, operations=RATE)
    yield server
    server.close()


@pytest.fixture
def nowhere():
    """An address at which no server listens, nor any that another test may start."""
    return "127.0.0.1:1"


def issued(store):
    """How many tokens were issued so far. The count of the rate is a batch of one."""
    return sum(size for size in store.batches if size > 1)


def taken_in_asyncio(address, take, **settings):
    """Run ``take(keys)`` with an aio TokenKeys, and return its result."""

    async def main():
        async with grpc.aio.insecure_channel(address) as channel:
            return await take(idem_grpc.aio.TokenKeys(channel, CHARGE, **settings))

    return asyncio.run(main())


def test_each_token_is_valid(server):
    keys = idem_grpc.TokenKeys(server.client.channel, CHARGE, prefetch=4)
    for _ in range(10):
        token = keys(CALL)
        assert shown(server.client, token).operation == CHARGE
        assert server.client.call(Kind.UNARY, order(), token).ok
    assert {run.execution.attempt for run in server.ledger.all_runs} == {1}


def test_50_threads_never_get_the_same_token(server, store):
    """They do not each fetch a batch, as all threads of a caller share its rate."""
    keys = idem_grpc.TokenKeys(server.client.channel, CHARGE)
    together = threading.Barrier(50)

    def take(_):
        together.wait(DEADLINE)
        return [keys(CALL) for _ in range(4)]

    with ThreadPoolExecutor(50) as threads:
        taken = [token for some in threads.map(take, range(50)) for token in some]
    assert len(set(taken)) == 200
    assert issued(store) <= 200 + 3 * 16


def test_200_tasks_never_get_the_same_token(server, store):
    async def take(keys):
        return await asyncio.gather(*[keys(CALL) for _ in range(200)])

    taken = taken_in_asyncio(server.address, take)
    assert len(set(taken)) == 200
    assert issued(store) <= 200 + 3 * 16


def test_more_tokens_are_fetched_before_the_last_is_used(server, store):
    keys = idem_grpc.TokenKeys(server.client.channel, CHARGE, prefetch=6)
    assert issued(store) == 0, "none is wanted before the first call"
    keys(CALL)
    assert store.batches[-1] == 6
    keys(CALL)
    assert store.batches[-1] == 6
    keys(CALL)
    until(lambda: store.batches[-1] == 3)
    server.stop(grace=DEADLINE)
    for _ in range(6):
        assert keys(CALL), "these were there already"


def test_more_tokens_are_fetched_before_the_last_is_used_in_asyncio(server, store):
    async def take(keys):
        for _ in range(3):
            await keys(CALL)
        await asyncio.to_thread(until, lambda: store.batches[-1] == 3)
        await asyncio.to_thread(server.stop, DEADLINE)
        return [await keys(CALL) for _ in range(6)]

    assert len(set(taken_in_asyncio(server.address, take, prefetch=6))) == 6


def check(error):
    """Check that a failure says what failed, and that the call was not made."""
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [note for note in error.value.__notes__ if CHARGE in note and "not sent" in note] == (
        error.value.__notes__
    )


def test_a_service_that_is_away_fails_the_call(nowhere):
    with grpc.insecure_channel(nowhere) as channel:
        keys = idem_grpc.TokenKeys(channel, CHARGE)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as error:
                keys(CALL)
            check(error)


def test_a_service_that_is_away_fails_the_call_in_asyncio(nowhere):
    async def take(keys):
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as error:
                await keys(CALL)
            check(error)
        return await asyncio.gather(*[keys(CALL) for _ in range(10)], return_exceptions=True)

    assert {error.code() for error in taken_in_asyncio(nowhere, take)} == {grpc.StatusCode.UNAVAILABLE}


def test_a_silent_service_fails_all_waiting_calls_after_the_timeout(server):
    """Fifty threads that wait share one request, and its failure."""
    held = threading.Event()
    server.store.inner = Silent(server.store.inner, held)
    keys = idem_grpc.TokenKeys(server.client.channel, CHARGE, timeout=0.3)

    def take(_):
        with pytest.raises(grpc.RpcError) as error:
            keys(CALL)
        return error.value.code()

    with ThreadPoolExecutor(50) as threads:
        codes = set(threads.map(take, range(50)))
    held.set()
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert len(server.store.batches) < 10


class Silent(Counted):
    """Answers when ``held`` is set."""

    def __init__(self, inner, held):
        super().__init__(inner)
        self._held = held

    def swap_many(self, swaps):
        assert self._held.wait(DEADLINE)
        return super().swap_many(swaps)


def test_a_failure_to_fetch_ahead_fails_no_call(server, caplog):
    keys = idem_grpc.TokenKeys(server.client.channel, CHARGE, prefetch=4)
    keys(CALL)
    server.stop(grace=0)
    assert keys(CALL)
    until(lambda: "could not be prefetched" in caplog.text)
    assert keys(CALL)


def test_a_caller_over_its_rate_gets_the_refusal(server):
    """No other token can be used, so the call fails."""
    keys = idem_grpc.TokenKeys(server.client.channel, CHARGE, prefetch=100)
    with pytest.raises(grpc.RpcError) as error:
        [keys(CALL) for _ in range(500)]
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unknown_operation_fails_the_call(server):
    keys = idem_grpc.TokenKeys(server.client.channel, "tests.other")
    with pytest.raises(grpc.RpcError) as error:
        keys(CALL)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_tokens_are_fetched_with_the_metadata_of_the_caller(store):
    with closing(OnSync(store, operations=RATE, scope=idem_grpc.metadata(TENANT))) as server:
        keys = idem_grpc.TokenKeys(server.client.channel, CHARGE, ttl=60, metadata=[(TENANT, "alice")])
        token = keys(CALL)
        assert server.client.call(Kind.UNARY, order(), token, metadata=[(TENANT, "bob")]).code is (
            grpc.StatusCode.PERMISSION_DENIED
        )
        assert server.client.call(Kind.UNARY, order(), token, metadata=[(TENANT, "alice")]).ok
        assert 50 < shown(server.client, keys(CALL), [(TENANT, "alice")]).ttl.ToSeconds() <= 60


@pytest.mark.parametrize("keys", [idem_grpc.TokenKeys, idem_grpc.aio.TokenKeys])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metadata": {TENANT: "alice"}}, "give pairs, as in"),
        ({"metadata": TENANT}, "give pairs, as in"),
        ({"metadata": [TENANT]}, "is not a pair"),
        ({"metadata": [(TENANT, 5)]}, f"the value of '{TENANT}' is of type int: give a string"),
        ({"metadata": [(TENANT, None)]}, f"the value of '{TENANT}' is of type NoneType: give a string"),
        ({"metadata": [("tenant-bin", "alice")]}, "the value of 'tenant-bin' is of type str: give bytes"),
        ({"prefetch": 1.5}, "give a whole number"),
        ({"ttl": "60"}, "give a timedelta or a number"),
        ({}, "give a channel of grpc"),
    ],
    ids=str,
)
def test_settings_of_wrong_types_are_refused(keys, settings, says):
    with pytest.raises(TypeError, match=says):
        keys("host:1", CHARGE, **settings)


def test_channels_of_the_other_face_are_refused():
    async def of_aio():
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(TypeError, match=r"for grpc\.aio, use idem_grpc\.aio\.TokenKeys"):
                idem_grpc.TokenKeys(channel, CHARGE)  # type: ignore[arg-type]  # which is the point

    asyncio.run(of_aio())
    with (
        grpc.insecure_channel("127.0.0.1:1") as channel,
        pytest.raises(TypeError, match=r"for grpc, use idem_grpc\.TokenKeys"),
    ):
        idem_grpc.aio.TokenKeys(channel, CHARGE)  # type: ignore[arg-type]  # which is the point


@pytest.mark.parametrize("keys", [idem_grpc.TokenKeys, idem_grpc.aio.TokenKeys])
@pytest.mark.parametrize(
    "settings",
    [
        {"prefetch": 0},
        {"prefetch": 101},
        {"operation": ""},
        {"ttl": 0},
        {"ttl": -1},
        {"timeout": 0},
        {"refresh": True},
        {"refresh": 0},
        {"refresh": 1.1},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(keys, settings):
    with pytest.raises(ValueError, match="TokenKeys"):
        keys(None, **{"operation": CHARGE, **settings})


@pytest.mark.parametrize("keys", [idem_grpc.TokenKeys, idem_grpc.aio.TokenKeys])
@pytest.mark.parametrize("name", ["X-Tenant-Id", "", "x tenant", ":path", "é", "x\n"])
def test_metadata_names_that_cannot_be_sent_are_refused(keys, name):
    with pytest.raises(ValueError, match=r"TokenKeys\(metadata=…\): the name .* give lower-case letters"):
        keys(None, CHARGE, metadata=[(name, "alice")])


@pytest.mark.parametrize("keys", [idem_grpc.TokenKeys, idem_grpc.aio.TokenKeys])
@pytest.mark.parametrize("value", ["alice\n", "é", "\ud800", "\x7f", b"\xff", b"\0"])
def test_metadata_values_that_cannot_be_sent_are_refused(keys, value):
    """The error does not show them, as they may be secret."""
    with pytest.raises(ValueError, match=r"the value of '.*' cannot be sent: give printable ASCII") as error:
        keys(None, CHARGE, metadata=[(TENANT, value)])
    assert "alice" not in str(error.value)


def test_metadata_that_can_be_sent_is_accepted(server):
    metadata: list[tuple[str, str | bytes]] = [
        (TENANT, "a b~"),
        ("x_1.y", ""),
        ("x", b"bytes"),
        ("x-bin", b"\xff\0"),
    ]
    keys = idem_grpc.TokenKeys(server.client.channel, CHARGE, metadata=metadata)
    assert keys(CALL)
