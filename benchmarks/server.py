"""A server to be measured, in a process of its own: python -m benchmarks.server sync memory:

It listens on two ports, without the interceptor and with it, prints both, and ends with
its standard input. Its one method answers with as many bytes as it is asked for.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue, UInt32Value

import idem_grpc
import idem_grpc.aio

SERVICE = "benchmarks.Bench"
METHOD = f"/{SERVICE}/Get"
MEBIBYTE = 1024 * 1024
THREADS = 8
GRACE = 1.0
KEPT = idem_grpc.Policy(max_response_bytes=2 * MEBIBYTE)


def get(request: UInt32Value, context: Any) -> BytesValue:
    return BytesValue(value=bytes(request.value))


async def aget(request: UInt32Value, context: Any) -> BytesValue:
    return BytesValue(value=bytes(request.value))


def serve(store: idem_grpc.Store) -> None:
    ours = idem_grpc.ServerInterceptor(store, scope=idem_grpc.SHARED, default=KEPT)
    servers = [
        grpc.server(ThreadPoolExecutor(THREADS)),
        grpc.server(ThreadPoolExecutor(THREADS), interceptors=[ours]),
    ]
    ports = [opened(server, get) for server in servers]
    for server in servers:
        server.start()
    tell(ports)
    sys.stdin.read()
    for server in servers:
        server.stop(GRACE).wait()
    ours.drain()


async def aserve(store: idem_grpc.aio.Store) -> None:
    ours = idem_grpc.aio.ServerInterceptor(store, scope=idem_grpc.SHARED, default=KEPT)
    servers = [grpc.aio.server(), grpc.aio.server(interceptors=[ours])]
    ports = [opened(server, aget) for server in servers]
    for server in servers:
        await server.start()
    tell(ports)
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        await server.stop(GRACE)
    await ours.drain()


def opened(server: Any, behavior: Any) -> int:
    """Give a server its method and a port, which is returned."""
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        behavior, UInt32Value.FromString, BytesValue.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Get": handler}),))
    port: int = server.add_insecure_port("127.0.0.1:0")
    return port


def tell(ports: Sequence[int]) -> None:
    print(*ports, flush=True)


async def amain(url: str) -> None:
    async with idem_grpc.aio.open_store(url) as store:
        await aserve(store)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve one method, with the interceptor and without.")
    parser.add_argument("face", choices=["sync", "aio"])
    parser.add_argument("store", help="URL of the store")
    options = parser.parse_args()
    if options.face == "aio":
        asyncio.run(amain(options.store))
        return
    with idem_grpc.open_store(options.store) as store:
        serve(store)


if __name__ == "__main__":
    main()
