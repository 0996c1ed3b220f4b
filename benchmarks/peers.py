"""What a function costs behind other libraries, on the same Redis: python -m benchmarks peers

A handler that does nothing is called through each library: ours as the handler that the interceptor returns,
without a network. All take turns, so that whatever else the host does falls on all of them alike. The
libraries differ in what they promise; README.md says what each leaves out.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import count
from statistics import median
from typing import Any

import redis
import redis.asyncio

import idem_grpc
import idem_grpc.aio
from benchmarks.calls import HANDLER, Details, call
from benchmarks.load import REQUEST
from benchmarks.rows import Verdict
from tests.support.redis_server import RedisServer

ROUNDS, CALLS = 15, 200
ANSWER = {"charge_id": "ch_0123456789", "receipt": "x" * 100}
BARS = {"sync": 1.5, "asyncio": 1.3}

Once = Callable[[str], Any]
AsyncOnce = Callable[[str], Awaitable[Any]]


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
        return ANSWER

    request = REQUEST.SerializeToString().hex()
    return lambda key: charge(data={"key": key, "request": request})


def fencekit(url: str) -> Once:
    from fencekit import IdempotencyGuard

    client: Any = redis.Redis.from_url(url, decode_responses=True)
    guard, day = IdempotencyGuard(client), timedelta(hours=24)

    def charge(key: str) -> Any:
        if not guard.try_begin(key, ttl=day):  # without its lock, and so without what follows a crash
            return guard.get_result(key)
        guard.mark_done(key, result=ANSWER, ttl=day)
        return ANSWER

    return charge


def idemkit(url: str) -> Once:
    from idemkit import MethodConfig, RedisBackend, idempotent_sync

    config = MethodConfig(key_fields=["key"])

    @idempotent_sync(backend=RedisBackend.from_url(url), config=config)
    def charge(key: str, request: str) -> Any:
        return ANSWER

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
        return ANSWER

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
        return ANSWER

    request = REQUEST.SerializeToString().hex()
    return lambda key: coordinator.coordinate(
        "charge", key, 86400, adapter, charge, idempotency_fingerprint=request
    )


def nodii(url: str) -> AsyncOnce:
    from nodii_idempotency.init import init_idempotency
    from nodii_idempotency.wrap import wrap_for_webhook

    ready = False

    async def charge() -> Any:
        return ANSWER

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

    class Context:
        trailing: Any = ()

        def set_trailing_metadata(self, metadata: Any) -> None:
            self.trailing = metadata

    async def charge(request: Any, context: Any) -> Any:
        return HANDLER.unary_unary(request, context)

    import grpc

    handler: Any = grpc.unary_unary_rpc_method_handler(
        charge, HANDLER.request_deserializer, HANDLER.response_serializer
    )

    async def continuation(_: Any) -> Any:
        return handler

    async def once(key: str) -> Any:
        served: Any = await interceptor.intercept_service(continuation, Details(key))
        request = served.request_deserializer(REQUEST.SerializeToString())
        return served.response_serializer(await served.unary_unary(request, Context()))

    return once


SYNC: dict[str, Callable[[str], Once]] = {
    "idem_grpc": ours,
    "aws-lambda-powertools": powertools,
    "fencekit": fencekit,
    "idemkit": idemkit,
}
ASYNC: dict[str, Callable[[str], AsyncOnce]] = {
    "idem_grpc": aours,
    "idemkit": aidemkit,
    "idempotency-kit": idempotency_kit,
    "nodii-idempotency": nodii,
}

Times = dict[str, dict[str, list[float]]]


def _empty(names: Any) -> Times:
    return {name: {"first": [], "replay": []} for name in names}


def sync_times(url: str) -> Times:
    """Microseconds of a call of each library, of each round."""
    once = {name: make(url) for name, make in SYNC.items()}
    times, number = _empty(once), count()
    for round_ in range(ROUNDS):
        names = list(once)[round_ % len(once) :] + list(once)[: round_ % len(once)]
        for name in names:
            keys = [f"{name}-{next(number)}" for _ in range(CALLS)]
            for way in ("first", "replay"):
                started = time.perf_counter()
                for key in keys:
                    once[name](key)
                times[name][way].append((time.perf_counter() - started) / CALLS * 1e6)
    return times


async def async_times(url: str) -> Times:
    """The same for asyncio."""
    once = {name: make(url) for name, make in ASYNC.items()}
    times, number = _empty(once), count()
    for round_ in range(ROUNDS):
        names = list(once)[round_ % len(once) :] + list(once)[: round_ % len(once)]
        for name in names:
            keys = [f"{name}-{next(number)}" for _ in range(CALLS)]
            for way in ("first", "replay"):
                started = time.perf_counter()
                for key in keys:
                    await once[name](key)
                times[name][way].append((time.perf_counter() - started) / CALLS * 1e6)
    return times


def judged(face: str, times: Times) -> list[Verdict]:
    """How many times faster ours is than the fastest other, within each round."""
    found = []
    for way in ("first", "replay"):
        others = [name for name in times if name != "idem_grpc"]
        fastest = [min(times[name][way][round_] for name in others) for round_ in range(ROUNDS)]
        ratios = [least / its for least, its in zip(fastest, times["idem_grpc"][way], strict=True)]
        found.append(Verdict(f"{way}, times faster", face, tuple(ratios), BARS[face]))
    return found


def main() -> bool:
    """Measure. Returns whether a bar was missed."""
    server = RedisServer()
    try:
        faces = {"sync": sync_times(server.url), "asyncio": asyncio.run(async_times(server.url))}
    finally:
        server.stop()
    missed = False
    for face, times in faces.items():
        print(f"\n### {face}, without a network, µs a call\n\n| | first call | replay |\n| --- | --- | --- |")
        for name, ways in times.items():
            print(f"| {name} | {median(ways['first']):.0f} | {median(ways['replay']):.0f} |")
        for each in judged(face, times):
            missed |= each.is_missed
            print(
                f"\n{each.row}: {each.median:.2f} ({min(each.ratios):.2f}..{max(each.ratios):.2f}),"
                f" bar {each.bar}{', missed' if each.is_missed else ''}"
            )
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
