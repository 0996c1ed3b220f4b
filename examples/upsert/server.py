"""Serve prices, without an interceptor: ``python -m examples.upsert.server prices.db``."""

import argparse
from pathlib import Path

import grpc
from examples_pb.upsert.v1 import prices_pb2 as pb
from examples_pb.upsert.v1 import prices_pb2_grpc as pb_grpc

from examples.processes import serve
from examples.upsert.prices import Price, Prices


class PriceService(pb_grpc.PriceServiceServicer):
    def __init__(self, prices: Prices) -> None:
        self._prices = prices

    def PutPrice(self, request: pb.PutPriceRequest, context: grpc.ServicerContext) -> pb.PutPriceResponse:
        asked = request.price
        if not asked.article or asked.revision < 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "give an article, and a revision from 1 up")
        price = self._prices.put(Price(asked.article, asked.minor_units, asked.revision))
        return pb.PutPriceResponse(
            price=pb.Price(article=price.article, minor_units=price.minor_units, revision=price.revision)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve prices.")
    parser.add_argument("database", type=Path, help="SQLite file")
    parser.add_argument("--careless", action="store_true", help="let the last call to arrive win")
    options = parser.parse_args()
    service = PriceService(Prices(options.database, careless=options.careless))
    serve("prices", [], lambda server: pb_grpc.add_PriceServiceServicer_to_server(service, server))


if __name__ == "__main__":
    main()
