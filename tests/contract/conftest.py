"""Servers that know of their contract's options, and of nothing else."""

import pytest

from tests.contract.servers import FACES


@pytest.fixture(params=list(FACES))
def face(request):
    return request.param


@pytest.fixture
def start(face):
    """Start a server: ``start(**settings)``; they are the interceptor's."""
    servers = []

    def start(**settings):
        servers.append(FACES[face](**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(start):
    return start(services=["tests.v1.ContractService"])
