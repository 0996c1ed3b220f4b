"""Connections are cut before, in the middle of and after the server's work, and each call acts once.

Every caller has an answer, and it is that of the one entry which was made for it.
"""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import grpc
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
import idem_grpc.aio
from tests.chaos.proxy import Fate, Proxy
from tests.chaos.servicers import PARTS, AsyncServicer, Book, Servicer
from tests.server.client import Kind
from tests.server.kinds import ALL
from tests.server.ledger import DEADLINE

CALLS = 500
CALLERS = 10  # at once, each on connections of its own
SEED = 20240330
PATIENT = idem_grpc.Retry(
    max_attempts=1000, initial_backoff=0.01, max_backoff=0.1, attempt_timeout=2, budget=None
)
# Connect again at once; and share no connection.
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 10),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 50),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]

Answers = dict[str, list[pb.LedgerResponse]]


def requests_for(kind: Kind, order: str) -> Any:
    requests = [pb.LedgerRequest(order=order, part=part, filler=b"\x5a" * 100) for part in range(PARTS)]
    return iter(requests) if kind.has_request_stream else requests[0]


def shares() -> list[list[tuple[Kind, str]]]:
    """What each caller sends, one after the other."""
    calls = [(ALL[number % len(ALL)], f"{number}-{uuid4().hex}") for number in range(CALLS)]
    return [calls[caller::CALLERS] for caller in range(CALLERS)]


def check(book: Book, proxy: Proxy, answers: Answers) -> None:
    entries = Counter(order for order, _ in book.entries)
    assert len(entries) == len(answers) == CALLS
    assert {order: count for order, count in entries.items() if count != 1} == {}
    for order, entry in book.entries:
        streams = len(answers[order]) > 1
        assert {(each.entry, each.order) for each in answers[order]} == {(entry, order)}
        assert [each.part for each in answers[order]] == (list(range(PARTS)) if streams else [0])
    missed = [fate for fate in Fate if proxy.met[fate] < 3]
    assert not missed, "a test of bad luck needs some"


def test_sync():
    book = Book(SEED)
    store = idem_grpc.open_store("memory:", namespace=uuid4().hex)
    interceptor = idem_grpc.ServerInterceptor(store, scope=idem_grpc.SHARED)
    server = grpc.server(ThreadPoolExecutor(64), interceptors=[interceptor])
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(Servicer(book), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    proxy = Proxy(f"127.0.0.1:{port}", SEED)
    answers: Answers = {}

    def call(share: list[tuple[Kind, str]]) -> None:
        interceptors = idem_grpc.client_interceptors(keys=idem_grpc.keys.unique, retry=PATIENT)
        with grpc.insecure_channel(proxy.address, OPTIONS) as plain:
            stub = ledger_pb2_grpc.LedgerServiceStub(grpc.intercept_channel(plain, *interceptors))
            for kind, order in share:
                answer = getattr(stub, kind.value)(requests_for(kind, order), timeout=DEADLINE)
                answers[order] = list(answer) if kind.has_response_stream else [answer]

    try:
        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(call, shares()))
        check(book, proxy, answers)
    finally:
        proxy.close()
        server.stop(0).wait(DEADLINE)
        interceptor.drain(DEADLINE)
        store.close()


def test_aio():
    asyncio.run(aio())


async def aio():
    book = Book(SEED)
    store = idem_grpc.aio.open_store("memory:", namespace=uuid4().hex)
    interceptor: Any = idem_grpc.aio.ServerInterceptor(store, scope=idem_grpc.SHARED)
    server = grpc.aio.server(interceptors=[interceptor])
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(AsyncServicer(book), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    proxy = Proxy(f"127.0.0.1:{port}", SEED)
    answers: Answers = {}

    async def call(share: list[tuple[Kind, str]]) -> None:
        interceptors = idem_grpc.aio.client_interceptors(keys=idem_grpc.keys.unique, retry=PATIENT)
        async with grpc.aio.insecure_channel(proxy.address, OPTIONS, interceptors=interceptors) as channel:
            stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
            for kind, order in share:
                rpc = getattr(stub, kind.value)(requests_for(kind, order), timeout=DEADLINE)
                answers[order] = [each async for each in rpc] if kind.has_response_stream else [await rpc]

    try:
        async with asyncio.TaskGroup() as callers:
            for share in shares():
                callers.create_task(call(share))
        check(book, proxy, answers)
    finally:
        await asyncio.to_thread(proxy.close)
        await server.stop(0)
        await interceptor.drain(DEADLINE)
        await store.aclose()
