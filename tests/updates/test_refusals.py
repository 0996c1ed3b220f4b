"""A refused update reaches clients as a gRPC status, from sync and asyncio servers."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2
from tests_pb.v1.updates_pb2 import Resource

import idem_grpc
import idem_grpc.aio
from idem_grpc import Reason, reason

STORED = Resource(name="a", etag='"1"')
SERVICE, METHOD = "tests.Updates", "/tests.Updates/Update"


def updated(request):
    """Apply a request, whose tags are the mask, and answer with the result."""
    return idem_grpc.updates.apply(STORED, request, FieldMask(paths=request.tags)).message


def update(request, context):
    try:
        return updated(request)
    except idem_grpc.updates.UpdateRefused as refused:
        context.abort_with_status(idem_grpc.status_of(refused))


async def aupdate(request, context):
    try:
        return updated(request)
    except idem_grpc.aio.updates.UpdateRefused as refused:
        await context.abort_with_status(idem_grpc.aio.status_of(refused))


def with_port(server, behavior):
    handler = grpc.unary_unary_rpc_method_handler(behavior, Resource.FromString, Resource.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Update": handler}),))
    return server.add_insecure_port("127.0.0.1:0")


@contextmanager
def served():
    server = grpc.server(ThreadPoolExecutor(2))
    port = with_port(server, update)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def aserved(request):
    server = grpc.aio.server()
    port = with_port(server, aupdate)
    await server.start()
    try:
        return await asyncio.to_thread(answer, f"127.0.0.1:{port}", request)
    finally:
        await server.stop(None)


def answer(address, request):
    with grpc.insecure_channel(address) as channel:
        method = channel.unary_unary(METHOD, Resource.SerializeToString, Resource.FromString)
        call = method.future(request, timeout=10, wait_for_ready=True)
        call.exception()
        return call


def sync_answer(request):
    with served() as address:
        return answer(address, request)


@pytest.fixture(params=["sync", "aio"])
def ask(request):
    return sync_answer if request.param == "sync" else lambda message: asyncio.run(aserved(message))


def details(call, *kinds):
    status = status_pb2.Status.FromString(dict(call.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (call.code().value[0], call.details())
    assert len(status.details) == len(kinds)
    for detail, kind in zip(status.details, kinds, strict=True):
        assert detail.Unpack(kind)
    return kinds


def test_an_update_is_answered(ask):
    assert ask(Resource(name="b", etag='"1"', tags=["name"])).result().name == "b"


def test_an_etag_that_does_not_match_is_refused(ask):
    call = ask(Resource(name="b", etag='"0"'))
    assert call.code() is grpc.StatusCode.ABORTED
    (info,) = details(call, error_details_pb2.ErrorInfo())
    assert (info.reason, info.domain) == ("ETAG_MISMATCH", "idem_grpc")
    assert reason(call.exception()) is Reason.ETAG_MISMATCH


def test_an_invalid_mask_is_refused(ask):
    call = ask(Resource(tags=["name", "place.no_such"]))
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'place.no_such'" in call.details()
    info, bad = details(call, error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest())
    assert info.reason == "MASK_INVALID"
    assert reason(call.exception()) is Reason.MASK_INVALID
    assert [violation.field for violation in bad.field_violations] == ["place.no_such"]
