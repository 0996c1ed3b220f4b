"""Calls whose keys are tokens from TokenKeys, through the client interceptors of both faces."""

import asyncio
from contextlib import closing
from typing import Any

import grpc
import pytest

import idem_grpc
import idem_grpc.aio
from idem_grpc import Policy, current
from tests.server.client import Kind
from tests.server.ledger import DEADLINE, order, run
from tests.tokens.servers import CHARGE, OnSync

AGAIN = grpc.StatusCode.RESOURCE_EXHAUSTED
RETRY = idem_grpc.Retry(initial_backoff=0.01, codes={grpc.StatusCode.UNAVAILABLE, AGAIN})
OUTER = "/tests.v1.Outer/Call"
BY_METHOD = ("/tests.v1.LedgerService/Unary", "/tests.v1.LedgerService/*")


def sync_calls(address, pattern, requests):
    """The responses, in order, from a channel whose keys are tokens."""
    with grpc.insecure_channel(address) as tokens, grpc.insecure_channel(address) as plain:
        keys = {pattern: idem_grpc.TokenKeys(tokens, CHARGE, prefetch=2)}
        interceptors = idem_grpc.client_interceptors(keys=keys, retry=RETRY)
        method: Any = grpc.intercept_channel(plain, *interceptors).unary_unary(Kind.UNARY.path)
        return [method(request.SerializeToString(), timeout=DEADLINE) for request in requests]


def async_calls(address, pattern, requests):
    async def main():
        async with grpc.aio.insecure_channel(address) as tokens:
            keys = {pattern: idem_grpc.aio.TokenKeys(tokens, CHARGE, prefetch=2)}
            interceptors = idem_grpc.aio.client_interceptors(keys=keys, retry=RETRY)
            async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
                method: Any = channel.unary_unary(Kind.UNARY.path)
                sent = [method(request.SerializeToString(), timeout=DEADLINE) for request in requests]
                return [await call for call in sent]

    return asyncio.run(main())


@pytest.fixture(params=[sync_calls, async_calls])
def calls(request):
    return request.param


@pytest.mark.parametrize("pattern", BY_METHOD)
def test_every_call_has_a_token_of_its_own(start, calls, pattern):
    server, requests = start(), [order() for _ in range(10)]
    assert len(set(calls(server.address, pattern, requests))) == 10
    keys = {run.execution.key for run in server.ledger.all_runs}
    assert len(keys) == 10
    assert all(key.startswith("idt_") for key in keys)


def test_a_retry_has_the_token_of_its_call(start, calls):
    server, request = start(), order(run(code=AGAIN), run())
    calls(server.address, BY_METHOD[0], [request])
    runs = server.ledger.runs(request)
    assert [run.execution.attempt for run in runs] == [1, 2]
    assert len({run.execution.key for run in runs}) == 1


def test_without_a_token_the_call_is_not_made(start, calls):
    """The server has no such operation: the call fails with the status of the TokenService."""
    server = start(operations={"tests.other": idem_grpc.Operation()})
    with pytest.raises(grpc.RpcError) as error:
        calls(server.address, BY_METHOD[0], [order()])
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert any("the call was not sent" in note for note in error.value.__notes__)
    assert not server.ledger.all_runs


def outer(behavior):
    method: Any = grpc.unary_unary_rpc_method_handler(behavior)
    return grpc.method_handlers_generic_handler("tests.v1.Outer", {"Call": method})


def test_a_keyed_handler_must_be_given_its_token(start, face):
    """Run again, it would take another one."""
    seen: list[str] = []

    def handler(request, context):
        assert current() is not None
        try:
            sync_calls(inner.address, BY_METHOD[0], [order()])
        except RuntimeError as error:
            seen.append(str(error))
        return b""

    async def async_handler(request, context):
        async with grpc.aio.insecure_channel(inner.address) as tokens:
            keys = idem_grpc.aio.TokenKeys(tokens, CHARGE)
            interceptors = idem_grpc.aio.client_interceptors(keys=keys)
            async with grpc.aio.insecure_channel(inner.address, interceptors=interceptors) as channel:
                method: Any = channel.unary_unary(Kind.UNARY.path)
                try:
                    await method(order().SerializeToString())
                except RuntimeError as error:
                    seen.append(str(error))
        return b""

    with closing(OnSync(idem_grpc.open_store("memory:"))) as inner:
        behavior = handler if face == "sync" else async_handler
        server = start(
            handlers=[outer(behavior)], policies={OUTER: Policy(operation=OUTER)}, default=Policy()
        )
        method: Any = server.client.channel.unary_unary(OUTER)
        method(b"", metadata=[("idempotency-key", "k")], timeout=DEADLINE)
        assert len(seen) == 1
        assert "keys.using" in seen[0]
        assert not inner.ledger.all_runs
