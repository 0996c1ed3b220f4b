"""Prices that arrive twice, at once and late: ``python -m examples.upsert``.

Checks the answers and the rows written. Exits with status 0 if everything held.
"""

import argparse
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
from examples_pb.upsert.v1 import prices_pb2 as pb
from examples_pb.upsert.v1 import prices_pb2_grpc as pb_grpc

from examples.processes import Server
from examples.scenes import play_all
from examples.upsert.prices import Prices

DUPLICATES = 20
TIMEOUT = 10


class Scenes:
    """The scenes. Each method returns its expectations, and whether each of them held."""

    def __init__(self, stub: pb_grpc.PriceServiceStub, prices: Prices) -> None:
        self._stub = stub
        self._prices = prices

    def twice(self) -> dict[str, bool]:
        """The price of a new article arrives twice: a retry, because the first reply was lost"""
        answers = [self._put("apple", 120, revision=1) for _ in range(2)]
        return {
            "both answers are the same": answers == [120, 120],
            "one row was written, once": self._prices.writes("apple") == [120],
        }

    def at_once(self) -> dict[str, bool]:
        """The same price arrives many times at once"""
        with ThreadPoolExecutor(DUPLICATES) as pool:
            answers = set(pool.map(lambda _: self._put("bread", 300, revision=1), range(DUPLICATES)))
        return {
            f"all {DUPLICATES} answers are the same": answers == {300},
            "one row was written, once": self._prices.writes("bread") == [300],
        }

    def late(self) -> dict[str, bool]:
        """A duplicate arrives late, after the price has changed"""
        answers = [self._put("cheese", cents, revision) for cents, revision in ((500, 1), (550, 2), (500, 1))]
        return {
            "it undoes nothing": answers[-1] == 550,
            "each price was written once": self._prices.writes("cheese") == [500, 550],
        }

    def _put(self, article: str, minor_units: int, revision: int) -> int:
        """Send a price, and return the current price."""
        price = pb.Price(article=article, minor_units=minor_units, revision=revision)
        return self._stub.PutPrice(pb.PutPriceRequest(price=price), timeout=TIMEOUT).price.minor_units


def main() -> int:
    parser = argparse.ArgumentParser(description="Show a method that needs no key.")
    parser.add_argument("--careless", action="store_true", help="show an upsert without its condition")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as on Ctrl-C: raise and clean up
    with ExitStack() as stack:
        database = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prices-"))) / "prices.db"
        settings = [str(database), *(["--careless"] if options.careless else [])]
        server = stack.enter_context(Server("examples.upsert.server", *settings))
        channel = stack.enter_context(grpc.insecure_channel(server.ready()))
        scenes = Scenes(pb_grpc.PriceServiceStub(channel), Prices(database))
        status = play_all((scenes.twice, scenes.at_once, scenes.late))
        server.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
