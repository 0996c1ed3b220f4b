"""Compare a function behind this and other libraries, on the same Redis: python -m benchmarks peers

A handler that does nothing is called through each library. For idem_grpc, it is called through the handler
that the interceptor returns, without gRPC's own work. The libraries take turns, so that other load on the
host affects all alike. They share one processor with Redis, because on two processors the time would mostly
be the time that one takes to wake the other. The libraries make different promises; README.md lists the
differences.
"""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from datetime import timedelta
from itertools import count
from statistics import median
from typing import Any

import redis
import redis.asyncio

import idem_grpc
import idem_grpc.aio
from benchmarks.calls import Handled, acall, call
from benchmarks.load import REQUEST, in_turn, one_processor, redis_server
from benchmarks.report import Report
from benchmarks.rows import Verdict

BARS = {"sync": 1.5, "asyncio": 1.3}
OURS = "idem_grpc"

keys_so_far = count()

Once = Callable[[str], Any]
AsyncOnce = Callable[[str], Awaitable[Any]]


def handled() -> Any:
    """The function that the libraries protect: counts its runs and returns a constant."""
    Handled.count += 1
    return {"charge_id": "ch_0123456789", "receipt": "x" * 100}


def powertools(url: str) -> Once:
    from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
    from aws_lambda_powertools.utilities.idempotency.persistence.redis import RedisCachePersistenceLayer

    os.environ.setdefault("AWS_LAMBDA_FUNCTION_NAME", "bench")
    client: Any = redis.Redis.from_url(url, decode_responses=True)
    config = IdempotencyConfig(event_key_jmespath="key")  # it compares no requests

    @idempotent_function(
        data_keyword_argument="data",
        persistence_store=RedisCachePersistenceLayer(client=client),
        config=config,
    )
    def charge(data: Any) -> Any:
        return handled()

    request = REQUEST.SerializeToString().hex()
    return lambda key: charge(data={"key": key, "request": request})


def fencekit(url: str) -> Once:
    from fencekit import IdempotencyGuard

    client: Any = redis.Redis.from_url(url, decode_responses=True)
    guard, day = IdempotencyGuard(client), timedelta(hours=24)

    def charge(key: str) -> Any:
        if not guard.try_begin(key, ttl=day):  # without its lock, and so without handling of crashes
            return guard.get_result(key)
        answer = handled()
        guard.mark_done(key, result=answer, ttl=day)
        return answer

    return charge


def idemkit(url: str) -> Once:
    from idemkit import MethodConfig, RedisBackend, idempotent_sync

    config = MethodConfig(key_fields=["key"])

    @idempotent_sync(backend=RedisBackend.from_url(url), config=config)
    def charge(key: str, request: str) -> Any:
        return handled()

    request = REQUEST.SerializeToString().hex()
    return lambda key: charge(key=key, request=request)


def ours(url: str) -> Once:
    interceptor = idem_grpc.ServerInterceptor(
        idem_grpc.open_store(url), scope=idem_grpc.SHARED, cache_bytes=0
    )
    return lambda key: call(interceptor, key)


def aidemkit(url: str) -> AsyncOnce:
    from idemkit import MethodConfig, RedisBackend, idempotent

    @idempotent(backend=RedisBackend.from_url(url), config=MethodConfig(key_fields=["key"]))
    async def charge(key: str, request: str) -> Any:
        return handled()

    request = REQUEST.SerializeToString().hex()
    return lambda key: charge(key=key, request=request)


def idempotency_kit(url: str) -> AsyncOnce:
    from idempotency_kit.core.adapters.basic import JsonResultAdapter
    from idempotency_kit.core.services.aio.coordinator import AsyncIdempotencyCoordinator
    from idempotency_kit.core.services.domain import IdempotencyDomainService
    from idempotency_kit.infra.storage.redis.aio.repository import RedisAsyncIdempotencyRepository

    repository = RedisAsyncIdempotencyRepository(redis.asyncio.Redis.from_url(url))
    coordinator = AsyncIdempotencyCoordinator(repository, IdempotencyDomainService())
    adapter: Any = JsonResultAdapter()

    async def charge() -> Any:
        return handled()

    request = REQUEST.SerializeToString().hex()
    return lambda key: coordinator.coordinate(
        "charge", key, 86400, adapter, charge, idempotency_fingerprint=request
    )


def nodii(url: str) -> AsyncOnce:
    from nodii_idempotency.init import init_idempotency
    from nodii_idempotency.wrap import wrap_for_webhook

    ready = False

    async def charge() -> Any:
        return handled()

    async def once(key: str) -> Any:
        nonlocal ready
        if not ready:
            await init_idempotency(redis=redis.asyncio.Redis.from_url(url), service_id="bench")
            ready = True
        return await wrap_for_webhook(source="bench", event_id=key, handler=charge, tenant_id="one")

    return once


def aours(url: str) -> AsyncOnce:
    interceptor = idem_grpc.aio.ServerInterceptor(
        idem_grpc.aio.open_store(url), scope=idem_grpc.SHARED, cache_bytes=0
    )
    return lambda key: acall(interceptor, key)


SYNC: dict[str, Callable[[str], Once]] = {
    OURS: ours,
    "aws-lambda-powertools": powertools,
    "fencekit": fencekit,
    "idemkit": idemkit,
}
ASYNC: dict[str, Callable[[str], AsyncOnce]] = {
    OURS: aours,
    "idemkit": aidemkit,
    "idempotency-kit": idempotency_kit,
    "nodii-idempotency": nodii,
}

Times = dict[str, dict[str, list[float]]]


def made(libraries: dict[str, Callable[[str], Any]], url: str) -> dict[str, Any]:
    """Return the protected function of each library that is installed."""
    found = {}
    for name, make in libraries.items():
        try:
            found[name] = make(url)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    if len(found) < 2:
        raise RuntimeError("no other library is installed: pip install -r benchmarks/requirements.txt")
    return found


def turns(once: dict[str, Any], times: Times, rounds: int, calls: int) -> Generator[tuple[Any, list[str]]]:
    """Yield the next function to call and its keys. Adds the time to ``times``, in microseconds per call.

    Raises RuntimeError if a first call does not run the function, or if a replay does.
    """
    times.update({name: {"first": [], "replay": []} for name in once})
    for round_ in range(rounds):
        for name in in_turn(list(once), round_):
            keys = [f"{name}-{next(keys_so_far)}" for _ in range(calls)]
            for way, expected in (("first", calls), ("replay", 0)):
                ran = Handled.count
                started = time.perf_counter()
                yield once[name], keys
                times[name][way].append((time.perf_counter() - started) / calls * 1e6)
                if Handled.count - ran != expected:
                    raise RuntimeError(f"{name}, {way}: {Handled.count - ran} of {calls} calls ran")


def sync_times(url: str, rounds: int, calls: int) -> Times:
    """Return the microseconds per call of each library, by round."""
    times: Times = {}
    for once, keys in turns(made(SYNC, url), times, rounds, calls):
        for key in keys:
            once(key)
    return times


async def async_times(url: str, rounds: int, calls: int) -> Times:
    """Return the same times for asyncio."""
    times: Times = {}
    for once, keys in turns(made(ASYNC, url), times, rounds, calls):
        for key in keys:
            await once(key)
    return times


def round_trips(url: str, rounds: int, calls: int) -> list[float]:
    """Return the microseconds of a PING by redis-py, by round.

    A first call takes two such round trips, and a replay one.
    """
    found = []
    with redis.Redis.from_url(url) as client:
        for _ in range(rounds):
            started = time.perf_counter()
            for _ in range(calls):
                client.ping()
            found.append((time.perf_counter() - started) / calls * 1e6)
    return found


def judged(face: str, times: Times) -> list[Verdict]:
    """Return how many times faster idem_grpc is than the fastest other library, within each round."""
    found = []
    for way in ("first", "replay"):
        others = [taken[way] for name, taken in times.items() if name != OURS]
        ratios = [min(theirs) / its for its, *theirs in zip(times[OURS][way], *others, strict=True)]
        found.append(Verdict(f"{way}, times faster than the fastest", face, tuple(ratios), BARS[face]))
    return found


def main(report: Report, *, quick: bool = False) -> bool:
    """Measure. Returns whether a bar was missed."""
    rounds, calls = (5, 50) if quick else (15, 200)
    with one_processor(), redis_server() as server:
        faces = {
            "sync": sync_times(server.url, rounds, calls),
            "asyncio": asyncio.run(async_times(server.url, rounds, calls)),
        }
        ping = round_trips(server.url, rounds, calls)
    report.write("peers", {**faces, "ping": ping})
    missed = False
    print(f"A PING to the same Redis takes {median(ping):.0f} µs.")
    for face, times in faces.items():
        print(f"\n### {face}, without a server, µs a call\n\n| | first call | replay |\n| --- | --- | --- |")
        for name, ways in times.items():
            print(f"| {name} | {median(ways['first']):.0f} | {median(ways['replay']):.0f} |")
        for each in judged(face, times):
            missed |= each.is_missed
            print(f"\n{each.row}: {each}, bar {each.bar:g}{', missed' if each.is_missed else ''}")
    return missed
