"""One call over plain HTTP/2: grpc's own clients cannot send metadata that is not text."""

import socket

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

from tests.server.ledger import DEADLINE


def grpc_status(address: str, path: str, key: bytes, *metadata: tuple[bytes, bytes]) -> bytes:
    """Make a call with an empty request, and with a key and metadata of any bytes; return its grpc-status.

    Raises AssertionError if the server answers otherwise.
    """
    host, _, port = address.partition(":")
    unchecked = H2Configuration(
        header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = H2Connection(unchecked)
    connection.initiate_connection()
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())]
    headers += [(b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc")]
    connection.send_headers(1, [*headers, (b"idempotency-key", key), *metadata])
    connection.send_data(1, bytes(5), end_stream=True)
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as wire:
        wire.sendall(connection.data_to_send())
        status = b""
        while received := wire.recv(65536):
            for event in connection.receive_data(received):
                assert not isinstance(event, (StreamReset, ConnectionTerminated)), event
                if isinstance(event, (ResponseReceived, TrailersReceived)):
                    status = dict(event.headers or ()).get(b"grpc-status", status)
                if isinstance(event, StreamEnded):
                    return status
            wire.sendall(connection.data_to_send())
    raise AssertionError("the server hung up")
