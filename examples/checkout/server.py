"""Serve payments: ``python -m examples.checkout.server --store sqlite:///idem.db --ledger ledger.db``.

``interceptor`` contains everything that makes the calls safe to send twice. ``OPERATIONS`` configures the
tokens that the front end pays with.
"""

import argparse
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
from examples_pb.checkout.v1 import payments_pb2_grpc

from examples.checkout.ledger import Ledger
from examples.checkout.payments import CheckoutService, PaymentService
from examples.checkout.provider import Provider
from idem_grpc import (
    Operation,
    Policy,
    ServerInterceptor,
    Store,
    StoreError,
    add_token_service,
    metadata,
    open_store,
)

PAYMENTS = "examples.checkout.v1.PaymentService"
CHECKOUT = "examples.checkout.v1.CheckoutService"
OPERATIONS = {"payments.charge": Operation()}  # used by the methods whose contract names it: Pay
THREADS = 32
GRACE = 10.0
STOP = (signal.SIGTERM, signal.SIGINT)


def interceptor(store: Store, lease: float, retention: float) -> ServerInterceptor:
    return ServerInterceptor(
        store,
        scope=metadata("x-tenant-id"),  # set by a gateway that callers cannot bypass
        services=[PAYMENTS, CHECKOUT],
        # The contract declares which calls need a key, and of what kind. After a crash the handler may run
        # again, which is the default, because the ledger books a payment once per id.
        default=Policy(lease=lease, retention=retention),
        max_waiters=THREADS // 4,  # leaves threads for the calls that duplicates wait for
    )


def main() -> None:
    options = parse()
    try:
        serve(options)
    except StoreError as error:
        sys.exit(f"{options.name}: {error}")


def serve(options: argparse.Namespace) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # for sigwait; the threads of grpc inherit it
    with ExitStack() as stack:
        store = stack.enter_context(open_store(options.store, namespace=options.namespace))
        store.check()  # do not start on a store that is set up unsafely
        idempotency = interceptor(store, options.lease, options.retention)
        server = grpc.server(
            ThreadPoolExecutor(THREADS), interceptors=[] if options.unprotected else [idempotency]
        )
        service = PaymentService(Ledger(options.ledger, options.name), Provider(options.gates))
        payments_pb2_grpc.add_PaymentServiceServicer_to_server(service, server)
        payments_pb2_grpc.add_CheckoutServiceServicer_to_server(CheckoutService(service), server)
        add_token_service(server, idempotency, operations=OPERATIONS)
        port = server.add_insecure_port(f"127.0.0.1:{options.port}")
        server.start()
        print(f"{options.name} listens on 127.0.0.1:{port}", flush=True)
        signal.sigwait(STOP)
        server.stop(GRACE).wait()  # waits for the calls in progress
        idempotency.drain(GRACE)  # waits for runs whose callers have disconnected, and stores their outcomes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve payments.")
    parser.add_argument("--store", default="memory:", help="URL of the idempotency store; default memory:")
    parser.add_argument("--namespace", default="checkout", help="separates services that share a store")
    parser.add_argument("--ledger", type=Path, required=True, help="SQLite file of the shop's ledger")
    parser.add_argument("--lease", type=float, default=30, help="seconds after which a silent run is dead")
    parser.add_argument("--retention", type=float, default=86400, help="seconds that answers are kept")
    parser.add_argument("--port", type=int, default=0, help="default: a free one, which is printed")
    parser.add_argument("--name", default="server", help="name of this server in the ledger")
    parser.add_argument("--gates", type=Path, help="folder that makes slow cards slow; see provider.py")
    parser.add_argument("--unprotected", action="store_true", help="leave the interceptor out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
