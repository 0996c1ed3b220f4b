"""Measure further costs of a call: python -m benchmarks costs

- the cost by the size of the answer and by the number of records in the store
- the number of scripts that a Redis server runs for a call
- the number of tokens issued per second
- the cost of the client's interceptors
"""

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc
from tests_pb.v1 import bench_pb2_grpc

import idem_grpc
import idem_grpc.aio
from benchmarks.calls import call
from benchmarks.load import (
    METHOD,
    REQUEST,
    Server,
    charge_request,
    in_turn,
    redis_server,
    rounds,
    spared_processor,
)
from benchmarks.report import Report
from benchmarks.rows import Verdict
from benchmarks.server import OPERATION, resident
from idem_grpc._core.digest import store_key
from idem_grpc._core.swap import Swap
from idem_grpc.stores import Store

FACES = ("sync", "asyncio")
REPEATS = 9
SIZES = {100: 3000, 10_000: 2000, 1_000_000: 100}  # bytes of an answer: calls
KEYED = ("redis first", "redis replay, store", "redis replay, cache")
KEPT = (1_000, 10_000, 100_000, 1_000_000)
SWAPS = 500
FLAT = 1.25
"""The bar: the cost of a swap in a full store, as a multiple of its cost in an empty store."""
TOKENS = {1: 2000, 100: 200}  # tokens in a call: calls
ISSUE = "/idem.v1.TokenService/IssueTokens"
DAY = 86400.0


def by_size(face: str, size: int, calls: int, processor: int | None) -> dict[str, Any]:
    """Return ratios to bare and microseconds of CPU over bare by row, for answers of ``size`` bytes."""
    request = charge_request(size)
    rows = ("bare", *KEYED)
    found: dict[str, dict[str, list[float]]] = {row: {"ratio": [], "over_us": []} for row in rows}
    with ExitStack() as stack:
        replays, firsts = (stack.enter_context(redis_server()) for _ in range(2))
        client = firsts.client()
        stack.callback(client.close)
        servers = [
            stack.enter_context(
                Server(face, row, (firsts if row == "redis first" else replays).url, processor=processor)
            )
            for row in rows
        ]
        for server in servers:
            server.check(request)
            server.load(max(10, calls // 10), request)
        for spent in rounds({server.row: server for server in servers}, REPEATS, calls, request):
            client.flushdb()  # otherwise, records of a megabyte would fill the memory
            for row, its in spent.items():
                found[row]["ratio"].append(spent["bare"].seconds / its.seconds)
                found[row]["over_us"].append((its.cpu - spent["bare"].cpu) / calls * 1e6)
    return found


def sizes(report: Report, processor: int | None) -> None:
    found = {
        face: {size: by_size(face, size, calls, processor) for size, calls in SIZES.items()} for face in FACES
    }
    report.write("by size", found)
    print("\n### By the bytes of the answer: ratio to bare, and µs of the server's CPU over bare\n")
    print("| | " + " | ".join(f"{face}, {size:,}" for face in FACES for size in SIZES) + " |")
    print("| --- |" + " --- |" * len(FACES) * len(SIZES))
    for row in KEYED:
        cells = [found[face][size][row] for face in FACES for size in SIZES]
        shown = [f"{median(each['ratio']):.2f}, {median(each['over_us']):+.0f}" for each in cells]
        print(f"| {row} | {' | '.join(shown)} |", flush=True)


def done_record() -> bytes:
    """Return the record of a call with an answer of a hundred bytes."""
    with idem_grpc.open_store("memory:") as store:
        call(idem_grpc.ServerInterceptor(store, scope=idem_grpc.SHARED), "key")
        value = store.read(store_key(store.namespace, METHOD, b"", "key")).value
    assert value is not None, "the call was kept"
    return value


def swaps(store: Store, value: bytes) -> float:
    """Return the mean microseconds per swap, over swaps that add records and swaps that remove them."""
    names = [os.urandom(16).hex().encode() for _ in range(SWAPS)]
    started = time.perf_counter()
    for name in names:
        store.swap(Swap(name, None, value, DAY))
    for name in names:
        store.swap(Swap(name, value, None, DAY))
    return (time.perf_counter() - started) / SWAPS / 2 * 1e6


def fill(store: Store, number: int, value: bytes) -> None:
    """Add ``number`` records to the store."""
    while number > 0:
        batch = [Swap(os.urandom(16).hex().encode(), None, value, DAY) for _ in range(min(1000, number))]
        store.swap_many(batch)
        number -= len(batch)


@contextmanager
def opened(kind: str, folder: str, number: int) -> Iterator[tuple[Store, Callable[[], int]]]:
    """Open an empty store of a kind. Yields it and a function that returns its size in bytes."""
    with ExitStack() as stack:
        measure: Callable[[], int] = resident
        url = "memory:"
        if kind == "redis":
            server = stack.enter_context(redis_server())
            client = server.client()
            stack.callback(client.close)
            url = server.url

            def measure() -> int:
                return int(client.info("memory")["used_memory"])

        elif kind == "sqlite":
            file = Path(folder, f"{number}.db")
            url = f"sqlite:///{file}"

            def measure() -> int:
                return sum(each.stat().st_size for each in file.parent.glob(f"{file.name}*"))

        yield stack.enter_context(idem_grpc.open_store(url)), measure


def growth(kind: str, value: bytes) -> tuple[dict[int, list[tuple[float, float]]], float]:
    """Return microseconds per swap in an empty and a full store by records kept, and bytes per record."""
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="idem-benchmark-") as folder,
        opened(kind, folder, 0) as (empty, _),
        opened(kind, folder, 1) as (full, size),
    ):
        for store in (empty, full):
            swaps(store, value)
        gc.collect()
        before, had = size(), 0
        for number in KEPT:
            fill(full, number - had, value)
            had = number
            found[number] = []
            for repeat in range(REPEATS):
                took = {store: swaps(store, value) for store in in_turn([empty, full], repeat)}
                found[number].append((took[empty], took[full]))
        return found, (size() - before) / had


def kept(report: Report) -> bool:
    """Measure swaps by the number of records in the store. Returns whether the bar was missed."""
    value = done_record()
    print("\n### By the records that a store keeps: µs a swap, as a multiple of an empty one\n")
    print(f"| | {' | '.join(f'{number:,}' for number in KEPT)} | bytes a record |")
    print("| --- |" + " --- |" * (len(KEPT) + 1))
    found = {}
    is_missed = False
    for kind in ("memory", "sqlite", "redis"):
        times, size = growth(kind, value)
        cells = []
        for number, pairs in times.items():
            ratios = tuple(its / base for base, its in pairs)
            verdict = Verdict(f"{kind}, {number:,}", "sync", tuple(1 / each for each in ratios), 1 / FLAT)
            is_missed |= verdict.is_missed
            missed = " missed" if verdict.is_missed else ""
            cells.append(f"{median(its for _, its in pairs):.3g}, {median(ratios):.2f}×{missed}")
        print(f"| {kind} | {' | '.join(cells)} | {size:.0f} |", flush=True)
        found[kind] = {"pairs_us": times, "bytes": size}
    print(f"\nThe value of such a record has {len(value)} bytes.")
    report.write("by records kept", found)
    return is_missed


def commands(report: Report, processor: int | None) -> None:
    """Count the scripts that a Redis server runs for a call."""
    calls = 1000
    found: dict[str, dict[str, float]] = {}
    print("\n### Scripts that a call has a Redis server run\n\n| | sync | asyncio |\n| --- | --- | --- |")
    for row in KEYED:
        for face in FACES:
            with redis_server() as redis, Server(face, row, redis.url, processor=processor) as server:
                client = redis.client()
                server.check()
                client.config_resetstat()
                server.load(calls)
                asked = client.info("commandstats")
                client.close()
            scripts = [asked.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha")]
            found.setdefault(row, {})[face] = sum(scripts) / calls
        print(f"| {row} | {found[row]['sync']:.2f} | {found[row]['asyncio']:.2f} |", flush=True)
    report.write("scripts a call", found)


def tokens(report: Report, processor: int | None) -> None:
    """Measure how many tokens a server issues per second. Each call is made by another caller."""
    found: dict[str, dict[int, list[float]]] = {}
    print(
        "\n### Tokens issued in a second, on Redis\n\n| in one call | sync | asyncio |\n| --- | --- | --- |"
    )
    for face in FACES:
        with redis_server() as redis, Server(face, "tokens", redis.url, processor=processor) as server:
            for number, calls in TOKENS.items():
                request = token_pb2.IssueTokensRequest(operation=OPERATION, count=number)
                with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                    answer = token_pb2_grpc.TokenServiceStub(channel).IssueTokens(request)
                assert len({token.token for token in answer.tokens}) == number
                body = request.SerializeToString()
                spent = [server.send(calls, ISSUE, body) for _ in range(REPEATS)]
                found.setdefault(face, {})[number] = [number * its.calls / its.seconds for its in spent]
    for number in TOKENS:
        print(
            f"| {number} | {median(found['sync'][number]):,.0f} | {median(found['asyncio'][number]):,.0f} |"
        )
    report.write("tokens a second", found)


def client_times(port: int) -> dict[str, list[float]]:
    """Return median microseconds of single calls, without (bare) and with (ours) the client interceptors."""
    found: dict[str, list[float]] = {"bare": [], "ours": []}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ours = grpc.intercept_channel(channel, *idem_grpc.client_interceptors())
        stubs = {"bare": channel, "ours": ours}
        for repeat in range(REPEATS):
            for name in in_turn(list(stubs), repeat):
                ask: Any = bench_pb2_grpc.BenchServiceStub(stubs[name]).Charge
                took = []
                for _ in range(200):
                    started = time.perf_counter()
                    ask(REQUEST)
                    took.append((time.perf_counter() - started) * 1e6)
                found[name].append(median(took))
    return found


async def async_client_times(port: int) -> dict[str, list[float]]:
    """Return the same medians for asyncio."""
    found: dict[str, list[float]] = {"bare": [], "ours": []}
    target = f"127.0.0.1:{port}"
    async with (
        grpc.aio.insecure_channel(target) as bare,
        grpc.aio.insecure_channel(target, interceptors=idem_grpc.aio.client_interceptors()) as ours,
    ):
        channels = {"bare": bare, "ours": ours}
        for repeat in range(REPEATS):
            for name in in_turn(list(channels), repeat):
                ask: Any = bench_pb2_grpc.BenchServiceStub(channels[name]).Charge  # type: ignore[arg-type]  # the stubs know plain channels
                took = []
                for _ in range(200):
                    started = time.perf_counter()
                    await ask(REQUEST)
                    took.append((time.perf_counter() - started) * 1e6)
                found[name].append(median(took))
    return found


def clients(report: Report, processor: int | None) -> None:
    """Measure the cost of the client interceptors, on a server without the server interceptor."""
    with Server("asyncio", "bare", "memory:", processor=processor) as server:
        found = {"sync": client_times(server.port), "asyncio": asyncio.run(async_client_times(server.port))}
    report.write("client", found)
    print("\n### A call of a client, one at a time, µs\n\n| | bare | with our interceptors | over bare |")
    print("| --- | --- | --- | --- |")
    for face, times in found.items():
        over = median(its - base for its, base in zip(times["ours"], times["bare"], strict=True))
        print(f"| {face} | {median(times['bare']):.0f} | {median(times['ours']):.0f} | {over:+.0f} |")


def main(report: Report, *, quick: bool = False) -> bool:
    """Run all measurements. Returns whether a bar was missed."""
    with spared_processor() as processor:
        commands(report, processor)
        sizes(report, processor)
        tokens(report, processor)
        clients(report, processor)
    return kept(report)
