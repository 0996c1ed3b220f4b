"""Run a server to be measured, in a separate process: python -m benchmarks.server FACE ROW URL

It prints its port. After each line on standard input, it prints the CPU seconds used, the number of handler
runs, and its memory in kilobytes. It stops at the end of its input. README.md describes the rows.
"""

import argparse
import asyncio
import gc
import itertools
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from tests_pb.v1 import bench_pb2, bench_pb2_grpc

import idem_grpc
import idem_grpc.aio

FACES = ("sync", "asyncio", "uvloop")
THREADS = 16
MEBIBYTE = 1024 * 1024
GRACE = 1.0
KEPT = idem_grpc.Policy(max_response_bytes=2 * MEBIBYTE)

OPERATION = "benchmark"
OPERATIONS = {OPERATION: idem_grpc.Operation(issue_rate=(1_000_000, 900))}

runs = itertools.count()
reports = itertools.count()


def answer(request: bench_pb2.ChargeRequest) -> bench_pb2.ChargeResponse:
    return bench_pb2.ChargeResponse(charge_id="ch_0123456789", receipt=bytes(request.receipt_bytes))


class Bench(bench_pb2_grpc.BenchServiceServicer):
    def Charge(self, request: bench_pb2.ChargeRequest, context: Any) -> bench_pb2.ChargeResponse:
        next(runs)
        return answer(request)


class AsyncBench(bench_pb2_grpc.BenchServiceServicer):
    async def Charge(  # type: ignore[override]  # the stubs know plain servicers
        self, request: bench_pb2.ChargeRequest, context: Any
    ) -> bench_pb2.ChargeResponse:
        next(runs)
        return answer(request)


THINGS: dict[str, Callable[[grpc.ServicerContext], object]] = {
    "a handler of its own": lambda context: None,
    "trailing metadata": lambda context: context.set_trailing_metadata((("idempotency-run", "0" * 16),)),
    "a callback": lambda context: context.add_callback(lambda: None),
}
"""The features of grpc that the interceptor uses, by name."""


class Floor(grpc.ServerInterceptor):
    """An interceptor that uses one feature of grpc, and does nothing else."""

    def __init__(self, thing: str) -> None:
        self._do = THINGS[thing]

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)

        def behavior(request: Any, context: Any) -> Any:
            self._do(context)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            behavior, handler.request_deserializer, handler.response_serializer
        )


def settings(row: str) -> dict[str, Any]:
    """Return the interceptor's settings. For first calls, the scope differs in every call."""
    if row.endswith("first") or row == "tokens":
        number = itertools.count()
        return {"scope": lambda call: str(next(number)), "default": KEPT}
    cache = {} if row.endswith("cache") else {"cache_bytes": 0}
    return {"scope": idem_grpc.SHARED, "default": KEPT, **cache}


def resident() -> int:
    """Return the memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def report() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    ran = next(runs) - next(reports)  # `next(runs)` in each report also counts one
    print(used.ru_utime + used.ru_stime, ran, resident() // 1024, flush=True)


def serve(row: str, url: str) -> None:
    with idem_grpc.open_store(url) as store:
        floor = [Floor(row)] if row in THINGS else []
        ours = [] if floor or row == "bare" else [idem_grpc.ServerInterceptor(store, **settings(row))]
        server = grpc.server(ThreadPoolExecutor(THREADS), interceptors=[*floor, *ours])
        bench_pb2_grpc.add_BenchServiceServicer_to_server(Bench(), server)
        if row == "tokens":
            idem_grpc.add_token_service(server, ours[0], operations=OPERATIONS)
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        for _ in sys.stdin:
            report()
        server.stop(GRACE).wait()
        for each in ours:
            each.drain()


async def aserve(row: str, url: str) -> None:
    async with idem_grpc.aio.open_store(url) as store:
        ours = [] if row == "bare" else [idem_grpc.aio.ServerInterceptor(store, **settings(row))]
        server = grpc.aio.server(interceptors=ours)
        bench_pb2_grpc.add_BenchServiceServicer_to_server(AsyncBench(), server)
        if row == "tokens":
            idem_grpc.aio.add_token_service(server, ours[0], operations=OPERATIONS)
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        while await asyncio.to_thread(sys.stdin.readline):
            report()
        await server.stop(GRACE)
        for each in ours:
            await each.drain()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve one method, to be measured.")
    parser.add_argument("face", choices=FACES)
    parser.add_argument("row")
    parser.add_argument("store", help="URL of the store")
    parser.add_argument("--processor", type=int, help="the only processor to run on")
    parser.add_argument("--no-gc", action="store_true", help="switch the garbage collector off")
    options = parser.parse_args()
    if options.processor is not None:
        os.sched_setaffinity(0, {options.processor})
    if options.no_gc:
        gc.disable()
    if options.face == "sync":
        serve(options.row, options.store)
    elif options.face == "asyncio":
        asyncio.run(aserve(options.row, options.store))
    else:
        import uvloop

        uvloop.run(aserve(options.row, options.store))


if __name__ == "__main__":
    main()
