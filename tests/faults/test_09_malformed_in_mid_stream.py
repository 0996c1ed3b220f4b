"""A request stream with a message that cannot be parsed fails the call, whatever its handler does."""

from contextlib import suppress

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Execution, OnUnclear, Policy, Reason, current
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.server.kinds import kinds
from tests.server.ledger import Gate
from tests.streams.scripts import Cross, Do, Read, Send
from tests.streams.servers import Conversation, say
from tests.support.wait import until

kind = kinds(Kind.CLIENT_STREAM, Kind.BIDI)

GOOD = [pb.LedgerRequest(order="one", part=part).SerializeToString() for part in range(3)]
MALFORMED = b"\xff\xff\xff"
IN_MID_STREAM = [GOOD[0], MALFORMED, GOOD[2]]


def this_run() -> Execution:
    run = current()
    assert run is not None
    return run


def lets_it_through(context):
    while (yield Read()) is not None:
        pass


def returns(context):
    with suppress(Exception):
        yield from lets_it_through(context)


def keeps(context):
    yield from returns(context)
    this_run().keep()


def releases(context):
    yield from returns(context)
    this_run().release()


def reads_on(context):
    """Read on after each error, as a handler that skips bad messages does."""
    is_over = False
    while not is_over:
        try:
            is_over = (yield Read()) is None
        except Exception:
            continue


def aborts(context):
    yield from returns(context)
    yield Do(lambda: context.abort(grpc.StatusCode.NOT_FOUND, "no"))


def sets_a_code(context):
    yield from returns(context)
    context.set_code(grpc.StatusCode.ALREADY_EXISTS)
    context.set_details("it did")


def fails(context):
    yield from returns(context)
    raise RuntimeError("no more")


MADE_OF_IT = [lets_it_through, returns, keeps, releases, reads_on, aborts, sets_a_code, fails]


def reading(kind, ways):
    """A handler that answers the first request, reads on in the nth way in its nth run, and succeeds."""
    runs: list[int] = []

    def script(context):
        runs.append(len(runs))
        way = ways[min(runs[-1], len(ways) - 1)]
        yield Read()
        if kind.has_response_stream:
            yield Send(pb.LedgerResponse(entry="first"))
        yield from way(context)
        if kind.has_response_stream:
            yield Send(pb.LedgerResponse(entry="last"))
        return pb.LedgerResponse(entry="only")

    functions = {"parse": pb.LedgerRequest.FromString, "serialize": pb.LedgerResponse.SerializeToString}
    return {"scripts": {kind: script}, **functions}, runs


def is_refused(answer):
    return (answer.code, answer.details) == (
        grpc.StatusCode.INTERNAL,
        "Exception deserializing request!",
    )


@pytest.mark.parametrize("way", MADE_OF_IT)
def test_the_call_is_internal_and_nothing_is_kept(start_scripted, kind, key, way):
    settings, runs = reading(kind, [way, lets_it_through])
    server = start_scripted(**settings)
    assert is_refused(say(server.client, kind, key, IN_MID_STREAM))
    assert server.record(key, kind).state is State.OPEN
    answer = say(server.client, kind, key, GOOD)
    assert answer.ok, "the caller may send it again as it should be"
    assert say(server.client, kind, key, GOOD).essence == answer.essence
    assert runs == [0, 1]


@pytest.mark.parametrize("way", MADE_OF_IT)
def test_the_end_is_unclear_unless_the_handler_releases_the_key(start_scripted, kind, key, way):
    settings, _ = reading(kind, [way, lets_it_through])
    server = start_scripted(default=Policy(on_unclear=OnUnclear.FAIL), **settings)
    assert is_refused(say(server.client, kind, key, IN_MID_STREAM))
    left = State.OPEN if way is releases else State.UNKNOWN
    assert server.record(key, kind).state is left
    again = say(server.client, kind, key, GOOD)
    assert again.ok if way is releases else again.reason is Reason.OUTCOME_UNKNOWN


@pytest.mark.parametrize("way", MADE_OF_IT)
def test_the_call_fails_with_an_answer_over_the_limit_too(start_scripted, kind, key, way):
    settings, _ = reading(kind, [way])
    server = start_scripted(default=Policy(max_response_bytes=0), **settings)
    assert is_refused(say(server.client, kind, key, IN_MID_STREAM))
    assert server.record(key, kind).state is State.OPEN


def test_a_duplicate_that_waits_does_not_get_the_failure(start_scripted, kind, key):
    """Its own stream may be well-formed."""
    gate = Gate()

    def at_the_gate(context):
        yield Cross(gate)
        yield from returns(context)

    settings, runs = reading(kind, [at_the_gate, lets_it_through])
    server = start_scripted(**settings)
    first = Conversation(server.client, kind, key).send(*IN_MID_STREAM).end()
    gate.await_arrival()
    second = Conversation(server.client, kind, key).send(*GOOD).end()
    until(lambda: server.drain(0) == 2)
    gate.open()
    assert is_refused(first.answer())
    assert second.answer().reason is Reason.IN_PROGRESS
    assert say(server.client, kind, key, GOOD).ok
    assert runs == [0, 1]


def test_a_malformed_duplicate_gets_no_answer(start_scripted, kind, key):
    settings, runs = reading(kind, [lets_it_through])
    server = start_scripted(**settings)
    first = say(server.client, kind, key, GOOD)
    assert first.ok
    assert not say(server.client, kind, key, IN_MID_STREAM).ok
    assert say(server.client, kind, key, GOOD).essence == first.essence
    assert runs == [0]
