"""Serve one of the three services: started by ``python -m examples.order_chain``.

``interceptor`` makes a service safe to call twice. ``downstream`` extends this to the services that it calls.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import grpc
from examples_pb.order_chain.v1 import shop_pb2_grpc as pb_grpc

from examples.order_chain.books import Books
from examples.order_chain.services import InventoryService, OrderService, PaymentService
from examples.processes import serve
from idem_grpc import SHARED, Policy, ServerInterceptor, Store, client_interceptors, keys, open_store


def interceptor(store: Store, books: Books, lease: float) -> ServerInterceptor:
    return ServerInterceptor(
        store,
        scope=SHARED,  # all callers of this server trust each other
        default=Policy(lease=lease, retention=3600),  # the contract requires a key
        reporter=books,
    )


def downstream(address: str, new_keys: bool) -> grpc.Channel:
    """Open a channel for calls from a handler. Their keys are derived from the handler's own key.

    If the handler runs again, in any process, its calls get the same keys again.
    """
    # Do not copy the first variant: it makes new keys in every run, to show the failure.
    own = client_interceptors(keys=keys.unique, derive=False) if new_keys else client_interceptors()
    return grpc.intercept_channel(grpc.insecure_channel(address), *own)


def main() -> None:
    options = parse()
    with ExitStack() as stack:
        # Each service has a store of its own; the processes of one service share theirs.
        store = stack.enter_context(open_store(f"sqlite:///{options.folder}/{options.service}-idem.db"))
        store.check()
        books = Books(options.folder / f"{options.service}.db")

        def add(server: grpc.Server) -> None:
            if options.service == "payment":
                pb_grpc.add_PaymentServiceServicer_to_server(PaymentService(books), server)
            elif options.service == "inventory":
                pb_grpc.add_InventoryServiceServicer_to_server(InventoryService(books), server)
            else:
                payments, inventory = (
                    stack.enter_context(downstream(address, options.new_keys))
                    for address in (options.payment, options.inventory)
                )
                order = OrderService(payments, inventory, options.stall)
                pb_grpc.add_OrderServiceServicer_to_server(order, server)

        serve(options.service, [interceptor(store, books, options.lease)], add)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve one of the services of a shop.")
    parser.add_argument("service", choices=["order", "payment", "inventory"])
    parser.add_argument("folder", type=Path, help="folder of the stores and the databases")
    parser.add_argument("--payment", help="address of the payment service")
    parser.add_argument("--inventory", help="address of the inventory service")
    parser.add_argument("--lease", type=float, default=30, help="seconds after which a silent run is dead")
    parser.add_argument("--stall", default="", help="where the order service stops forever")
    parser.add_argument("--new-keys", action="store_true", help="make new keys in place of derived ones")
    return parser.parse_args()


if __name__ == "__main__":
    main()
