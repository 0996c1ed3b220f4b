"""Order calls Payment and Inventory, and is killed half-way: ``python -m examples.order_chain``.

Exits with status 0 if every order was paid once and took its goods once.
"""

import argparse
import signal
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
from examples_pb.order_chain.v1 import shop_pb2 as pb
from examples_pb.order_chain.v1 import shop_pb2_grpc as pb_grpc

from examples.order_chain.books import Books
from examples.processes import Server
from idem_grpc import client_interceptors, keys

LEASE = 2
"""Seconds of silence after which a run counts as dead. In production, keep the default of 30."""

IN_TURN = ("grpc.happy_eyeballs_connection_attempt_delay_ms", 2000)
"""Makes the client wait for the first Order server, which is killed, even if it is slow to accept."""

SERVER = "examples.order_chain.server"


@dataclass(frozen=True)
class Scene:
    """A scene. ``replays``: how many calls Payment and Inventory must answer with a replay."""

    title: str
    stall: str
    replays: tuple[int, int]


SCENES = [
    Scene("Order is killed between Payment and Inventory", "between", (1, 0)),
    Scene("Order is killed after both, before it has answered", "after", (1, 1)),
]


class Shop:
    """Payment and Inventory, one process each, and any number of Order processes."""

    def __init__(self, stack: ExitStack, folder: Path, new_keys: bool) -> None:
        self._stack, self._folder = stack, folder
        self.payment, self.inventory = Books(folder / "payment.db"), Books(folder / "inventory.db")
        servers = [self._start(service) for service in ("payment", "inventory")]
        payment, inventory = (server.ready() for server in servers)
        self._options = ["--payment", payment, "--inventory", inventory, "--lease", str(LEASE)]
        self._options += ["--new-keys"] if new_keys else []

    def order(self, *options: str) -> Server:
        return self._start("order", *self._options, *options)

    def _start(self, service: str, *options: str) -> Server:
        return self._stack.enter_context(Server(SERVER, service, str(self._folder), *options))


def main() -> int:
    parser = argparse.ArgumentParser(description="Show calls that are safe to send twice, down a chain.")
    parser.add_argument("--new-keys", action="store_true", help="make new keys in every run, which fails")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as on Ctrl-C: raise and clean up
    failed = 0
    for scene in SCENES:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="order-chain-"))
            failed += bool(play(scene, Shop(stack, Path(folder), options.new_keys)))
    print(f"FAILED: {failed} of {len(SCENES)} scenes did not hold." if failed else "All scenes held.")
    return 1 if failed else 0


def play(scene: Scene, shop: Shop) -> list[str]:
    """Place an order and kill the server that works on it. Returns the rules that did not hold."""
    print(scene.title)
    doomed, other = shop.order("--stall", scene.stall), shop.order()
    with ThreadPoolExecutor() as pool:
        placing = pool.submit(place_order, f"ipv4:{doomed.ready()},{other.ready()}")
        doomed.line()  # "stalled"
        doomed.kill()
        response = placing.result()
    print(f"  the client has {response.payment_id} and {response.reservation_id}")
    rules = {}
    for name, books, expected in zip(
        ("payment", "inventory"), (shop.payment, shop.inventory), scene.replays, strict=True
    ):
        effects, replies = books.effects("order-1"), Counter(books.replies())
        print(f"  {name}: effects: {len(effects)}, answers: {', '.join(map(str, replies.elements()))}")
        rules[f"{name} must have one effect"] = len(effects) == 1
        wanted = Counter({"OK": 1, "OK replayed": expected})
        rules[f"{name} must answer {wanted['OK replayed']} call with a replay"] = +wanted == replies
    broken = [rule for rule, holds in rules.items() if not holds]
    for line in [f"✗ {rule}" for rule in broken] or ["✓ held"]:
        print(f"  {line}")
    sys.stdout.flush()
    return broken


def place_order(addresses: str) -> pb.PlaceOrderResponse:
    """Make one call with a client that knows both Order servers. Its interceptors retry it on the second."""
    by_order = client_interceptors(keys=keys.from_request("place:{order_id}"))
    with grpc.intercept_channel(grpc.insecure_channel(addresses, [IN_TURN]), *by_order) as channel:
        request = pb.PlaceOrderRequest(order_id="order-1", cents=1299, article="teapot")
        return pb_grpc.OrderServiceStub(channel).PlaceOrder(request, timeout=30)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
