"""``rediss://`` and TLS: which servers and clients are trusted, and the errors for those that are not."""

import asyncio
import ssl
from pathlib import Path

import pytest

from idem_grpc._core.swap import Swap, Swapped
from idem_grpc.stores import StoreUnavailable, open_async_store, open_store
from idem_grpc.stores._contract import TTL
from tests.server import certificates
from tests.support.tls import terminating

HELD = Path(certificates.__file__).parent
TRUSTING = f"ssl_ca_certs={HELD}/ca.pem"
ALICE = f"ssl_certfile={HELD}/alice.pem&ssl_keyfile={HELD}/alice.key"


@pytest.fixture(params=["sync", "aio"])
def swap(request):
    """Open a store, check it, and have it swap a value."""

    async def asynchronously(url):
        async with open_async_store(url, namespace="tls") as store:
            await store.check()
            return await store.swap(Swap(b"key", None, b"value", TTL))

    def swap(url):
        if request.param == "aio":
            return asyncio.run(asynchronously(url))
        with open_store(url, namespace="tls") as store:
            store.check()
            return store.swap(Swap(b"key", None, b"value", TTL))

    return swap


@pytest.fixture
def port(redis_server):
    """The port of a server named localhost."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(HELD / "localhost.pem", HELD / "localhost.key")
    with terminating(redis_server.port, context) as port:
        yield port


@pytest.fixture
def choosy_port(redis_server):
    """The port of a server that asks its clients for a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=HELD / "ca.pem")
    context.load_cert_chain(HELD / "localhost.pem", HELD / "localhost.key")
    context.verify_mode = ssl.CERT_REQUIRED
    with terminating(redis_server.port, context) as port:
        yield port


def test_a_server_with_a_certificate_of_a_trusted_authority_is_used(swap, port):
    assert isinstance(swap(f"rediss://localhost:{port}?{TRUSTING}"), Swapped)


def test_a_client_with_a_certificate_is_accepted(swap, choosy_port):
    assert isinstance(swap(f"rediss://localhost:{choosy_port}?{TRUSTING}&{ALICE}"), Swapped)


def test_a_client_without_the_certificate_that_it_needs_fails(swap, choosy_port):
    with pytest.raises(StoreUnavailable, match=f"rediss://localhost:{choosy_port}"):
        swap(f"rediss://localhost:{choosy_port}?{TRUSTING}")


@pytest.mark.parametrize(
    ("host", "query", "says"),
    [
        pytest.param("localhost", "", "certificate verify failed", id="an authority that is not trusted"),
        pytest.param("127.0.0.1", TRUSTING, "IP address mismatch", id="another server's certificate"),
    ],
)
def test_a_server_that_is_not_trusted_is_refused(swap, port, host, query, says):
    with pytest.raises(StoreUnavailable, match=says):
        swap(f"rediss://{host}:{port}?{query}")


def test_a_server_without_tls_is_refused(swap, redis_server):
    with pytest.raises(StoreUnavailable, match=f"rediss://localhost:{redis_server.port}"):
        swap(f"rediss://localhost:{redis_server.port}?socket_timeout=0.5")
