"""What docs/client.md and docs/choosing-a-key.md show is run as it stands there."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
from idem_grpc import Policy, ServerInterceptor, client_interceptors, replayed
from idem_grpc.keys import using
from tests.server.client import Kind
from tests.server.conftest import key, start
from tests.server.ledger import order
from tests.support.pages import block

__all__ = ["key", "start"]  # fixtures are found by name


@pytest.fixture
def face() -> str:
    return "sync"


@pytest.fixture
def inside(start) -> Callable[..., Any]:
    """Run a function in a keyed handler, as often as it is asked for, under one key."""

    def inside(function: Callable[[], Any], key: str) -> list[Any]:
        results = []

        def handle(request: bytes, context: Any) -> bytes:
            results.append(function())
            context.abort(grpc.StatusCode.ABORTED, "not now: so that it runs again")
            return b""

        method: Any = grpc.unary_unary_rpc_method_handler(handle)
        handler = grpc.method_handlers_generic_handler("tests.Front", {"Do": method})
        front = start(handlers=[handler])
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as refused:
                front.client.channel.unary_unary("/tests.Front/Do")(b"", metadata=[("idempotency-key", key)])
            assert refused.value.code() is grpc.StatusCode.ABORTED, refused.value.details()
        return results

    return inside


@pytest.mark.parametrize("name", ["channel", "native", "uploads"])
def test_channels(start, name):
    server = start()
    with block("client.md", f"{name} = grpc.", target=server.address)[name] as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        with using("k"):
            _, first = stub.Unary.with_call(order(name="o"))
        with using("k"):
            _, second = stub.Unary.with_call(order(name="o"))
    assert (replayed(first), replayed(second)) == (False, True)
    assert len(server.ledger.all_runs) == 1


def test_calls_in_steps_may_be_under_way_at_once(start, inside, key):
    down = start()
    with grpc.intercept_channel(grpc.insecure_channel(down.address), *client_interceptors()) as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        inventory = SimpleNamespace(
            Reserve=SimpleNamespace(future=lambda item: stub.Unary.future(item.request))
        )
        items = [SimpleNamespace(sku=sku, request=pb.LedgerRequest(order=sku)) for sku in ("tea", "pot")]
        reserve_all = block("client.md", "keys.step")["reserve_all"]
        first, second = inside(lambda: reserve_all(inventory, items), key)
    assert [entry.order for entry in first] == ["tea", "pot"]
    assert second == first
    assert len(down.ledger.all_runs) == 2


def test_a_token_of_the_callers_is_passed_on(start, inside, key):
    down = start()
    with grpc.intercept_channel(grpc.insecure_channel(down.address), *client_interceptors()) as channel:
        payments = SimpleNamespace(Charge=ledger_pb2_grpc.LedgerServiceStub(channel).Unary)
        request = SimpleNamespace(payment_token="token", charge=pb.LedgerRequest(order="tea"))
        inside(lambda: block("client.md", "payment_token")["place"](payments, request), key)
    (run,) = down.ledger.all_runs
    assert run.execution.key == "token"


def test_the_policy_against_double_clicks_is_one_that_servers_take(start):
    once = block("choosing-a-key.md", "retention=")["once"]
    assert isinstance(once, Policy)
    start(default=once, services=["tests.v1.LedgerService"])
    with pytest.raises(ValueError, match="lease"):
        ServerInterceptor(
            idem_grpc.open_store("memory:"),
            scope=idem_grpc.SHARED,
            default=Policy(retention=10),
            services=["tests.v1.LedgerService"],
        )


def test_ids_for_other_systems_are_those_of_every_attempt(inside, key):
    def ids() -> list[str]:
        found = block("choosing-a-key.md", "derive(")
        return [found["headers"]["Idempotency-Key"], found["message_id"], found["event"]["id"]]

    first, second = inside(ids, key)
    assert first == second
    assert len(set(first)) == 3


def test_what_the_page_says_of_a_key_with_too_little_in_it(start):
    """One client sets a value, another one changes it, and the first sets it again."""
    server = start()
    alone = idem_grpc.keys.structured("user", "update", "uid123")
    assert server.client.call(Kind.UNARY, order(name="uid123", amount=1), alone).ok
    second = server.client.call(Kind.UNARY, order(name="uid123", amount=2), alone)
    assert second.reason is idem_grpc.Reason.KEY_REUSED
    again = server.client.call(Kind.UNARY, order(name="uid123", amount=1), alone)
    assert again.replayed
    with_etag = idem_grpc.keys.structured("user", "update", "uid123", "etag-2")
    assert server.client.call(Kind.UNARY, order(name="uid123", amount=2), with_etag).ok
    assert [run.request.amount for run in server.ledger.all_runs] == [1, 2]
