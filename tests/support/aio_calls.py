"""Calls by ``grpc.aio``, for tests that are coroutines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc.aio
from tests.server.client import Kind

QUICK = idem_grpc.aio.Retry(initial_backoff=0.01, max_backoff=0.05)


@asynccontextmanager
async def connected(server: Any, *, interceptors: Any = None, **settings: Any) -> AsyncIterator[Any]:
    """A stub for ``server``; ``settings`` are those of client_interceptors, by default unique keys."""
    if interceptors is None:
        settings = {"keys": idem_grpc.aio.keys.unique, "retry": QUICK, **settings}
        interceptors = idem_grpc.aio.client_interceptors(**settings)
    channel = grpc.aio.insecure_channel(
        server.address, interceptors=interceptors, options=[("grpc.enable_retries", 0)]
    )
    async with channel:
        yield ledger_pb2_grpc.LedgerServiceStub(channel)


def begin(stub: Any, kind: Kind, count: int = 3, **options: Any) -> Any:
    """Start a call of this kind; a request stream has ``count`` requests."""
    body: Any = parts(count) if kind.has_request_stream else pb.LedgerRequest(order="one")
    return getattr(stub, kind.value)(body, **options)


async def parts(count: int) -> AsyncIterator[pb.LedgerRequest]:
    for part in range(count):
        yield pb.LedgerRequest(order="one", part=part)


async def responses_of(kind: Kind, rpc: Any) -> list[Any]:
    """All responses to a call."""
    return [response async for response in rpc] if kind.has_response_stream else [await rpc]


async def error_of(kind: Kind, rpc: Any) -> Any:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await responses_of(kind, rpc)
    return caught.value


async def until(happened: Callable[[], object]) -> None:
    """Wait for it, on the event loop."""
    while not happened():  # noqa: ASYNC110 -- what is asked for may happen on another thread
        await asyncio.sleep(0.001)  # between two looks


async def arrived(server: Any, count: int) -> None:
    """Wait until so many attempts have come to a scripted server."""
    await until(lambda: len(server.seen) >= count)


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))
