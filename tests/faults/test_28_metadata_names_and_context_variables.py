"""Metadata names given as bytes, and context variables that a handler sets."""

import inspect
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import pytest

from idem_grpc import OnCancel, Policy, current
from tests.faults.handlers import behavior_of, doing, like
from tests.server.client import Kind
from tests.server.kinds import ALL, kinds
from tests.server.ledger import Gate
from tests.streams.scripts import Cross, Do, Read, Send
from tests.streams.servers import Conversation, say
from tests.support.wait import until

kind = kinds(*ALL)

NAMED_IN_BYTES: list[tuple[Any, Any]] = [
    (b"fee", "12"),
    (b"fee", b"13"),
    ("note", b"a b"),
    (b"seal-bin", b"\x00\xff"),
]
AS_SENT = (("fee", "12"), ("fee", "13"), ("note", "a b"), ("seal-bin", b"\x00\xff"))


@dataclass
class Ending(grpc.Status):
    trailing_metadata: Any
    code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND
    details: str = "no such order"


WAYS = {
    "initial": lambda context: context.send_initial_metadata(tuple(NAMED_IN_BYTES)),
    "trailing": lambda context: context.set_trailing_metadata(tuple(NAMED_IN_BYTES)),
    "status": lambda context: context.abort_with_status(Ending(tuple(NAMED_IN_BYTES))),
    "abort": lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "no", tuple(NAMED_IN_BYTES)),
}


def ask(server, kind, key):
    if kind.has_request_stream:
        return say(server.client, kind, key, [b"one"])
    return Conversation(server.client, kind, key).answer()


def is_answered_twice(server, kind, key, way):
    first, second = (ask(server, kind, key) for _ in range(2))
    assert first.code is (grpc.StatusCode.NOT_FOUND if way in ("status", "abort") else grpc.StatusCode.OK)
    sent = first.initial if way == "initial" else first.trailing
    assert tuple(pair for pair in sent if pair[0] != "idempotency-run") == AS_SENT
    assert second.essence == first.essence
    assert second.replayed


@pytest.mark.parametrize("way", ["initial", "trailing", "status"])
def test_metadata_names_may_be_bytes(start_scripted, kind, key, way):
    is_answered_twice(start_scripted(scripts=doing(kind, WAYS[way])), kind, key, way)


@pytest.mark.parametrize("style", ["aio", "aio-read-write"], indirect=True)
def test_metadata_names_may_be_bytes_in_an_abort(start_scripted, kind, key):
    is_answered_twice(start_scripted(scripts=doing(kind, WAYS["abort"])), kind, key, "abort")


said: ContextVar[str] = ContextVar("said", default="nothing")
kept: ContextVar[str] = ContextVar("kept")


class Listens:
    """Records the value that the handler set, and whether the library's own variable leaks out."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def has_heard(self, last: Any) -> bool:
        return self.heard[-1:] == [last]

    def note(self) -> None:
        self.heard.append((said.get(), kept.get("nothing"), current()))


class SyncListens(grpc.ServerInterceptor, Listens):
    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def response(request, context):
            token = said.set("from outside")
            try:
                return behavior_of(handler)(request, context)
            finally:
                self.note()
                said.reset(token)

        def responses(request, context):
            said.set("from outside")
            try:
                for message in behavior_of(handler)(request, context):
                    self.note()
                    yield message
            finally:
                self.note()

        return like(handler, responses if handler.response_streaming else response)


class AsyncListens(grpc.aio.ServerInterceptor, Listens):
    async def intercept_service(self, continuation, details):
        handler = await continuation(details)

        async def response(request, context):
            token = said.set("from outside")
            try:
                return await behavior_of(handler)(request, context)
            finally:
                self.note()
                said.reset(token)

        async def written(request, context):
            said.set("from outside")
            try:
                await behavior_of(handler)(request, context)
            finally:
                self.note()

        async def responses(request, context):
            said.set("from outside")
            try:
                async for message in behavior_of(handler)(request, context):
                    self.note()
                    yield message
            finally:
                self.note()

        if not handler.response_streaming:
            return like(handler, response)
        is_generator = inspect.isasyncgenfunction(behavior_of(handler))
        return like(handler, responses if is_generator else written)


def saying(kind, end):
    """A handler that sets a variable before its first response, after it, and at its end."""

    def script(context):
        yield Read()
        said.set(f"{said.get()}, first")
        if kind.has_response_stream:
            yield Send(b"one")
        said.set("second")
        if kind.has_response_stream:
            yield Send(b"two")
        said.set("last")
        kept.set("to the end")
        if end == "aborts":
            yield Do(lambda: context.abort(grpc.StatusCode.NOT_FOUND, "no"))
        if end == "raises":
            raise ValueError("no")
        return b"answer"

    return {kind: script}


LAST = ("last", "to the end", None)


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
@pytest.mark.parametrize("end", ["answers", "aborts", "raises"])
@pytest.mark.parametrize("on_cancel", OnCancel)
def test_variables_that_a_handler_sets_are_seen_outside(start_scripted, style, kind, key, end, on_cancel):
    heard = []
    for protected in (True, False):
        listens: Any = SyncListens() if style == "sync" else AsyncListens()
        server = start_scripted(
            scripts=saying(kind, end),
            before=[listens],
            default=Policy(on_cancel=on_cancel),
            protected=protected,
        )
        ask(server, kind, key)
        until(partial(listens.has_heard, LAST))
        heard.append(listens.heard)
    ours, plain = heard
    assert ours == plain
    assert len(ours) == (3 if kind.has_response_stream else 1)


@pytest.mark.parametrize("style", ["aio-read-write"], indirect=True)
def test_variables_set_by_a_coroutine_that_writes_are_seen_outside(start_scripted, kind, key):
    listens = AsyncListens()
    server = start_scripted(scripts=saying(kind, "answers"), before=[listens])
    ask(server, kind, key)
    assert until(lambda: listens.heard[-1:] == [LAST])


@pytest.mark.parametrize("style", ["aio-thread"], indirect=True)
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value, indirect=True)
def test_variables_set_on_a_thread_are_not_seen_outside(start_scripted, kind, key):
    listens = AsyncListens()
    server = start_scripted(scripts=saying(kind, "answers"), before=[listens])
    ask(server, kind, key)
    assert until(lambda: listens.heard) == [("from outside", "nothing", None)]


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
def test_a_replay_sets_no_variables(start_scripted, style, kind, key):
    listens: Any = SyncListens() if style == "sync" else AsyncListens()
    server = start_scripted(scripts=saying(kind, "answers"), before=[listens])
    ask(server, kind, key)
    until(lambda: listens.heard[-1:] == [LAST])
    listens.heard.clear()
    ask(server, kind, key)
    until(lambda: len(listens.heard) == (3 if kind.has_response_stream else 1))
    assert set(listens.heard) == {("from outside", "nothing", None)}


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
def test_a_handler_whose_caller_left_keeps_what_was_set_outside(start_scripted, style, kind, key):
    """The interceptors outside end then, and reset their variables."""
    gate, heard = Gate(), list[str]()

    def waits(context):
        request = yield Read()
        while kind.has_request_stream and request is not None:
            request = yield Read()
        yield Cross(gate)
        heard.append(said.get())
        return b"answer"

    listens: Any = SyncListens() if style == "sync" else AsyncListens()
    server = start_scripted(scripts={kind: waits}, before=[listens])
    call = Conversation(server.client, kind, key).send(b"one").end()
    gate.await_arrival()
    call.cancel()
    until(lambda: listens.heard or style == "sync")
    gate.open()
    until(lambda: server.drain(0) == 0)
    assert heard == ["from outside"]
