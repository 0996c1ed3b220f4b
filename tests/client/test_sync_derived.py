"""In a keyed handler, calls of ``grpc`` that nobody holds any more are over."""

import gc

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from tests.client.faces import REQUEST, SyncFace
from tests.client.front import Front
from tests.support.scripted import answer, hang
from tests.support.wait import until


@pytest.fixture(params=[{}, {"retry": None}], ids=["ours", "native"])
def check(request, script, stub_of):
    """Run this in a keyed handler; afterwards both methods may be called again."""

    def check(act, *steps):
        down = script(*steps, answer())
        stub = stub_of(down, keys=None, **request.param)

        def handle(_):
            act(stub, down)
            stub.Unary(REQUEST)
            list(stub.ServerStream(REQUEST))

        with SyncFace() as face:
            front = Front(face, Do=handle)
            assert front.call() == (grpc.StatusCode.OK, "")
            front.close()

    return check


def test_calls_that_nobody_holds(check):
    def act(stub, down):
        calls = [stub.ServerStream(REQUEST), stub.Unary.future(REQUEST)]
        down.await_calls(2)
        calls.clear()
        gc.collect()
        until(lambda: is_free(stub.Unary))
        until(lambda: is_free(lambda request: list(stub.ServerStream(request))))

    def is_free(method):
        try:
            method(REQUEST)
        except RuntimeError:
            return False
        return True

    check(act, hang(), hang())


def test_streams_that_are_left_before_their_end(check):
    def act(stub, down):
        for _ in range(100):
            for _ in stub.ServerStream(REQUEST):
                break
            assert isinstance(next(stub.ServerStream(REQUEST)), pb.LedgerResponse)

    check(act, *[answer(0, 1)] * 200)
