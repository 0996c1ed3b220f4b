"""Certificates of two authorities, a server and clients, valid until 2120. Use them only for these tests."""

from pathlib import Path

import grpc


def _read(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


def _client(name: str) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(_read("ca.pem"), _read(f"{name}.key"), _read(f"{name}.pem"))


ALICE = _client("alice")
BOB = _client("bob")
ALICE_BY_COMMON_NAME = _client("alice_by_common_name")  # CN=alice, without other names, of a second authority
ALICE_REPLICA = _client("alice_replica")  # DNS:alice as in ALICE, with another CN


def server_credentials() -> grpc.ServerCredentials:
    """A server named localhost that asks every client for a certificate."""
    pair = (_read("localhost.key"), _read("localhost.pem"))
    authorities = _read("ca.pem") + _read("peers.pem")
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=True)
