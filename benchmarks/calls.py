"""How many Python functions a call enters: python -m benchmarks calls

Counted between the interceptor and its return, in this process and without a network, with a store in
memory. What a call costs is layers, more than anything else, and these are the same on every host.
"""

import sys
from typing import Any

import grpc
from tests_pb.v1 import bench_pb2

import idem_grpc
from benchmarks.load import METHOD, REQUEST

BARS = {"first call": 150, "replay": 80}


class Details(grpc.HandlerCallDetails):
    def __init__(self, key: str) -> None:
        self.method = METHOD
        self.invocation_metadata = (("user-agent", "bench"), ("idempotency-key", key))


class _Context:
    """What the interceptor asks of grpc's own context, and nothing that grpc does."""

    def add_callback(self, callback: Any) -> bool:
        return True

    def is_active(self) -> bool:
        return True

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata


def _charge(request: bench_pb2.ChargeRequest, context: Any) -> bench_pb2.ChargeResponse:
    return bench_pb2.ChargeResponse(charge_id="ch_0123456789", receipt=bytes(100))


HANDLER: Any = grpc.unary_unary_rpc_method_handler(
    _charge, bench_pb2.ChargeRequest.FromString, bench_pb2.ChargeResponse.SerializeToString
)


def call(interceptor: idem_grpc.ServerInterceptor, key: str) -> Any:
    handler: Any = interceptor.intercept_service(lambda _: HANDLER, Details(key))
    context = _Context()
    response = handler.unary_unary(handler.request_deserializer(REQUEST.SerializeToString()), context)
    return handler.response_serializer(response), dict(context.trailing)


def entered(interceptor: idem_grpc.ServerInterceptor, key: str) -> tuple[int, bool]:
    """How many functions a call enters, those of this module aside, and whether it was a replay."""
    count = 0

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename != __file__

    sys.setprofile(profile)
    try:
        _, trailing = call(interceptor, key)
    finally:
        sys.setprofile(None)
    return count, "idempotency-replayed" in trailing


def main() -> bool:
    """Count. Returns whether a bar was missed."""
    missed = False
    with idem_grpc.open_store("memory:") as store:
        interceptor = idem_grpc.ServerInterceptor(store, scope=idem_grpc.SHARED)
        call(interceptor, "warm-up")
        print("Python functions that a call enters, with a store in memory:")
        for name, bar in BARS.items():
            count, is_replay = entered(interceptor, "key")
            assert is_replay is (name == "replay")
            missed |= count > bar
            print(f"{name}: {count} (bar: {bar}{', missed' if count > bar else ''})")
    return missed
