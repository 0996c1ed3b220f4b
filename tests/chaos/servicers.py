"""Handlers that have one effect each: an entry. A request stream is read whole before."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

PARTS = 3  # messages of each stream


class Book:
    """The entries that were made, by their orders."""

    def __init__(self, seed: int) -> None:
        self.entries: list[tuple[str, str]] = []
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    def enter(self, order: str) -> pb.LedgerResponse:
        entry = uuid4().hex
        with self._lock:
            self.entries.append((order, entry))
        return pb.LedgerResponse(entry=entry, order=order, filler=b"\xa5" * 100)

    def pause(self) -> float:
        """Seconds that a step of a handler takes."""
        with self._lock:
            return self._chance.choice([0, 0, 0.002, 0.02])


def part_of(response: pb.LedgerResponse, part: int) -> pb.LedgerResponse:
    return pb.LedgerResponse(entry=response.entry, order=response.order, part=part, filler=response.filler)


class Servicer(ledger_pb2_grpc.LedgerServiceServicer):
    """For threads."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def Unary(self, request: Any, context: Any) -> Any:
        self._wait()
        response = self._book.enter(request.order)
        self._wait()
        return response

    Read = Unary

    def ServerStream(self, request: Any, context: Any) -> Iterator[Any]:
        response = self.Unary(request, context)
        for part in range(PARTS):
            self._wait()
            yield part_of(response, part)

    def ClientStream(self, requests: Any, context: Any) -> Any:
        first, *_ = requests
        return self.Unary(first, context)

    def Bidi(self, requests: Any, context: Any) -> Iterator[Any]:
        first, *_ = requests
        yield from self.ServerStream(first, context)

    def _wait(self) -> None:
        threading.Event().wait(self._book.pause())  # the work of the handler


class AsyncServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """The same for asyncio."""

    def __init__(self, book: Book) -> None:
        self._book = book

    async def Unary(self, request: Any, context: Any) -> Any:
        await self._wait()
        response = self._book.enter(request.order)
        await self._wait()
        return response

    async def Read(self, request: Any, context: Any) -> Any:
        return await self.Unary(request, context)

    async def ServerStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        response = await self.Unary(request, context)
        for part in range(PARTS):
            await self._wait()
            yield part_of(response, part)

    async def ClientStream(self, requests: Any, context: Any) -> Any:
        first, *_ = [request async for request in requests]
        return await self.Unary(first, context)

    async def Bidi(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        first, *_ = [request async for request in requests]
        async for response in self.ServerStream(first, context):
            yield response

    async def _wait(self) -> None:
        await asyncio.sleep(self._book.pause())  # the work of the handler
