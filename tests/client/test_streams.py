"""Streams of responses that break off go on where they broke off, if the answer is of the same run."""

import threading

import grpc
import pytest

from idem_grpc import Reason, Retry
from tests.client.faces import FAST, REQUEST, notes
from tests.server.client import RUN, Kind
from tests.server.kinds import kinds
from tests.server.ledger import DEADLINE
from tests.support.scripted import OK, UNAVAILABLE, answer, fail, refuse

CODE = grpc.StatusCode
EMPTY = answer(then=OK)
IN_PROGRESS = refuse(Reason.IN_PROGRESS, pushback=1)

kind = kinds(Kind.SERVER_STREAM, Kind.BIDI)


@pytest.fixture
def call_of(face, script, kind):
    """Call a server with a script: gives the call, and the server."""

    def call_of(*steps, retry=FAST, **options):
        server = script(*steps)
        return face.client(server, retry=retry).begin(kind, REQUEST, **options), server

    return call_of


def broken_off(*parts, run="r", **settings):
    return answer(*parts, run=run, then=UNAVAILABLE, **settings)


def test_the_same_run_goes_on_where_it_broke_off(call_of):
    call, server = call_of(
        broken_off(0, 1),
        fail(),
        IN_PROGRESS,
        IN_PROGRESS,
        broken_off(0, 1, 2),
        answer(0, 1, 2, 3, 4, run="r", trailing=[("end", "well")]),
    )
    assert call.read() == ([("0", 0), ("0", 1), ("4", 2), ("5", 3), ("5", 4)], None)
    assert call.code() is OK
    assert call.trailing() == {RUN: "r", "end": "well"}
    assert call.initial()[RUN] == "r"
    assert call.replayed() is False
    assert len(set(server.keys)) == 1


def test_it_may_have_nothing_more_to_say(call_of):
    call, _ = call_of(broken_off(0, 1), answer(0, 1, run="r"))
    assert call.read() == ([("0", 0), ("0", 1)], None)
    assert call.code() is OK


def test_it_may_break_off_earlier(call_of):
    call, _ = call_of(broken_off(0, 1, 2), broken_off(0), answer(0, 1, 2, 3, run="r"))
    assert call.read() == ([("0", 0), ("0", 1), ("0", 2), ("2", 3)], None)


def test_it_may_break_off_again_further_on(call_of):
    call, _ = call_of(*[broken_off(*range(end)) for end in range(1, 5)], answer(0, 1, 2, 3, run="r"))
    assert call.read() == ([("0", 0), ("1", 1), ("2", 2), ("3", 3)], None)


@pytest.mark.parametrize(
    "other",
    [
        answer(0, 1, 2, run="s"),
        answer(0, 1, 2),
        EMPTY,
        answer(0, run="r"),
        broken_off(0, 1, run="s"),
    ],
    ids=["another run", "no run", "empty", "the same run, shorter", "another run that fails"],
)
def test_any_other_answer_ends_it_as_it_broke_off(call_of, other):
    call, server = call_of(broken_off(0, 1, details="broken"), other, answer(0, 1, 2, run="r"))
    found, error = call.read()
    assert found == [("0", 0), ("0", 1)]
    assert error.code() is call.code() is UNAVAILABLE
    assert error.details() == call.details() == "broken"
    assert notes(error) == [
        "idem_grpc: 2 attempts were made",
        "idem_grpc: its stream could not be resumed, since the new answer is not of the same run",
    ]
    assert call.trailing()[RUN] == "r"
    assert len(server.seen) == 2


def test_an_answer_of_no_known_run_is_not_retried_once_it_was_begun(call_of):
    call, server = call_of(answer(0, 1, then=UNAVAILABLE), answer(0, 1, 2))
    found, error = call.read()
    assert found == [("0", 0), ("0", 1)]
    assert error.code() is UNAVAILABLE
    (note,) = notes(error)
    assert note.startswith("idem_grpc: it was not sent again, since the answer that was begun does not")
    assert "does not tell which run" in note
    assert len(server.seen) == 1


def test_a_final_failure_ends_it_whatever_was_handed_over(call_of):
    call, server = call_of(answer(0, run="r", then=CODE.NOT_FOUND), answer(0, 1, run="r"))
    found, error = call.read()
    assert (found, error.code()) == ([("0", 0)], CODE.NOT_FOUND)
    assert not notes(error)
    assert len(server.seen) == 1


def test_a_lost_reply_is_noticed(call_of):
    call, _ = call_of(
        answer(0, 1, run="r", until=threading.Event()),
        answer(0, 1, 2, run="r"),
        retry=Retry(attempt_timeout=0.5, initial_backoff=0.001),
        timeout=DEADLINE,
    )
    found, error = call.read()
    assert ([part for _, part in found], error) == ([0, 1, 2], None)


def test_its_status_shows_once_all_was_read(call_of):
    call, server = call_of(broken_off(0, 1), answer(0, 1, run="r"))
    assert [call.next().part, call.next().part] == [0, 1]
    assert call.code() is OK
    assert len(server.seen) == 2


def test_an_empty_stream(call_of):
    call, _ = call_of(fail(), EMPTY)
    assert call.read() == ([], None)
    assert call.code() is OK
