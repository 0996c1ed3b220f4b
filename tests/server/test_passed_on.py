"""Metadata of a downstream call that a handler passes on does not replace the library's own."""

import grpc
import pytest

from tests.server.client import PUSHBACK, REPLAYED, RUN
from tests.server.ledger import order, run

THEIRS = ((RUN, "theirs"), (REPLAYED, "true"), (PUSHBACK, "60000"), ("own", "kept"))
KEPT = [None, grpc.StatusCode.NOT_FOUND]
FAILURES = [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE]


def values(metadata, name):
    return [value for key, value in metadata if key == name]


@pytest.mark.parametrize("code", KEPT)
def test_the_metadata_about_a_run_is_only_that_of_the_library(start, kind, key, code):
    server = start()
    request = order(run(code=code, trailing=THEIRS, initial=((RUN, "theirs"), ("own", "kept"))))
    first, second = (server.client.call(kind, request, key) for _ in range(2))
    assert values(first.all_trailing, REPLAYED) == []
    assert values(second.all_trailing, REPLAYED) == ["true"]
    for answer in (first, second):
        assert len(values(answer.all_trailing, RUN)) == 1
        assert "theirs" not in values(answer.all_trailing, RUN) + values(answer.initial, RUN)
        assert len(values(answer.initial, RUN)) <= 1
        assert values(answer.all_trailing, PUSHBACK) == []
        assert values(answer.all_trailing, "own") == ["kept"]
        assert values(answer.initial, "own") == ["kept"]


@pytest.mark.parametrize("code", FAILURES)
def test_the_pushback_of_a_failure_is_that_of_the_handler(start, kind, key, code):
    server = start()
    request = order(run(code=code, trailing=THEIRS))
    answer = server.client.call(kind, request, key)
    assert answer.code is code
    assert values(answer.all_trailing, PUSHBACK) == ["60000"]
    assert values(answer.all_trailing, REPLAYED) == []
    assert "theirs" not in values(answer.all_trailing, RUN)
