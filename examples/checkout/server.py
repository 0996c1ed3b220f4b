"""Serve payments: ``python -m examples.checkout.server --store sqlite:///idem.db --ledger ledger.db``.

All that makes the calls safe to send twice is in ``interceptor``.
"""

import argparse
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
from examples_pb.checkout.v1 import payments_pb2_grpc

from examples.checkout.ledger import Ledger
from examples.checkout.payments import PaymentService
from examples.checkout.provider import Provider
from idem_grpc import KeyRule, Policy, ServerInterceptor, Store, StoreError, metadata, open_store

SERVICE = "examples.checkout.v1.PaymentService"
THREADS = 32
GRACE = 10.0


def interceptor(store: Store, lease: float, retention: float) -> ServerInterceptor:
    # A run that died may be run again, which is the default: the ledger books a payment once per id.
    once = Policy(key=KeyRule.REQUIRED, lease=lease, retention=retention)
    return ServerInterceptor(
        store,
        scope=metadata("x-tenant-id"),  # a gateway that callers cannot bypass sets it
        services=[SERVICE],
        policies={f"/{SERVICE}/Charge": once, f"/{SERVICE}/Refund": once},
        max_waiters=THREADS // 4,  # so that duplicates leave threads to those they wait for
    )


def main() -> None:
    options = parse()
    try:
        serve(options)
    except StoreError as error:
        sys.exit(f"{options.name}: {error}")


def serve(options: argparse.Namespace) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        interceptors: list[ServerInterceptor] = []
        if not options.unprotected:
            store = stack.enter_context(open_store(options.store, namespace=options.namespace))
            store.check()  # a server that cannot keep its promise had better not start
            interceptors.append(interceptor(store, options.lease, options.retention))
        server = grpc.server(ThreadPoolExecutor(THREADS), interceptors=[*interceptors])
        service = PaymentService(Ledger(options.ledger, options.name), Provider(options.gates))
        payments_pb2_grpc.add_PaymentServiceServicer_to_server(service, server)
        port = server.add_insecure_port(f"127.0.0.1:{options.port}")
        server.start()
        print(f"{options.name} listens on 127.0.0.1:{port}", flush=True)
        stop.wait()
        server.stop(GRACE).wait()  # lets calls end that are here
        for each in interceptors:
            each.drain(GRACE)  # lets runs end whose callers are gone, and tells the store


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
