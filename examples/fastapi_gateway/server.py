"""A gRPC server with the payments of ``examples.checkout`` and its ledger, started by __main__."""

import argparse
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from examples_pb.checkout.v1 import payments_pb2_grpc
from examples_pb.fastapi_gateway.v1 import books_pb2 as pb
from examples_pb.fastapi_gateway.v1 import books_pb2_grpc

from examples.checkout.ledger import Ledger
from examples.checkout.payments import PaymentService
from examples.checkout.provider import Provider
from examples.fastapi_gateway.launch import when_orphaned
from idem_grpc import KeyRule, Policy, ServerInterceptor, metadata, open_store

PAYMENTS = "examples.checkout.v1.PaymentService"
THREADS = 16
GRACE = 5.0
STOP = (signal.SIGTERM, signal.SIGINT)

# If a payment takes longer, its duplicate is refused with IN_PROGRESS and does not hold a connection.
WAIT = 1.0

SLOW = 4.0
"""Seconds that the bank takes for the slow card."""


class BooksService(books_pb2_grpc.BooksServiceServicer):
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def GetBooks(self, request: pb.GetBooksRequest, context: grpc.ServicerContext) -> pb.GetBooksResponse:
        payments = self._ledger.payments(request.order_id)
        return pb.GetBooksResponse(
            runs=len(self._ledger.runs(request.order_id)),
            charges=len(payments),
            minor_units=sum(payment.minor_units for payment in payments),
        )


class UnhurriedProvider(Provider):
    """Charges the slow card after ``SLOW`` seconds, without a gate."""

    def authorize(self, order_id: str, card: str) -> None:
        if card == "card-slow":
            threading.Event().wait(SLOW)
        super().authorize(order_id, card)


def main() -> None:
    options = parse()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # for sigwait; the threads of grpc inherit it
    when_orphaned(lambda: os.kill(os.getpid(), signal.SIGTERM))
    ledger = Ledger(options.folder / "ledger.db", "payments")
    provider = Provider(options.gates) if options.gates else UnhurriedProvider()
    with open_store(f"sqlite:///{options.folder}/idem.db") as store:
        store.check()
        idempotency = ServerInterceptor(
            store,
            scope=metadata("x-tenant-id"),  # set by the gateway, which callers cannot bypass
            services=[PAYMENTS],
            policies={f"/{PAYMENTS}/*": Policy(key=KeyRule.REQUIRED, wait=WAIT)},
            max_waiters=THREADS // 4,
        )
        server = grpc.server(ThreadPoolExecutor(THREADS), interceptors=[idempotency])
        payments_pb2_grpc.add_PaymentServiceServicer_to_server(PaymentService(ledger, provider), server)
        books_pb2_grpc.add_BooksServiceServicer_to_server(BooksService(ledger), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(f"127.0.0.1:{port}", flush=True)
        signal.sigwait(STOP)
        server.stop(GRACE).wait()
        idempotency.drain(GRACE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve payments to a gateway.")
    parser.add_argument("--folder", type=Path, required=True, help="where the ledger and the store are kept")
    parser.add_argument(
        "--gates", type=Path, help="folder that makes slow cards slow; see checkout/provider.py"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
