"""The handlers of the ledger, for threads and for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

from tests.server.ledger import Ledger, Run, pairs

ENDS_ODDLY = frozenset({pb.LEDGER_END_NONE, pb.LEDGER_END_WRONG_TYPE})


class Servicer(ledger_pb2_grpc.LedgerServiceServicer):
    """Handlers that run on a thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def Unary(self, request: Any, context: Any) -> Any:
        run = self._start(request, context)
        self._pass(run, 0)
        return self._ledger.finish(run)

    Read = Unary

    def ServerStream(self, request: Any, context: Any) -> Iterator[Any]:
        run = self._start(request, context)
        for part in range(run.plan.responses or 3):
            self._pass(run, part)
            yield run.response(part)
        yield from self._finish_stream(run, run.plan.responses or 3)

    def ClientStream(self, requests: Any, context: Any) -> Any:
        run = self._start(next(requests), context)
        for _ in requests:
            pass
        self._pass(run, 0)
        return self._ledger.finish(run)

    def Bidi(self, requests: Any, context: Any) -> Iterator[Any]:
        run = self._start(next(requests), context)
        self._pass(run, 0)
        yield run.response(0)
        part = 0
        for part, _ in enumerate(requests, 1):
            self._pass(run, part)
            yield run.response(part)
        yield from self._finish_stream(run, part + 1)

    def _start(self, request: Any, context: Any) -> Run:
        run = self._ledger.start(request, context)
        if run.plan.initial_metadata:
            context.send_initial_metadata(pairs(run.plan.initial_metadata))
        return run

    def _pass(self, run: Run, responses: int) -> None:
        if gate := self._ledger.at(run, responses):
            gate.cross()

    def _finish_stream(self, run: Run, responses: int) -> Iterator[Any]:
        self._pass(run, responses)
        last = self._ledger.finish(run)
        if run.plan.end in ENDS_ODDLY:
            yield last


class AsyncServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """The same as coroutines and async generators."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def Unary(self, request: Any, context: Any) -> Any:
        run = await self._start(request, context)
        await self._pass(run, 0)
        return await self._finish(run)

    Read: ClassVar[Any] = Unary

    async def ServerStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        run = await self._start(request, context)
        for part in range(run.plan.responses or 3):
            await self._pass(run, part)
            yield run.response(part)
        await self._pass(run, run.plan.responses or 3)
        last = await self._finish(run)
        if run.plan.end in ENDS_ODDLY:
            yield last

    async def ClientStream(self, requests: Any, context: Any) -> Any:
        run = await self._start(await anext(aiter(requests)), context)
        async for _ in requests:
            pass
        await self._pass(run, 0)
        return await self._finish(run)

    async def Bidi(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        run, part = None, 0
        async for request in requests:
            if run is None:
                run = await self._start(request, context)
            await self._pass(run, part)
            yield run.response(part)
            part += 1
        assert run is not None
        await self._pass(run, part)
        last = await self._finish(run)
        if run.plan.end in ENDS_ODDLY:
            yield last

    async def _start(self, request: Any, context: Any) -> Run:
        run = self._ledger.start(request, context)
        if run.plan.initial_metadata:
            await context.send_initial_metadata(pairs(run.plan.initial_metadata))
        return run

    async def _pass(self, run: Run, responses: int) -> None:
        if gate := self._ledger.at(run, responses):
            if run.plan.blocking:
                gate.cross()
            else:
                await gate.cross_async()

    async def _finish(self, run: Run) -> Any:
        result = self._ledger.finish(run)
        return await result if asyncio.iscoroutine(result) else result
