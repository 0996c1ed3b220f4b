"""Interceptors of one face are refused by servers and channels of the other, with the reason."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import ledger_pb2_grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import KeyRule, Policy, Reason
from tests.server.client import Client, Kind
from tests.server.kinds import kinds
from tests.server.ledger import Ledger, order
from tests.server.servicers import Servicer

kind = kinds(*Kind)


class Passes(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        return await continuation(details)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def misplaced(ledger):
    """Start a grpc.server with the asyncio interceptor, and with others inside of it."""
    started: list[Any] = []

    def start(*inside: Any, **settings: Any) -> Client:
        store = idem_grpc.aio.open_store("memory:")
        ours: Any = idem_grpc.aio.ServerInterceptor(store, scope=idem_grpc.SHARED, **settings)
        server = grpc.server(ThreadPoolExecutor(4), interceptors=[ours, *inside])
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(Servicer(ledger), server)
        client = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        started.append((server, client))
        return client

    yield start
    for server, client in started:
        client.channel.close()
        server.stop(0).wait()


def is_refused(answer):
    return (
        answer.code is grpc.StatusCode.INTERNAL
        and answer.reason is Reason.MISCONFIGURED
        and "give it idem_grpc.ServerInterceptor" in answer.details
        and not answer.messages
    )


@pytest.mark.parametrize("is_keyed", [True, False])
def test_a_threaded_server_refuses_every_call_from_the_first(misplaced, ledger, kind, key, is_keyed, caplog):
    """grpc.server does not look at its interceptors before that."""
    client = misplaced(default=Policy(key=KeyRule.OPTIONAL))
    for _ in range(2):
        assert is_refused(client.call(kind, order(), key if is_keyed else None))
    assert not ledger.all_runs
    (said, *_) = [record.message for record in caplog.records if record.levelname == "CRITICAL"]
    assert "idem_grpc.aio.ServerInterceptor was given to grpc.server" in said


def test_a_threaded_server_refuses_calls_with_several_misplaced_interceptors(misplaced, kind, key):
    client = misplaced(Passes())
    assert is_refused(client.call(kind, order(), key))


def test_an_unknown_method_is_unimplemented(misplaced):
    method: Any = misplaced().channel.unary_unary("/tests.v1.LedgerService/None")
    with pytest.raises(grpc.RpcError) as refused:
        method(pb.LedgerRequest().SerializeToString())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def _asyncio_server(interceptor):
    return grpc.aio.server(interceptors=[interceptor])


@pytest.mark.parametrize("face", ["aio"], indirect=True)
def test_an_asyncio_server_refuses_the_threaded_one_when_it_is_made(start):
    """This is a check of grpc."""
    with idem_grpc.open_store("memory:") as store:
        interceptor: Any = idem_grpc.ServerInterceptor(store, scope=idem_grpc.SHARED)
        with pytest.raises(ValueError, match="must be ServerInterceptor"):
            start().run(_asyncio_server(interceptor))


async def _asyncio_channel(interceptors):
    return grpc.aio.insecure_channel("127.0.0.1:1", interceptors=interceptors)


@pytest.mark.parametrize("face", ["aio"], indirect=True)
def test_an_asyncio_channel_refuses_the_threaded_ones(start):
    ours: Any = list(idem_grpc.client_interceptors())
    with pytest.raises(ValueError, match="must be UnaryUnaryClientInterceptor"):
        start().run(_asyncio_channel(ours))


def test_a_threaded_channel_refuses_the_asyncio_ones():
    ours: Any = idem_grpc.aio.client_interceptors()
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(TypeError, match="must be grpc"):
        grpc.intercept_channel(channel, *ours)
