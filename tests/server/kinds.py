"""Which kinds of method a test is run on."""

from typing import Any

import pytest

from tests.server.client import Kind


def kinds(*chosen: Kind) -> Any:
    """A fixture: ``kind = kinds(Kind.UNARY)`` in a module runs its tests on these kinds only."""

    @pytest.fixture(params=chosen, ids=lambda kind: kind.value)
    def kind(request):
        return request.param

    return kind


ALL = (Kind.UNARY, Kind.SERVER_STREAM, Kind.CLIENT_STREAM, Kind.BIDI)
FIRST_AND_LAST = (Kind.UNARY, Kind.BIDI)
"""For what is the same for all kinds: no streams, and streams both ways."""
