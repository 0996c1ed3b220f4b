"""Handlers may give the codes that grpc accepts: in grpc.aio numbers too, on threads not."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

import idem_grpc
from idem_grpc._core.record import State
from tests.faults import handlers
from tests.faults.compared import Compared, ask, status
from tests.server.client import Kind
from tests.server.kinds import kinds
from tests.streams.scripts import Do
from tests.support.wait import until

kind = kinds(Kind.UNARY, Kind.CLIENT_STREAM, Kind.SERVER_STREAM)

OK_CODES = [0, code_pb2.OK, grpc.StatusCode.OK, False]
CODES = [
    5,
    code_pb2.NOT_FOUND,
    code_pb2.FAILED_PRECONDITION,
    idem_grpc.Code.ALREADY_EXISTS,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.NOT_FOUND.value,
    16,
    17,
    99,
    -1,
    True,
    "NOT_FOUND",
    5.0,
]


@dataclass
class Ending(grpc.Status):
    code: Any
    details: str = "no"
    trailing_metadata: Any = ()


def sets(code):
    def way(context):
        context.set_code(code)
        context.set_details("no")
        yield Do(int)

    return way


def aborts(code):
    return lambda context: (yield Do(lambda: context.abort(code, "no")))


def aborts_with_status(code):
    return lambda context: (yield Do(lambda: context.abort_with_status(Ending(code))))


def aborts_after_setting(code):
    def way(context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        with suppress(Exception):
            yield Do(lambda: context.abort(code, "no"))

    return way


def raises_after_setting(code):
    def way(context):
        context.set_code(code)
        yield Do(int)
        raise RuntimeError("no")

    return way


WAYS = [sets, aborts, aborts_with_status, aborts_after_setting, raises_after_setting]

ending = partial(handlers.ending, first=None, last=None)  # of a stream, it sends nothing


def works_in_plain_grpc(style, kind, way):
    """Grpc.aio's context for threads has no abort_with_status, and an abort of a generator hangs in it."""
    return style != "aio-thread" or (way is not aborts_with_status and not kind.has_response_stream)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", CODES, ids=repr)
def test_the_status_is_that_of_a_server_without_the_interceptor(start_scripted, style, kind, key, way, code):
    servers = Compared(start_scripted, scripts=ending(kind, way(code)))
    ours = ask(servers.ours.client, kind, key)
    if works_in_plain_grpc(style, kind, way):
        assert status(ours) == status(ask(servers.plain.client, kind, key))


@pytest.mark.parametrize("code", OK_CODES, ids=repr)
def test_ok_as_a_number_is_a_success_in_asyncio(start_scripted, style, kind, key, code):
    servers = Compared(start_scripted, scripts=ending(kind, sets(code)))
    ours, plain = servers.ask(kind, key)
    assert status(ours) == status(plain)
    assert ours.ok is (style != "sync" or code is grpc.StatusCode.OK)
    assert (servers.ours.record(key, kind).state is State.DONE) is ours.ok


@pytest.mark.parametrize("style", ["aio", "aio-read-write", "aio-thread"], indirect=True)
@pytest.mark.parametrize("way", WAYS[:4])
@pytest.mark.parametrize("code", [5, code_pb2.NOT_FOUND, idem_grpc.Code.NOT_FOUND], ids=repr)
def test_a_number_is_kept_and_replayed_as_its_code(start_scripted, kind, key, way, code):
    server = start_scripted(scripts=ending(kind, way(code)))
    first, second = (ask(server.client, kind, key) for _ in range(2))
    assert first.code is grpc.StatusCode.NOT_FOUND
    assert second.essence == first.essence
    assert second.replayed


@pytest.mark.parametrize("way", [sets, aborts])
@pytest.mark.parametrize("code", [5, grpc.StatusCode.NOT_FOUND], ids=repr)
def test_the_handler_reads_the_code_as_it_gave_it(start_scripted, kind, key, way, code):
    seen = []

    def looks(context):
        with suppress(Exception):
            yield from way(code)(context)
        seen.append(context.code())

    ask(start_scripted(scripts=ending(kind, looks)).client, kind, key)
    assert seen == [code]


class Sees(grpc.ServerInterceptor):
    """Records the code of a call, from outside."""

    def __init__(self):
        self.codes: list[Any] = []

    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            try:
                return handler.unary_unary(request, context)
            finally:
                self.codes.append(context.code())

        return grpc.unary_unary_rpc_method_handler(
            behavior, handler.request_deserializer, handler.response_serializer
        )


class AsyncSees(grpc.aio.ServerInterceptor):
    def __init__(self):
        self.codes: list[Any] = []

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)

        async def behavior(request, context):
            try:
                return await handler.unary_unary(request, context)
            finally:
                self.codes.append(context.code())

        return grpc.unary_unary_rpc_method_handler(
            behavior, handler.request_deserializer, handler.response_serializer
        )


@pytest.mark.parametrize("kind", [Kind.UNARY], ids=lambda kind: kind.value, indirect=True)
@pytest.mark.parametrize("way", [sets, aborts])
@pytest.mark.parametrize("code", [5, 99, grpc.StatusCode.NOT_FOUND], ids=repr)
def test_interceptors_outside_see_a_code_of_grpc(start_scripted, style, kind, key, way, code):
    outside: Any = Sees() if style == "sync" else AsyncSees()
    server = start_scripted(scripts=ending(kind, way(code)), before=[outside])
    answers = [ask(server.client, kind, key) for _ in range(2)]
    assert until(lambda: len(outside.codes) == 2)
    assert outside.codes == [answer.code for answer in answers]
