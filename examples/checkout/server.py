"""Serve payments: ``python -m examples.checkout.server --store sqlite:///idem.db --ledger ledger.db``.

All that makes the calls safe to send twice is in ``interceptor``; ``OPERATIONS`` has the tokens issued
with which the front end pays.
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
OPERATIONS = {"payments.charge": Operation()}  # its methods are those whose contract names it: Pay
THREADS = 32
GRACE = 10.0
STOP = (signal.SIGTERM, signal.SIGINT)


def interceptor(store: Store, lease: float, retention: float) -> ServerInterceptor:
    return ServerInterceptor(
        store,
        scope=metadata("x-tenant-id"),  # a gateway that callers cannot bypass sets it
        services=[PAYMENTS, CHECKOUT],
        # Which calls need a key, and of what kind, is in the contract. A run that died may be run again,
        # which is the default: the ledger books a payment once per id.
        default=Policy(lease=lease, retention=retention),
        max_waiters=THREADS // 4,  # so that duplicates leave threads to those they wait for
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
        store.check()  # a server that cannot keep its promise had better not start
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
        server.stop(GRACE).wait()  # lets calls end that are here
        idempotency.drain(GRACE)  # lets runs end whose callers are gone, and tells the store


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve payments.")
    parser.add_argument("--store", default="memory:", help="URL of the idempotency store; default memory:")
    parser.add_argument("--namespace", default="checkout", help="keeps services apart that share a store")
    parser.add_argument("--ledger", type=Path, required=True, help="SQLite file of the shop's books")
    parser.add_argument("--lease", type=float, default=30, help="seconds after which a silent run is dead")
    parser.add_argument("--retention", type=float, default=86400, help="seconds that answers are kept")
    parser.add_argument("--port", type=int, default=0, help="default: a free one, which is printed")
    parser.add_argument("--name", default="server", help="what the ledger calls this server")
    parser.add_argument("--gates", type=Path, help="folder that makes slow cards slow; see provider.py")
    parser.add_argument("--unprotected", action="store_true", help="leave the interceptor out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
