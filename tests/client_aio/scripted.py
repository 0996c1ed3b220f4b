"""A server that behaves as the test says, attempt by attempt, and tells what it saw."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc.aio
from idem_grpc._core.problem import Problem, Reason
from tests.server.client import PUSHBACK, RUN, Kind
from tests.server.ledger import SERVICE

Pairs = Sequence[tuple[str, str | bytes]]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
QUICK = idem_grpc.aio.Retry(initial_backoff=0.01, max_backoff=0.05)
NOWHERE = "127.0.0.1:1"
"""Where nobody listens. A port that was free a moment ago may be another test's by now."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the server does with one attempt.

    reads: how many requests of a stream it reads before all else; None for all.
    turns: answers each request as it comes.
    responses: how many it sends; run: the id of the run that they are said to be of.
    hangs: then it waits until the client is gone; ends_after: or until this is set.
    """

    code: grpc.StatusCode = grpc.StatusCode.OK
    trailing: Pairs = ()
    initial: Pairs = ()
    reads: int | None = None
    turns: bool = False
    responses: int | None = None
    run: str = ""
    hangs: bool = False
    ends_after: asyncio.Event | None = None


def fails(code: grpc.StatusCode = UNAVAILABLE, **step: Any) -> Step:
    return Step(code=code, **{"responses": 0, **step})


def pushes_back(milliseconds: str, code: grpc.StatusCode = UNAVAILABLE) -> Step:
    return fails(code, trailing=((PUSHBACK, milliseconds),))


def refuses(reason: Reason) -> Step:
    """As the interceptor of a server refuses, but with a pushback that is short."""
    outcome = Problem(reason).outcome()
    trailing = tuple((key, "5" if key == PUSHBACK else value) for key, value in outcome.trailing_metadata)
    code = next(code for code in grpc.StatusCode if code.value[0] == outcome.code)
    return fails(code, trailing=trailing)


@dataclass
class Seen:
    """One attempt, as it came to the server."""

    method: str
    metadata: dict[str, str | bytes]
    time_remaining: float
    requests: list[pb.LedgerRequest] = field(default_factory=list)
    was_complete: bool = False
    """The client had no more requests."""

    @property
    def key(self) -> str | None:
        return self.metadata.get("idempotency-key")  # type: ignore[return-value]  # no -bin: it is text


class Scripted:
    """The handlers. The nth attempt gets the nth step; the last one serves for all that follow."""

    def __init__(self, *steps: Step) -> None:
        self._steps = steps or (Step(),)
        self.seen: list[Seen] = []
        self.arrived = asyncio.Condition()
        self.left = asyncio.Event()
        """A client went away."""
        self.address = ""

    @property
    def keys(self) -> list[str | None]:
        return [seen.key for seen in self.seen]

    async def attempts(self, count: int) -> None:
        """Wait until there were that many."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.seen) >= count)

    def handler(self, kind: Kind) -> Any:
        make: Any = getattr(grpc, f"{kind.arity}_rpc_method_handler")

        async def single(given: Any, context: Any) -> Any:
            try:
                return await self._serve(kind, given, context)
            except asyncio.CancelledError:
                self.left.set()
                raise

        async def stream(given: Any, context: Any) -> None:
            await single(given, context)

        return make(
            stream if kind.has_response_stream else single,
            pb.LedgerRequest.FromString,
            pb.LedgerResponse.SerializeToString,
        )

    async def _serve(self, kind: Kind, given: Any, context: Any) -> Any:
        step = self._steps[min(len(self.seen), len(self._steps) - 1)]
        attempt = str(len(self.seen))
        requests = [] if kind.has_request_stream else [given]
        left = context.time_remaining()
        metadata = dict(context.invocation_metadata())
        seen = Seen(kind.path, metadata, math.inf if left is None else left, requests)
        async with self.arrived:
            self.seen.append(seen)
            self.arrived.notify_all()
        if step.initial:
            await context.send_initial_metadata(step.initial)
        if kind.has_response_stream and step.run:
            await context.send_initial_metadata(((RUN, step.run),))
        if kind.has_request_stream:
            while step.reads is None or len(seen.requests) < step.reads:
                request = await context.read()
                if request is grpc.aio.EOF:
                    seen.was_complete = True
                    break
                seen.requests.append(request)
                if step.turns:
                    await context.write(pb.LedgerResponse(entry=attempt, part=len(seen.requests) - 1))
        if kind.has_response_stream and not step.turns:
            for part in range(3 if step.responses is None else step.responses):
                await context.write(pb.LedgerResponse(entry=attempt, part=part))
        if step.hangs:
            await asyncio.Event().wait()
        if step.ends_after is not None:
            await step.ends_after.wait()
        if step.code is not grpc.StatusCode.OK:
            await context.abort(step.code, f"attempt {attempt} failed", trailing_metadata=step.trailing)
        context.set_trailing_metadata(step.trailing)
        return None if kind.has_response_stream else pb.LedgerResponse(entry=attempt)


@asynccontextmanager
async def serving(*steps: Step, credentials: Any = None) -> AsyncIterator[Scripted]:
    """A server with these steps."""
    script = Scripted(*steps)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {kind.value: script.handler(kind) for kind in Kind}),)
    )
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    script.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield script
    finally:
        await server.stop(0)


@asynccontextmanager
async def connected(server: Any, *, interceptors: Any = None, **settings: Any) -> AsyncIterator[Any]:
    """A stub for ``server``, with our interceptors; ``settings`` are those of client_interceptors."""
    if interceptors is None:
        settings = {"keys": idem_grpc.aio.keys.unique, "retry": QUICK, **settings}
        interceptors = idem_grpc.aio.client_interceptors(**settings)
    channel = grpc.aio.insecure_channel(
        server.address, interceptors=interceptors, options=[("grpc.enable_retries", 0)]
    )
    async with channel:
        yield ledger_pb2_grpc.LedgerServiceStub(channel)


def call(stub: Any, kind: Kind, count: int = 3, **options: Any) -> Any:
    """Begin a call of this kind; a request stream has ``count`` requests."""
    body: Any = parts(count) if kind.has_request_stream else pb.LedgerRequest(order="one")
    return getattr(stub, kind.value)(body, **options)


async def parts(count: int) -> AsyncIterator[pb.LedgerRequest]:
    for part in range(count):
        yield pb.LedgerRequest(order="one", part=part)


async def answer(kind: Kind, rpc: Any) -> list[pb.LedgerResponse]:
    """All responses to a call."""
    return [response async for response in rpc] if kind.has_response_stream else [await rpc]


async def error_of(kind: Kind, rpc: Any) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        responses = await answer(kind, rpc)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"the call did not fail: {responses}")


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))
