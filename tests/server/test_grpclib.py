"""grpclib, a client in pure Python that does not use gRPC's core."""

import asyncio
from typing import Any

import grpclib
import grpclib.client
import pytest
from google.rpc import error_details_pb2
from tests_pb.v1 import ledger_pb2 as pb

from tests.server.client import REPLAYED, RUN, Kind
from tests.server.ledger import order, run

METHODS: dict[Kind, Any] = {
    Kind.UNARY: grpclib.client.UnaryUnaryMethod,
    Kind.SERVER_STREAM: grpclib.client.UnaryStreamMethod,
    Kind.CLIENT_STREAM: grpclib.client.StreamUnaryMethod,
    Kind.BIDI: grpclib.client.StreamStreamMethod,
}


def call(server, kind, request, key):
    """Make a call. Returns its responses and trailers, or the GRPCError that it ended with."""

    async def send():
        host, _, port = server.address.partition(":")
        async with grpclib.client.Channel(host, int(port)) as channel:
            method = METHODS[kind](channel, kind.path, pb.LedgerRequest, pb.LedgerResponse)
            async with method.open(metadata={"idempotency-key": key}, timeout=30) as stream:
                await stream.send_message(request, end=True)
                responses = []
                while (response := await stream.recv_message()) is not None:
                    responses.append(response)
                await stream.recv_trailing_metadata()
                return responses, dict(stream.trailing_metadata)

    return asyncio.run(send())


def test_a_duplicate_gets_the_first_answer(start, kind, key):
    server, request = start(), order(run(trailing=[("fee", "12"), ("seal-bin", b"\x00\xff")]))
    responses, trailers = call(server, kind, request, key)
    again, its_trailers = call(server, kind, request, key)
    assert responses == again
    assert len(responses) >= 1
    assert trailers["fee"] == "12"
    assert trailers["seal-bin"] == b"\x00\xff"
    assert trailers[RUN]
    assert REPLAYED not in trailers
    assert its_trailers == {**trailers, REPLAYED: "true"}
    assert len(server.ledger.runs(request)) == 1


def test_a_refusal_has_its_reason(start, kind, key):
    server = start()
    call(server, kind, order(), key)
    with pytest.raises(grpclib.GRPCError) as refused:
        call(server, kind, order(), key)
    assert refused.value.status is grpclib.Status.INVALID_ARGUMENT
    (info,) = [detail for detail in refused.value.details if isinstance(detail, error_details_pb2.ErrorInfo)]
    assert (info.domain, info.reason) == ("idem_grpc", "KEY_REUSED")
