"""A handler that aborts ends its call as it does without the interceptor, whatever it does after that."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from tests.faults.compared import Compared, ask, status
from tests.faults.handlers import ending
from tests.server.client import Kind
from tests.server.kinds import ALL, kinds
from tests.streams.scripts import Do, Read

kind = kinds(*ALL)

FIRST, SECOND = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INTERNAL
SEALED = (("seal", "1"),)


@dataclass
class Ending(grpc.Status):
    code: Any = FIRST
    details: str = "rich"
    trailing_metadata: Any = (("seal", "2"),)


def abort(context, code=FIRST, details="first"):
    yield Do(lambda: context.abort(code, details))


def abort_unseen(context, code=FIRST, details="first"):
    with suppress(Exception):
        yield from abort(context, code, details)


def aborts(context):
    yield from abort(context)


def aborts_by_keyword(context):
    yield Do(lambda: context.abort(code=FIRST, details="first"))


def aborts_with_status(context):
    yield Do(lambda: context.abort_with_status(Ending()))


def aborts_twice(context):
    yield from abort_unseen(context)
    yield from abort(context, SECOND, "second")


def aborts_twice_unseen(context):
    yield from abort_unseen(context)
    yield from abort_unseen(context, SECOND, "second")


def aborts_in_an_except(context):
    try:
        yield from abort(context)
    except Exception as error:
        yield from abort(context, SECOND, f"{type(error).__name__}")


def aborts_with_status_after_an_abort(context):
    yield from abort_unseen(context)
    yield Do(lambda: context.abort_with_status(Ending(SECOND)))


def aborts_and_answers(context):
    yield from abort_unseen(context)


def aborts_and_sets_a_code(context):
    yield from abort_unseen(context)
    context.set_code(SECOND)
    context.set_details("second")


def aborts_and_sets_ok(context):
    yield from abort_unseen(context)
    context.set_code(grpc.StatusCode.OK)
    context.set_details("")


def aborts_and_raises(context):
    yield from abort_unseen(context)
    raise RuntimeError("second")


def aborts_and_sets_metadata(context):
    yield from abort_unseen(context)
    context.set_trailing_metadata(SEALED)


def aborts_and_reads(context):
    yield from abort_unseen(context)
    with suppress(Exception):
        while (yield Read()) is not None:
            pass


def aborts_after_a_code(context):
    context.set_code(SECOND)
    context.set_details("second")
    yield from abort(context)


def aborts_without_details(context):
    context.set_details("from before")
    yield from abort(context, FIRST, "")


def aborts_after_metadata(context):
    context.set_trailing_metadata(SEALED)
    yield from abort(context)


def aborts_with_status_after_metadata(context):
    context.set_trailing_metadata(SEALED)
    yield Do(lambda: context.abort_with_status(Ending()))


def aborts_with_status_and_no_metadata(context):
    context.set_trailing_metadata(SEALED)
    yield Do(lambda: context.abort_with_status(Ending(trailing_metadata=())))


def sets_a_code(context):
    context.set_code(FIRST)
    context.set_details("first")
    yield Do(int)


def sets_a_code_and_raises(context):
    context.set_code(FIRST)
    yield Do(int)
    raise RuntimeError("why")


def sets_details_and_raises(context):
    context.set_details("first")
    yield Do(int)
    raise RuntimeError("why")


def raises(context):
    yield Do(int)
    raise RuntimeError("why")


def sets_metadata_and_raises(context):
    context.set_trailing_metadata(SEALED)
    yield Do(int)
    raise RuntimeError("why")


WAYS = [
    aborts,
    aborts_by_keyword,
    aborts_with_status,
    aborts_twice,
    aborts_twice_unseen,
    aborts_in_an_except,
    aborts_with_status_after_an_abort,
    aborts_and_answers,
    aborts_and_sets_a_code,
    aborts_and_sets_ok,
    aborts_and_raises,
    aborts_and_sets_metadata,
    aborts_and_reads,
    aborts_after_a_code,
    aborts_without_details,
    aborts_after_metadata,
    aborts_with_status_after_metadata,
    aborts_with_status_and_no_metadata,
    sets_a_code,
    sets_a_code_and_raises,
    sets_details_and_raises,
    raises,
    sets_metadata_and_raises,
]


@pytest.mark.parametrize("style", ["sync", "aio", "aio-read-write"], indirect=True)
@pytest.mark.parametrize("way", WAYS)
def test_the_status_is_that_of_a_server_without_the_interceptor(start_scripted, kind, key, way):
    servers = Compared(start_scripted, scripts=ending(kind, way))
    ours, plain = servers.ask(kind, key, requests=2)
    assert status(ours) == status(plain)


# grpc.aio's context for threads has no abort_with_status, and an abort of a generator hangs in it.
@pytest.mark.parametrize("style", ["aio-thread"], indirect=True)
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM], ids=lambda kind: kind.value, indirect=True)
@pytest.mark.parametrize("way", [way for way in WAYS if "with_status" not in way.__name__])
def test_the_status_of_a_thread_in_aio_is_that_without_the_interceptor(start_scripted, kind, key, way):
    servers = Compared(start_scripted, scripts=ending(kind, way))
    ours, plain = servers.ask(kind, key, requests=2)
    assert status(ours) == status(plain)


AFTER_AN_ABORT = [way for way in WAYS if way.__name__.startswith(("aborts_and", "aborts_twice", "aborts_in"))]


@pytest.mark.parametrize("style", ["aio", "aio-read-write", "aio-thread"], indirect=True)
@pytest.mark.parametrize("way", AFTER_AN_ABORT)
def test_aio_keeps_the_first_abort(start_scripted, kind, key, way):
    server = start_scripted(scripts=ending(kind, way))
    first, second = (ask(server.client, kind, key, requests=2) for _ in range(2))
    assert (first.code, first.details) == (FIRST, "first")
    assert second.essence == first.essence
    assert second.replayed


@pytest.mark.parametrize("style", ["sync"], indirect=True)
@pytest.mark.parametrize("way", [aborts_twice, aborts_twice_unseen, aborts_and_sets_a_code])
def test_on_threads_the_last_abort_counts(start_scripted, kind, key, way):
    server = start_scripted(scripts=ending(kind, way))
    first, second = (ask(server.client, kind, key, requests=2) for _ in range(2))
    assert (first.code, first.details) == (SECOND, "second")
    assert not second.replayed, "INTERNAL is unclear, so it runs again"


@pytest.mark.parametrize("style", ["aio", "aio-read-write"], indirect=True)
def test_reads_and_writes_fail_after_an_abort(start_scripted, kind, key):
    seen = []

    def goes_on(context):
        yield from abort_unseen(context)
        for act in (
            lambda: context.abort(SECOND, "second"),
            lambda: context.send_initial_metadata(SEALED),
            *([context.read] if kind.has_request_stream else []),
            *([lambda: context.write(b"more")] if kind.has_response_stream else []),
        ):
            try:
                yield Do(act)
            except grpc.aio.BaseError as error:
                seen.append(type(error))
        assert context.done()

    server = start_scripted(scripts=ending(kind, goes_on))
    assert ask(server.client, kind, key, requests=2).code is FIRST
    more = kind.has_request_stream + kind.has_response_stream
    assert seen == [grpc.aio.UsageError] + [grpc.aio.AbortError] * (1 + more)


@pytest.mark.parametrize("style", ["sync"], indirect=True)
def test_a_handler_that_cancels_its_call_cannot_answer_it(start_scripted, kind, key):
    server = start_scripted(scripts=ending(kind, lambda context: (yield Do(context.cancel))))
    answer = ask(server.client, kind, key)
    assert answer.code is grpc.StatusCode.CANCELLED
