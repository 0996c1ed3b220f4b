"""``replayed`` is None for an answer of an unprotected run, on both faces."""

import asyncio
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc.aio
from idem_grpc import keys
from tests.client.conftest import connect, script, stub_of
from tests.server.ledger import DEADLINE
from tests.support.scripted import answer

__all__ = ["connect", "script", "stub_of"]  # fixtures are found by name

RUN, REPLAYED = ("idempotency-run", "ab" * 16), ("idempotency-replayed", "true")
TRAILERS = {(): None, (REPLAYED,): None, (("other", "x"),): None, (RUN,): False, (RUN, REPLAYED): True}


def sent(stub: Any, kind: Any) -> Any:
    request = iter([pb.LedgerRequest()]) if kind.has_request_stream else pb.LedgerRequest()
    return request, getattr(stub, kind.value)


@pytest.mark.parametrize(("trailing", "expected"), TRAILERS.items())
@pytest.mark.parametrize("code", [None, grpc.StatusCode.NOT_FOUND], ids=["ok", "error"])
@pytest.mark.parametrize("settings", [{}, {"retry": None}, {"keys": None}], ids=["retried", "keyed", "bare"])
def test_replayed_is_none_in_grpc(script, stub_of, kind, trailing, expected, code, settings):
    server = script(answer(then=code, trailing=trailing))
    request, method = sent(stub_of(server, **settings), kind)
    call = (method if kind.has_response_stream else method.future)(request, timeout=DEADLINE)
    found = []
    try:
        if kind.has_response_stream:
            list(call)
        else:
            call.result()
    except grpc.RpcError as error:
        found.append(idem_grpc.replayed(error))
    found.append(idem_grpc.replayed(call))
    assert found == [expected] * (1 if code is None else 2)


@pytest.mark.parametrize(("trailing", "expected"), TRAILERS.items())
@pytest.mark.parametrize("code", [None, grpc.StatusCode.NOT_FOUND], ids=["ok", "error"])
@pytest.mark.parametrize("settings", [{}, {"retry": None}, {"keys": None}], ids=["retried", "keyed", "bare"])
def test_replayed_is_none_in_asyncio(script, kind, trailing, expected, code, settings):
    server = script(answer(then=code, trailing=trailing))

    async def main():
        ours = idem_grpc.aio.client_interceptors(**{"keys": keys.unique, **settings})
        async with grpc.aio.insecure_channel(server.address, interceptors=ours) as channel:
            request, method = sent(ledger_pb2_grpc.LedgerServiceStub(channel), kind)
            call, found = method(request, timeout=DEADLINE), []
            try:
                if kind.has_response_stream:
                    async for _ in call:
                        pass
                else:
                    await call
            except grpc.aio.AioRpcError as error:
                found.append(await idem_grpc.aio.replayed(error))
            return [*found, await idem_grpc.aio.replayed(call)]

    assert asyncio.run(main()) == [expected] * (1 if code is None else 2)
