"""A run that begins without its claim, as OnOutage.RUN allows, is reported as unprotected."""

import asyncio
import threading
from typing import Any

import grpc
import pytest

import idem_grpc
import idem_grpc.aio
from idem_grpc import OnOutage, Policy, Reporter, Retry, StoreUnavailable, client_interceptors
from idem_grpc._core.outcome import Code
from idem_grpc._core.record import State
from idem_grpc._core.swap import Swap
from tests.server.client import REPLAYED, RUN, Kind
from tests.server.harness import open_store
from tests.server.ledger import DEADLINE, order, run
from tests.server.stores import AsyncWatched, Watched
from tests.streams.stores import barred
from tests.support.wait import until

pytestmark = pytest.mark.parametrize(
    ("face", "plain"), [("sync", False), ("aio", False), ("aio", True)], indirect=["face"]
)

NOT_FOUND, ABORTED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED
TRUSTING = Policy(on_outage=OnOutage.RUN, wait=600)


class Events(Reporter):
    def __init__(self):
        self.replies = []

    def replied(self, event):
        self.replies.append(event)

    def summary(self):
        return [(event.code, event.replayed, event.protected) for event in self.replies]


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def away():
    """An event: while it is set, the store does not answer."""
    return threading.Event()


@pytest.fixture
def server(face, plain, start, events, away):
    def bar(swap):
        if away.is_set():
            raise StoreUnavailable("away")

    store = barred(open_store(face, "memory:", "unprotected"), bar)
    return start(store=store, plain=plain, default=TRUSTING, reporter=events)


def names_run(answer):
    """Whether the metadata of an answer names a run."""
    names = {name for name, _ in (*answer.initial, *answer.all_trailing)}
    return bool(names & {RUN, REPLAYED})


def test_the_answer_of_an_unprotected_run_names_no_run(server, kind, key, away, events):
    away.set()
    answer = server.client.call(kind, order(), key)
    assert answer.ok
    assert not names_run(answer)
    assert events.summary() == [(Code.OK, False, False)]
    assert events.replies[0].run
    away.clear()


@pytest.mark.parametrize("code", [NOT_FOUND, ABORTED, grpc.StatusCode.INTERNAL])
def test_the_error_of_an_unprotected_run_names_no_run(server, kind, key, away, events, code):
    away.set()
    answer = server.client.call(kind, order(run(code=code)), key)
    assert answer.code is code
    assert not names_run(answer)
    assert events.summary() == [(Code[code.name], False, False)]
    away.clear()


def test_a_run_without_its_claim_is_unprotected_even_if_its_outcome_is_kept(server, kind, key, away, events):
    """Other servers may have run the call too, until the store was back. Its replays are protected."""
    request = order(run(gate="at work", responses_before_gate=0))
    away.set()
    first = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    away.clear()
    server.ledger.gate("at work").open()
    assert first.answer().ok
    assert not names_run(first.answer())
    until(lambda: server.record(key, kind).state is State.DONE)
    replay = server.client.call(kind, request, key)
    assert replay.messages == first.answer().messages
    assert replay.replayed
    assert replay.run == events.replies[0].run
    assert events.summary() == [(Code.OK, False, False), (Code.OK, True, True)]


def test_a_run_with_its_claim_is_protected(server, kind, key, events):
    answer = server.client.call(kind, order(), key)
    assert answer.run
    assert events.summary() == [(Code.OK, False, True)]


class Lossy(Watched):
    """A store whose first claim takes effect, and its reply is lost."""

    is_lost = False

    def loses(self, swap: Swap) -> bool:
        loses, self.is_lost = not self.is_lost, True
        return loses

    def swap(self, swap):
        seen = super().swap(swap)
        if self.loses(self.swaps[-1]):
            raise StoreUnavailable("its reply was lost")
        return seen


class AsyncLossy(AsyncWatched):
    def __init__(self, inner):
        super().__init__(inner)
        self.blocking: Lossy = Lossy(inner.blocking)

    async def swap(self, swap):
        seen = await super().swap(swap)
        if self.blocking.loses(self.swaps[-1]):
            raise StoreUnavailable("its reply was lost")
        return seen


@pytest.mark.parametrize("end", [run(), run(code=NOT_FOUND), run(code=ABORTED)])
def test_duplicates_that_wait_for_an_unprotected_run_share_its_answer_and_are_unprotected(
    face, plain, start, kind, key, events, end
):
    opened = open_store(face, "memory:", "lossy")
    store = Lossy(opened) if face == "sync" else AsyncLossy(opened)
    server = start(store=store, plain=plain, default=TRUSTING, reporter=events, max_waiters=8)
    end.gate = "at work"
    request = order(end)
    first = server.client.begin(kind, request, key)
    server.ledger.gate("at work").await_arrival()
    duplicates = [server.client.begin(kind, request, key) for _ in range(3)]
    until(lambda: len(store.swaps) >= 4)
    server.ledger.gate("at work").open()
    answers = [call.answer() for call in (first, *duplicates)]
    assert len(server.ledger.runs(request)) == 1
    assert len({(answer.code, answer.messages) for answer in answers}) == 1
    assert not any(map(names_run, answers))
    assert {event.protected for event in events.replies} == {False}
    assert len({event.run for event in events.replies}) == 1


def test_replayed_is_none_for_an_unprotected_run(server, key, away):
    request, path = order(), Kind.UNARY.path
    sent: Any = [("idempotency-key", key)]
    raw: Any = grpc.intercept_channel(server.client.channel, *client_interceptors())

    async def on_aio():
        async with grpc.aio.insecure_channel(
            server.address, interceptors=idem_grpc.aio.client_interceptors()
        ) as channel:
            method: Any = channel.unary_unary(path)
            call = method(request.SerializeToString(), metadata=sent)
            await call
            return await idem_grpc.aio.replayed(call)

    def on_sync():
        _, call = raw.unary_unary(path).with_call(request.SerializeToString(), metadata=sent)
        return idem_grpc.replayed(call)

    away.set()
    assert on_sync() is None
    assert asyncio.run(on_aio()) is None
    away.clear()


@pytest.mark.parametrize("client", ["sync", "aio"])
def test_a_client_does_not_resume_the_stream_of_an_unprotected_run(server, kind, key, away, client):
    """Another run would send another stream, and the client cannot know whether it is the same."""
    if not kind.has_response_stream:
        kind = Kind.SERVER_STREAM
    request = order(run(code=grpc.StatusCode.UNAVAILABLE)).SerializeToString()
    requests = [request] if kind.has_request_stream else request
    sent, retry = [("idempotency-key", key)], Retry(max_attempts=3)
    messages = []

    def on_sync():
        channel = grpc.intercept_channel(server.client.channel, *client_interceptors(retry=retry))
        body = iter(requests) if kind.has_request_stream else requests
        messages.extend(getattr(channel, kind.arity)(kind.path)(body, metadata=sent, timeout=DEADLINE))

    async def on_aio():
        ours = idem_grpc.aio.client_interceptors(retry=retry)
        async with grpc.aio.insecure_channel(server.address, interceptors=ours) as channel:
            body = iter(requests) if kind.has_request_stream else requests
            call = getattr(channel, kind.arity)(kind.path)(body, metadata=sent, timeout=DEADLINE)
            async for message in call:
                messages.append(message)

    away.set()
    with pytest.raises(grpc.RpcError) as caught:
        on_sync() if client == "sync" else asyncio.run(on_aio())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert any("does not tell which run" in note for note in caught.value.__notes__)
    assert messages
    assert len(server.ledger.all_runs) == 1
    away.clear()
