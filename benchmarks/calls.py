"""What the interceptor adds to a unary call: python -m benchmarks calls

A server in a process of its own, a client that sends one call after the other. The four
ways to call take turns, so that whatever else the host does falls on all of them alike.
The bare call is a handler that does nothing: with a real one, the ratios come down.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
from google.protobuf.wrappers_pb2 import BytesValue, UInt32Value

from benchmarks.server import MEBIBYTE, METHOD
from benchmarks.stores import redis_server

SIZES = {"100-byte response": (100, 200), "1 MiB response": (MEBIBYTE, 20)}
WARM_UP = 10
# Else grpc guesses for each connection how much to have on its way, and guesses differ.
STEADY = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4 * MEBIBYTE))
WAYS = ("bare", "unkeyed", "first call", "replay")

if TYPE_CHECKING:
    Method = grpc.UnaryUnaryMultiCallable[UInt32Value, BytesValue]  # generic for type checkers only


@contextmanager
def served(face: str, url: str) -> "Iterator[tuple[Method, Method]]":
    """The method of a server without the interceptor, and of one with it."""
    command = [sys.executable, "-m", "benchmarks.server", face, url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    channels = []
    try:
        ports = process.stdout.readline().split()
        if not ports:
            raise RuntimeError(f"the server did not start: exit status {process.wait()}")
        channels = [grpc.insecure_channel(f"127.0.0.1:{port}", STEADY) for port in ports]
        bare, ours = (method_of(channel) for channel in channels)
        yield bare, ours
    finally:
        for channel in channels:
            channel.close()
        process.stdin.close()
        process.wait()
        process.stdout.close()


def method_of(channel: grpc.Channel) -> "Method":
    return channel.unary_unary(METHOD, UInt32Value.SerializeToString, BytesValue.FromString)


def per_call(bare: "Method", ours: "Method", size: int, rounds: int) -> dict[str, float]:
    """Microseconds of a call in each of the WAYS: the median.

    Before each call through the interceptor stands a bare one: their connections are used
    alike, which tells in how fast they are.
    """
    request = UInt32Value(value=size)
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(WARM_UP + rounds):
        keyed = [("idempotency-key", uuid4().hex)]
        for way, metadata in zip(WAYS[1:], (None, keyed, keyed), strict=True):
            before = timed(bare, request, None, replayed=False)
            after = timed(ours, request, metadata, replayed=way == "replay")
            if number >= WARM_UP:
                took["bare"].append(before)
                took[way].append(after)
    return {way: median(times) for way, times in took.items()}


def timed(method: "Method", request: UInt32Value, metadata: Any, *, replayed: bool) -> float:
    started = time.perf_counter()
    response, call = method.with_call(request, metadata=metadata)
    seconds = time.perf_counter() - started
    trailing = dict(call.trailing_metadata() or ())
    assert len(response.value) == request.value
    assert (trailing.get("idempotency-replayed") == "true") is replayed, trailing
    return seconds * 1e6


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="idem-benchmark-") as folder, redis_server() as server:
        urls = {
            "memory": "memory:",
            "sqlite": f"sqlite:///{folder}/normal.db",
            "sqlite full": f"sqlite:///{folder}/full.db?synchronous=full",
        }
        if server is not None:
            urls["redis"] = server.url
        heads = "".join(f"{way:>12}" for way in WAYS[1:])
        print(f"{'one unary call: median, and its ratio to the bare call':<58}{'bare':>10}{heads}")
        for face in ("sync", "aio"):
            for store, url in urls.items():
                with served(face, url) as (bare, ours):
                    for size_name, (size, rounds) in SIZES.items():
                        took = per_call(bare, ours, size, rounds)
                        ratios = "".join(f"{took[way] / took['bare']:>11.1f}×" for way in WAYS[1:])
                        print(f"{f'{face}, {store}, {size_name}':<58}{took['bare']:>7.0f} µs{ratios}")


if __name__ == "__main__":
    main()
