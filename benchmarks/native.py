"""Measure how often a retried request stream arrives complete: python -m benchmarks native

Each call sends twenty requests. The first attempt fails while they are being sent. In the second attempt, the
server counts the requests up to the end of the stream. There is no interceptor on the server.
"""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from benchmarks.report import Report
from idem_grpc import Retry, client_interceptors, keys, service_config

CALLS = 300
PATIENCE = 0.5  # seconds; a call takes a few milliseconds
REQUESTS = [b"%02d" % number for number in range(20)]
FRAMED = 5 + len(REQUESTS[0])
METHOD = "/bench.v1.Uploads/Upload"
NATIVE = ("grpc.service_config", service_config(["bench.v1.Uploads"], initial_backoff=0.01))
NO_RETRIES = ("grpc.enable_retries", 0)

Serving = Callable[[], AbstractContextManager[tuple[int, list[int]]]]


@contextmanager
def refusing() -> Iterator[tuple[int, list[int]]]:
    """Serve, and refuse every other call with UNAVAILABLE. Yields the port and the counts."""
    counts: list[int] = []
    calls = itertools.count()

    def upload(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        if next(calls) % 2 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        counts.append(sum(1 for _ in requests))
        return b""

    server = grpc.server(ThreadPoolExecutor(8))
    handler = grpc.stream_unary_rpc_method_handler(upload)
    server.add_registered_method_handlers("bench.v1.Uploads", {"Upload": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, counts
    server.stop(None).wait()


@contextmanager
def leaving() -> Iterator[tuple[int, list[int]]]:
    """Serve, and end every other connection as a server that shuts down: a GOAWAY, with nothing processed."""
    counts: list[int] = []
    calls = itertools.count()

    def serve(connection: socket.socket) -> None:
        http = H2Connection(H2Configuration(client_side=False))
        http.initiate_connection()
        size = 0
        with connection:
            connection.sendall(http.data_to_send())
            while data := connection.recv(65536):
                for event in http.receive_data(data):
                    if isinstance(event, RequestReceived) and next(calls) % 2 == 0:
                        http.close_connection(last_stream_id=0)
                        connection.sendall(http.data_to_send())
                        return
                    if isinstance(event, DataReceived):
                        size += len(event.data)
                    if isinstance(event, StreamEnded):
                        counts.append(size // FRAMED)
                        answer = [(":status", "200"), ("content-type", "application/grpc")]
                        http.send_headers(event.stream_id, answer)
                        http.send_data(event.stream_id, b"\0\0\0\0\0")
                        http.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
                connection.sendall(http.data_to_send())

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], counts


def upload(port: int, options: list[Any], interceptors: list[Any]) -> bool:
    """Make one call on its own channel. Returns whether it was answered."""
    own = ("grpc.use_local_subchannel_pool", 1)
    with grpc.insecure_channel(f"127.0.0.1:{port}", [own, *options]) as channel:
        method = grpc.intercept_channel(channel, *interceptors).stream_unary(METHOD)
        try:
            method(iter(REQUESTS), timeout=PATIENCE)
        except grpc.RpcError:
            return False
        return True


def ours() -> list[Any]:
    return client_interceptors(keys=keys.unique, retry=Retry(initial_backoff=0.01, budget=None))


def none() -> list[Any]:
    return []


WAYS: dict[str, tuple[Serving, list[Any], Callable[[], list[Any]]]] = {
    "UNAVAILABLE, retried by a service config": (refusing, [NATIVE], none),
    "UNAVAILABLE, retried by our interceptors": (refusing, [NO_RETRIES], ours),
    "GOAWAY, on a channel as it is by default": (leaving, [], none),
    "GOAWAY, retried by our interceptors": (leaving, [NO_RETRIES], ours),
}


def main(report: Report, *, quick: bool = False) -> bool:
    title = f"{CALLS} uploads of {len(REQUESTS)} requests"
    print(f"{title:<46}{'answered':>10}{'whole':>8}{'not whole':>11}")
    for name, (serving, options, interceptors) in WAYS.items():
        with serving() as (port, counts):
            answered = sum(upload(port, options, interceptors()) for _ in range(CALLS))
        whole = counts.count(len(REQUESTS))
        print(f"{name:<46}{answered:>10}{whole:>8}{len(counts) - whole:>11}")
    return False
