"""Tokens fetched ahead that the server no longer knows (acme-client #148)."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import Budget, Reason, Retry
from idem_grpc._tokens.keys import TokenPool
from idem_grpc.stores._memory import MemoryStore
from tests.server.client import Kind
from tests.server.kinds import FIRST_AND_LAST
from tests.server.ledger import DEADLINE, order
from tests.support.scripted import Scripted, answer, fail, refuse
from tests.support.wait import until
from tests.tokens.servers import CHARGE, Clock, OnSync

FAST = Retry(initial_backoff=0.001, max_backoff=0.01)
ISSUE = "/idem.v1.TokenService/IssueTokens"
UNKNOWN, MISMATCH = Reason.TOKEN_UNKNOWN, Reason.TOKEN_MISMATCH
some_kinds = pytest.mark.parametrize("kind", FIRST_AND_LAST, indirect=True, ids=lambda kind: kind.value)


class Noted(grpc.ServerInterceptor):
    """Records the methods of the attempts that came. Requests for tokens wait for ``may_issue``."""

    def __init__(self):
        self.methods = []
        self.may_issue = threading.Event()
        self.may_issue.set()

    def intercept_service(self, continuation, details):
        self.methods.append(details.method)
        handler = continuation(details)
        if details.method != ISSUE:
            return handler

        def issue(request, context):
            assert self.may_issue.wait(DEADLINE)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            issue, handler.request_deserializer, handler.response_serializer
        )


class Forgetful:
    """A server that issues and accepts tokens, until it forgets those that it issued."""

    def __init__(self):
        self._clock = Clock()
        self._noted = Noted()
        store = MemoryStore(clock=self._clock)
        self.server = OnSync(store, before=[self._noted], policies={})
        self.address = self.server.address
        self.may_issue = self._noted.may_issue

    def forget(self):
        self._clock.now += 10_000

    @property
    def issued(self):
        """How often tokens were requested."""
        return self._noted.methods.count(ISSUE)

    @property
    def attempts(self):
        return len(self._noted.methods) - self.issued

    @property
    def runs(self):
        return len(self.server.ledger.all_runs)


@pytest.fixture
def forgetful():
    it = Forgetful()
    yield it
    it.may_issue.set()
    it.server.close()


class SyncClient:
    """Calls with tokens of one server, made to another."""

    def __init__(self, tokens, target, *, prefetch=16, **settings):
        self._tokens, self._plain = (grpc.insecure_channel(each.address) for each in (tokens, target))
        keys = idem_grpc.TokenKeys(self._tokens, CHARGE, prefetch=prefetch)
        ours = idem_grpc.client_interceptors(keys=keys, **{"retry": FAST, **settings})
        self._stub = ledger_pb2_grpc.LedgerServiceStub(grpc.intercept_channel(self._plain, *ours))

    def answer(self, kind, request=None, timeout=DEADLINE, *, future=False):
        request = request or order()
        method = getattr(self._stub, kind.value)
        given = iter([request] * 3) if kind.has_request_stream else request
        if kind.has_response_stream:
            return list(method(given, timeout=timeout))
        return [method.future(given, timeout=timeout).result() if future else method(given, timeout=timeout)]

    def close(self):
        self._plain.close()
        self._tokens.close()


class AioClient:
    """The same, on an event loop of its own."""

    def __init__(self, tokens, target, *, prefetch=16, **settings):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def connect():
            self._tokens = grpc.aio.insecure_channel(tokens.address)
            keys = idem_grpc.aio.TokenKeys(self._tokens, CHARGE, prefetch=prefetch)
            ours = idem_grpc.aio.client_interceptors(keys=keys, **{"retry": FAST, **settings})
            self._channel = grpc.aio.insecure_channel(target.address, interceptors=ours)
            self._stub = ledger_pb2_grpc.LedgerServiceStub(self._channel)

        self._run(connect())

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE)

    def answer(self, kind, request=None, timeout=DEADLINE, *, future=False):
        request = request or order()

        async def send():
            method = getattr(self._stub, kind.value)
            call = method([request] * 3 if kind.has_request_stream else request, timeout=timeout)
            return [response async for response in call] if kind.has_response_stream else [await call]

        return self._run(send())

    def close(self):
        async def close():
            await self._channel.close()
            await self._tokens.close()

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()


CLIENTS: dict[str, Any] = {"sync": SyncClient, "aio": AioClient}


@pytest.fixture
def connect(face):
    """``connect(server, target=None, **settings)``: a client of this face."""
    clients = []

    def connect(tokens, target=None, **settings):
        clients.append(CLIENTS[face](tokens, target or tokens, **settings))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@contextmanager
def refused(reason):
    with pytest.raises(grpc.RpcError) as error:
        yield error
    assert idem_grpc.reason(error.value) is reason


@pytest.mark.parametrize("future", [False, True], ids=["awaited", "future"])
def test_calls_whose_tokens_were_forgotten_take_new_ones(forgetful, connect, kind, future):
    client = connect(forgetful)
    client.answer(kind)
    forgetful.forget()
    for _ in range(7):
        assert client.answer(kind, future=future)
    assert forgetful.runs == 8
    assert forgetful.attempts == 9, "one was refused"
    assert forgetful.issued == 2


@pytest.mark.parametrize("future", [False, True], ids=["awaited", "future"])
def test_callers_that_hold_forgotten_tokens_share_one_request_for_new_ones(forgetful, connect, kind, future):
    """Fewer than half of the pool: with more, tokens would be fetched ahead."""
    client = connect(forgetful)
    client.answer(kind)
    forgetful.forget()
    forgetful.may_issue.clear()
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(client.answer, kind, future=future) for _ in range(6)]
        until(lambda: forgetful.issued == 2)
        forgetful.may_issue.set()
        assert all(answer.result(DEADLINE) for answer in answers)
    assert forgetful.runs == 7
    assert forgetful.issued == 2


@some_kinds
def test_tokens_may_be_forgotten_several_times(forgetful, connect, kind):
    client = connect(forgetful)
    for round_ in range(1, 4):
        assert client.answer(kind)
        assert client.answer(kind)
        forgetful.forget()
        assert forgetful.issued == round_
    assert forgetful.runs == 6


@pytest.mark.parametrize("settings", [{"retry": None}, {"retry": Retry(max_attempts=1)}])
def test_without_retries_the_next_call_takes_a_new_one(forgetful, connect, face, kind, settings):
    client = connect(forgetful, **settings)
    client.answer(kind)
    forgetful.forget()
    if face == "aio" and kind.has_request_stream:
        # While a request is being sent, grpc.aio says INTERNAL in place of the refusal.
        with pytest.raises(grpc.RpcError):
            client.answer(kind)
        until(lambda: succeeds(client, kind))
    else:
        with refused(UNKNOWN):
            client.answer(kind)
        assert client.answer(kind)
        assert forgetful.attempts == 3
    assert forgetful.runs == 2


def succeeds(client, kind):
    try:
        return client.answer(kind)
    except grpc.RpcError:
        return None


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI], indirect=True, ids=lambda kind: kind.value)
def test_a_request_stream_that_was_not_kept_is_not_sent_again(forgetful, connect, kind):
    client = connect(forgetful, retry=Retry(max_request_bytes=0))
    client.answer(kind)
    forgetful.forget()
    with refused(UNKNOWN) as error:
        client.answer(kind)
    assert any("larger than" in note for note in error.value.__notes__)
    assert client.answer(kind)


@pytest.fixture
def script():
    servers = []

    def start(*steps):
        servers.append(Scripted(*steps))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@some_kinds
def test_calls_to_a_server_that_accepts_no_token_end(forgetful, connect, script, kind):
    server = script(refuse(UNKNOWN))
    client = connect(forgetful, server)
    for number in range(1, 4):
        with refused(UNKNOWN) as error:
            client.answer(kind)
        assert "idem_grpc: 2 attempts were made" in error.value.__notes__
        assert len(server.seen) == 2 * number
        assert forgetful.issued <= 2 * number
    assert len(set(server.keys)) == 6


@some_kinds
def test_a_call_that_may_have_been_run_is_not_sent_with_another_token(forgetful, connect, script, kind):
    """Its first attempt ended unclear, and with another token it would be another call."""
    server = script(fail(), refuse(UNKNOWN), answer())
    client = connect(forgetful, server)
    with refused(UNKNOWN):
        client.answer(kind)
    assert len(server.seen) == 2
    assert len(set(server.keys)) == 1
    assert client.answer(kind)
    assert forgetful.issued == 2, "the tokens were dropped all the same"


@some_kinds
def test_a_call_that_was_not_run_for_an_outage_is_sent_with_another_token(forgetful, connect, script, kind):
    """A server answers like this if its store is restarted and has lost its data."""
    server = script(refuse(Reason.STORE_UNAVAILABLE), refuse(UNKNOWN), answer())
    assert connect(forgetful, server).answer(kind)
    assert len(server.seen) == 3
    assert server.keys[0] == server.keys[1] != server.keys[2]


@some_kinds
def test_a_refusal_that_a_handler_passed_on_is_not_of_this_token(forgetful, connect, script, kind):
    """The handler was run: it called another server with another token."""

    def passed_on(requests, context):
        context.set_trailing_metadata = lambda pairs, put=context.set_trailing_metadata: put(
            (*pairs, ("idempotency-run", "ab" * 16))
        )
        return refuse(UNKNOWN)(requests, context)

    server = script(passed_on)
    client = connect(forgetful, server)
    for _ in range(3):
        with refused(UNKNOWN):
            client.answer(kind)
    assert len(server.seen) == 3
    assert forgetful.issued == 1


@some_kinds
def test_new_tokens_count_in_the_retry_budget(forgetful, connect, script, kind):
    """Of four tokens of a budget, two may be used."""
    server = script(refuse(UNKNOWN))
    client = connect(forgetful, server, retry=Retry(budget=Budget(max_tokens=4, ratio=1)))
    for _ in range(4):
        with refused(UNKNOWN):
            client.answer(kind)
    assert len(server.seen) == 5


@some_kinds
@pytest.mark.parametrize("future", [False, True], ids=["awaited", "future"])
def test_the_deadline_holds_while_new_tokens_are_fetched(forgetful, connect, kind, future):
    client = connect(forgetful)
    client.answer(kind)
    forgetful.forget()
    forgetful.may_issue.clear()
    with refused(UNKNOWN) as error:
        client.answer(kind, timeout=0.5, future=future)
    assert any("no new token" in note for note in error.value.__notes__)
    assert not forgetful.may_issue.is_set()


@some_kinds
@pytest.mark.parametrize("future", [False, True], ids=["awaited", "future"])
def test_the_refusal_is_raised_if_no_new_token_is_available(forgetful, connect, script, kind, future):
    server = script(answer(), refuse(UNKNOWN))
    client = connect(forgetful, server)
    client.answer(kind)
    forgetful.server.stop(grace=0)
    with refused(UNKNOWN) as error:
        client.answer(kind, future=future)
    assert any("no new token" in note and "UNAVAILABLE" in note for note in error.value.__notes__)
    assert len(server.seen) == 2


@some_kinds
def test_a_token_of_another_caller_is_refused_and_the_whole_pool_is_dropped(forgetful, connect, script, kind):
    """Another token may not help, but the identity of the caller may have changed."""
    server = script(answer(), refuse(MISMATCH), answer())
    client = connect(forgetful, server)
    client.answer(kind)
    with refused(MISMATCH):
        client.answer(kind)
    assert client.answer(kind)
    assert forgetful.issued == 2
    assert len(server.seen) == 3


def test_a_refusal_of_an_explicit_key_drops_no_tokens(forgetful, script):
    server = script(answer(), refuse(UNKNOWN), answer())
    with grpc.insecure_channel(forgetful.address) as tokens, grpc.insecure_channel(server.address) as plain:
        ours = idem_grpc.client_interceptors(keys=idem_grpc.TokenKeys(tokens, CHARGE), retry=FAST)
        stub = ledger_pb2_grpc.LedgerServiceStub(grpc.intercept_channel(plain, *ours))
        stub.Unary(pb.LedgerRequest())
        with refused(UNKNOWN):
            stub.Unary(pb.LedgerRequest(), metadata=(("idempotency-key", "idt_mine"),))
        stub.Unary(pb.LedgerRequest())
    assert len(server.seen) == 3
    assert forgetful.issued == 1


def test_a_future_can_be_cancelled_while_new_tokens_are_fetched(forgetful):
    with (
        grpc.insecure_channel(forgetful.address) as tokens,
        grpc.insecure_channel(forgetful.address) as plain,
    ):
        ours = idem_grpc.client_interceptors(keys=idem_grpc.TokenKeys(tokens, CHARGE), retry=FAST)
        stub = ledger_pb2_grpc.LedgerServiceStub(grpc.intercept_channel(plain, *ours))
        stub.Unary(order())
        forgetful.forget()
        forgetful.may_issue.clear()
        call = stub.Unary.future(order())
        until(lambda: forgetful.issued == 2)
        assert call.cancel()
        forgetful.may_issue.set()
        assert call.code() is grpc.StatusCode.CANCELLED
        stub.Unary(order())
    assert forgetful.runs == 2


def test_tokens_requested_before_the_pool_was_dropped_are_not_given_out():
    pool = TokenPool(4)
    asked = pool.generation
    pool.add([("a", 100.0), ("b", 100.0)], now=0, generation=asked)
    old, older = (pool.take(0) or "" for _ in "ab")
    pool.add([("c", 100.0)], now=0, generation=asked)
    pool.drop(old)
    pool.add([("d", 100.0)], now=0, generation=asked)
    assert pool.take(0) is None
    pool.add([("e", 100.0)], now=0, generation=pool.generation)
    pool.drop(older)
    pool.drop("of another source")
    assert pool.take(0) == "e"
