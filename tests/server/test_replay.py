"""A duplicate gets the first answer, whole, and the handler ran once."""

import pytest

from tests.server.ledger import order


@pytest.fixture
def server(start, url):
    return start(url)


def test_a_duplicate_gets_the_first_answer(server, kind, key):
    request = order()
    first = server.client.call(kind, request, key)
    second = server.client.call(kind, request, key)
    assert first.ok
    assert second.essence == first.essence
    assert (first.replayed, second.replayed) == (False, True)
    assert first.run
    assert len(server.ledger.runs(request)) == 1


def test_other_keys_are_other_calls(server, kind):
    request = order()
    first = server.client.call(kind, request, "one")
    second = server.client.call(kind, request, "two")
    assert first.entry != second.entry
    assert first.run != second.run
    assert not second.replayed
