"""What a swap costs in each store: python -m benchmarks stores

A claim writes, a replay finds the key held and writes nothing. Times vary from
one host to the next; the ratios say more.
"""

import asyncio
import math
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any
from uuid import uuid4

from idem_grpc.stores import AsyncStore, Store, open_async_store, open_store
from idem_grpc.swap import Swap
from tests.support.redis_server import RedisServer

TTL = 3600.0
ROUNDS = 7
VALUE = bytes(100)


@contextmanager
def redis_server() -> Iterator[RedisServer | None]:
    """A server that is ended afterwards; None, and a word of it, if none can be started."""
    try:
        server = RedisServer()
    except RuntimeError as error:
        print(f"without Redis: {error}")
        yield None
        return
    try:
        yield server
    finally:
        server.stop()


def per_swap(store: Store, swaps: int) -> tuple[float, float]:
    """Microseconds of a claim and of a replay: the median of several rounds."""
    claims, replays = [], []
    for _ in range(ROUNDS):
        keys = [uuid4().bytes for _ in range(swaps)]
        claims.append(timed(partial(swap_all, store, keys, VALUE)))
        replays.append(timed(partial(swap_all, store, keys, b"other")))
    return median(claims) / swaps, median(replays) / swaps


async def per_async_swap(store: AsyncStore, swaps: int) -> tuple[float, float]:
    claims, replays = [], []
    async with store:
        for _ in range(ROUNDS):
            keys = [uuid4().bytes for _ in range(swaps)]
            claims.append(await async_timed(partial(async_swap_all, store, keys, VALUE)))
            replays.append(await async_timed(partial(async_swap_all, store, keys, b"other")))
    return median(claims) / swaps, median(replays) / swaps


def swap_all(store: Store, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        store.swap(Swap(key, None, value, TTL))


async def async_swap_all(store: AsyncStore, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        await store.swap(Swap(key, None, value, TTL))


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1e6


async def async_timed(act: Callable[[], Coroutine[Any, Any, object]]) -> float:
    started = time.perf_counter()
    await act()
    return (time.perf_counter() - started) * 1e6


def bytes_per_record(server: RedisServer) -> int:
    """What a record with a value of 100 bytes takes in Redis, its key a digest of 32 bytes."""
    with open_store(server.url) as store, server.client() as client:
        key = uuid4().bytes + uuid4().bytes
        store.swap(Swap(key, None, VALUE, TTL))
        return int(client.memory_usage(b"idem:" + key) or 0)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="idem-benchmark-") as folder, redis_server() as server:
        urls = {
            "memory": ("memory:", 2000),
            "sqlite normal": (f"sqlite:///{folder}/normal.db", 500),
            "sqlite full": (f"sqlite:///{folder}/full.db?synchronous=full", 40),
        }
        if server is not None:
            urls["redis, tcp"] = (server.url, 500)
            urls["redis, socket"] = (f"unix://{server.socket}", 500)
        print(f"{'microseconds':<24}{'claim':>9}{'replay':>9}{'claim, ratio to memory':>26}")
        base = math.nan
        for name, (url, swaps) in urls.items():
            with open_store(url) as store:
                claim, replay = per_swap(store, swaps)
            base = claim if name == "memory" else base
            print(f"{name:<24}{claim:>9.1f}{replay:>9.1f}{claim / base:>25.1f}×")
            claim, replay = asyncio.run(per_async_swap(open_async_store(url), swaps))
            print(f"{name + ', asyncio':<24}{claim:>9.1f}{replay:>9.1f}{claim / base:>25.1f}×")
        if server is not None:
            print(f"\nbytes per record in redis, for a value of {len(VALUE)}: {bytes_per_record(server)}")


if __name__ == "__main__":
    main()
