"""Count the Python functions that a call enters: python -m benchmarks calls

Functions are counted from the entry of the interceptor to its return, in this process, without a network and
with a store in memory. The number of function calls dominates the cost of a call, and is the same on every
host. In asyncio, the functions of the event loop itself are not counted.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
from tests_pb.v1 import bench_pb2

import idem_grpc
import idem_grpc.aio
from benchmarks.load import METHOD, REQUEST
from benchmarks.report import Report
from benchmarks.server import answer

BARS = {"first call": 150, "replay": 80}
OTHERS = (str(Path(__file__).parent), str(Path(asyncio.__file__).parent))


class Details(grpc.HandlerCallDetails):
    def __init__(self, key: str) -> None:
        self.method = METHOD
        self.invocation_metadata = (("user-agent", "bench"), ("idempotency-key", key))


class _Context:
    """A stub of grpc's context, with the methods that the interceptor calls."""

    trailing: Any = ()

    def add_callback(self, callback: Any) -> bool:
        return True

    def is_active(self) -> bool:
        return True

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata


class Handled:
    """Counts the handler's runs."""

    count = 0


def charge(request: bench_pb2.ChargeRequest, context: Any) -> bench_pb2.ChargeResponse:
    Handled.count += 1
    return answer(request)


async def acharge(request: bench_pb2.ChargeRequest, context: Any) -> bench_pb2.ChargeResponse:
    return charge(request, context)


def _handler(behavior: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        behavior, bench_pb2.ChargeRequest.FromString, bench_pb2.ChargeResponse.SerializeToString
    )


HANDLER, AHANDLER = _handler(charge), _handler(acharge)


async def _continuation(_: Any) -> Any:
    return AHANDLER


def call(interceptor: idem_grpc.ServerInterceptor, key: str) -> tuple[bytes, bool]:
    """Call the handler that the interceptor returns. Returns the response and whether it is a replay."""
    handler: Any = interceptor.intercept_service(lambda _: HANDLER, Details(key))
    context = _Context()
    response = handler.unary_unary(handler.request_deserializer(REQUEST.SerializeToString()), context)
    return handler.response_serializer(response), "idempotency-replayed" in dict(context.trailing)


async def acall(interceptor: idem_grpc.aio.ServerInterceptor, key: str) -> tuple[bytes, bool]:
    """Call the handler as ``call`` does, in asyncio."""
    handler: Any = await interceptor.intercept_service(_continuation, Details(key))
    context = _Context()
    response = await handler.unary_unary(handler.request_deserializer(REQUEST.SerializeToString()), context)
    return handler.response_serializer(response), "idempotency-replayed" in dict(context.trailing)


class _Counter:
    """Counts the functions entered inside the context, except the benchmark's own and the event loop's."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "_Counter":
        sys.setprofile(self._saw)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _saw(self, frame: Any, event: str, _: object) -> None:
        self.count += event == "call" and not frame.f_code.co_filename.startswith(OTHERS)


def sync_counts(**settings: Any) -> dict[str, int]:
    """Return how many functions a first call and its replay enter."""
    with idem_grpc.open_store("memory:") as store:
        interceptor = idem_grpc.ServerInterceptor(store, scope=idem_grpc.SHARED, **settings)
        call(interceptor, "warm-up")
        found = {}
        for name in BARS:
            with _Counter() as counter:
                _, is_replay = call(interceptor, "key")
            assert is_replay is (name == "replay")
            found[name] = counter.count
    return found


async def async_counts(**settings: Any) -> dict[str, int]:
    """Return the same counts for asyncio."""
    async with idem_grpc.aio.open_store("memory:") as store:
        interceptor = idem_grpc.aio.ServerInterceptor(store, scope=idem_grpc.SHARED, **settings)
        await acall(interceptor, "warm-up")
        found = {}
        for name in BARS:
            with _Counter() as counter:
                _, is_replay = await acall(interceptor, "key")
            assert is_replay is (name == "replay")
            found[name] = counter.count
    return found


def main(report: Report, *, quick: bool = False) -> bool:
    """Print and report the counts. Returns whether a bar was missed."""
    found = {"sync": sync_counts(), "asyncio": asyncio.run(async_counts())}
    report.write("functions", found)
    print("Python functions that a call enters, with a store in memory:\n")
    print("| | sync | asyncio | bar |\n| --- | --- | --- | --- |")
    missed = False
    for name, bar in BARS.items():
        counts = [found[face][name] for face in ("sync", "asyncio")]
        missed |= max(counts) > bar
        print(f"| {name} | {counts[0]} | {counts[1]} | {bar}{' missed' if max(counts) > bar else ''} |")
    return missed
