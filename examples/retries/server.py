"""Serve seats, and fail on purpose the first time: started by ``python -m examples.retries``.

The passenger's name selects the failure. The handler uses ``current()``; the interceptor does the rest.
"""

import argparse
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from examples_pb.retries.v1 import seats_pb2 as pb
from examples_pb.retries.v1 import seats_pb2_grpc as pb_grpc

from examples.processes import serve, until
from examples.retries.train import Train
from idem_grpc import SHARED, Policy, ServerInterceptor, current, open_store

SERVICE = "examples.retries.v1.SeatService"


class Arrivals(grpc.ServerInterceptor):
    """Records every call that arrives, before any other interceptor."""

    def __init__(self, train: Train) -> None:
        self._train = train

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        self._train.note_arrival(key_in(details.invocation_metadata))
        return continuation(details)


class SeatService(pb_grpc.SeatServiceServicer):
    def __init__(self, train: Train, gates: Path) -> None:
        self._train = train
        self._gates = gates

    def Reserve(self, request: pb.ReserveRequest, context: grpc.ServicerContext) -> pb.ReserveResponse:
        execution = current()
        attempt = execution.attempt if execution else 1
        is_first = self._train.note_run(key_in(context.invocation_metadata()), request.passenger, attempt)
        trouble = request.passenger if is_first else "none"
        if trouble == "busy":
            if execution:
                execution.release()  # nothing has happened yet, so a retry may run at once
            context.abort(grpc.StatusCode.UNAVAILABLE, "the train is not here yet")
        if trouble == "slow":
            until((self._gates / request.passenger).exists, "the gate of a slow passenger opens", 30)
        # The id is the same in every attempt at this request. Without the interceptor, there is no such id.
        reservation_id = execution.derive("seat") if execution else str(uuid.uuid4())
        seat = self._train.reserve(reservation_id, request.passenger)
        if trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return pb.ReserveResponse(seat=seat)


def key_in(metadata: Any) -> str:
    return str(dict(metadata).get("idempotency-key", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve seats on a train.")
    parser.add_argument("folder", type=Path, help="folder of the store, the database and the gates")
    parser.add_argument("--lease", type=float, default=30, help="seconds after which a silent run is dead")
    parser.add_argument("--unprotected", action="store_true", help="leave the interceptor out")
    options = parser.parse_args()
    train = Train(options.folder / "train.db")
    with open_store(f"sqlite:///{options.folder}/idem.db", namespace="seats") as store:
        store.check()
        once = ServerInterceptor(
            store,
            scope=SHARED,  # all callers of this server trust each other
            services=[SERVICE],
            default=Policy(lease=options.lease, retention=3600),  # the contract requires a key
            max_waiters=4,
        )
        interceptors: list[grpc.ServerInterceptor] = [Arrivals(train)]
        if not options.unprotected:
            interceptors.append(once)
        service = SeatService(train, options.folder)
        serve("a server", interceptors, lambda to: pb_grpc.add_SeatServiceServicer_to_server(service, to))


if __name__ == "__main__":
    main()
