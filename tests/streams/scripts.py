"""Handlers that are written once and run in every style that grpc takes.

A script is a generator that yields steps, and a style is a driver that runs them: a function or
generator on a thread, a coroutine with ``async for`` and ``yield``, or a coroutine with
``context.read`` and ``context.write``.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from tests_pb.v1 import ledger_pb2 as pb

from tests.server.client import Kind
from tests.server.ledger import SERVICE, Gate, Ledger, pairs
from tests.server.servicers import ENDS_ODDLY


@dataclass(frozen=True)
class Read:
    """Gives the next request; None after the last."""


@dataclass(frozen=True)
class Send:
    """Sends a response of a stream."""

    message: Any


@dataclass(frozen=True)
class Cross:
    """Waits at a gate until the test opens it."""

    gate: Gate


@dataclass(frozen=True)
class Do:
    """Calls a function, and awaits its result if that is awaitable."""

    function: Callable[[], Any]


Steps = Generator[Any, Any, Any]
Script = Callable[[Any], Steps]  # takes the context; returns the response of a method that has one


def on_a_thread(script: Script, kind: Kind) -> Any:
    """As a plain function, or a plain generator."""

    def responses(request: Any, context: Any) -> Steps:
        incoming = request if kind.has_request_stream else iter([request])
        steps = script(context)
        proceed, event = steps.send, None
        while True:
            try:
                step = proceed(event)
            except StopIteration as end:
                return end.value
            proceed, event = steps.send, None
            try:
                match step:
                    case Send():
                        yield step.message
                    case Read():
                        event = next(incoming, None)
                    case Cross():
                        step.gate.cross()
                    case Do():
                        event = step.function()
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                proceed, event = steps.throw, error

    def response(request: Any, context: Any) -> Any:
        try:
            next(responses(request, context))
        except StopIteration as end:
            return end.value
        raise AssertionError("a method with one response sends none before")

    return responses if kind.has_response_stream else response


def with_iterators(script: Script, kind: Kind) -> Any:
    """As a coroutine or an async generator, which takes a request stream as an iterator."""

    async def responses(request: Any, context: Any) -> AsyncIterator[Any]:
        async with aclosing(_responses(script, _reader(kind, request), context, [])) as messages:
            async for message in messages:
                yield message

    async def response(request: Any, context: Any) -> Any:
        returned: list[Any] = []
        async for _ in _responses(script, _reader(kind, request), context, returned):
            raise AssertionError("a method with one response sends none before")
        return returned[0]

    return responses if kind.has_response_stream else response


def with_read_and_write(script: Script, kind: Kind) -> Any:
    """As a coroutine that reads and writes streams by its context."""

    async def handler(request: Any, context: Any) -> Any:
        async def read() -> Any:
            message = await context.read()
            return None if message is grpc.aio.EOF else message

        reader = read if kind.has_request_stream else _reader(kind, request)
        returned: list[Any] = []
        async for message in _responses(script, reader, context, returned):
            await context.write(message)
        return None if kind.has_response_stream else returned[0]

    return handler


def _reader(kind: Kind, request: Any) -> Callable[[], Awaitable[Any]]:
    incoming = aiter(request) if kind.has_request_stream else _one(request)
    return partial(anext, incoming, None)


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request


async def _responses(
    script: Script, read: Callable[[], Awaitable[Any]], context: Any, returned: list[Any]
) -> AsyncGenerator[Any]:
    steps = script(context)
    proceed, event = steps.send, None
    while True:
        try:
            step = proceed(event)
        except StopIteration as end:
            returned.append(end.value)
            return
        proceed, event = steps.send, None
        try:
            match step:
                case Send():
                    yield step.message
                case Read():
                    event = await read()
                case Cross():
                    await step.gate.cross_async()
                case Do():
                    event = step.function()
                    event = await event if asyncio.iscoroutine(event) else event
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            proceed, event = steps.throw, error


STYLES = {
    "sync": on_a_thread,
    "aio": with_iterators,
    "aio-read-write": with_read_and_write,
    "aio-thread": on_a_thread,
}


def ledger_script(ledger: Ledger, kind: Kind) -> Script:
    """The handlers of the ledger, which do what the first request says."""

    def cross(run: Any, responses: int) -> Steps:
        if gate := ledger.at(run, responses):
            yield Cross(gate)

    def script(context: Any) -> Steps:
        request = yield Read()
        run = ledger.start(request, context)
        if run.plan.initial_metadata:
            yield Do(partial(context.send_initial_metadata, pairs(run.plan.initial_metadata)))
        sent = 0
        while kind.has_response_stream and (
            request if kind is Kind.BIDI else sent < (run.plan.responses or 3)
        ):
            yield from cross(run, sent)
            yield Send(run.response(sent))
            sent += 1
            request = yield Read()
        while kind is Kind.CLIENT_STREAM and (yield Read()) is not None:
            pass
        yield from cross(run, sent)
        last = yield Do(partial(ledger.finish, run))
        if kind.has_response_stream and run.plan.end in ENDS_ODDLY:
            yield Send(last)
        return last

    return script


def handlers(
    style: str,
    scripts: dict[Kind, Script],
    parse: Callable[[bytes], Any] | None = None,
    serialize: Callable[[Any], bytes] | None = None,
) -> grpc.GenericRpcHandler:
    """The scripts as methods of the ledger's service."""
    methods = {
        kind.value: getattr(grpc, f"{kind.arity}_rpc_method_handler")(
            STYLES[style](script, kind), request_deserializer=parse, response_serializer=serialize
        )
        for kind, script in scripts.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def ledger_handlers(style: str, ledger: Ledger) -> grpc.GenericRpcHandler:
    kinds = [kind for kind in Kind if kind is not Kind.READ]
    return handlers(
        style,
        {kind: ledger_script(ledger, kind) for kind in kinds},
        pb.LedgerRequest.FromString,
        pb.LedgerResponse.SerializeToString,
    )
