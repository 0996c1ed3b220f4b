"""A client that sends each request after the answer to the last one gets a replay in the same turns."""

import threading

import grpc
import pytest

from idem_grpc import Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.streams.scripts import Do, Read, Send
from tests.streams.servers import Conversation, say
from tests.support.wait import until

KIND = Kind.BIDI
TURNS = [b"a", b"b", b"c"]


def echo(greeting=(), farewell=(), times=1):
    """A handler that answers every request, with responses before the first and after the last."""

    def script(context):
        for message in greeting:
            yield Send(message)
        while (request := (yield Read())) is not None:
            for _ in range(times):
                yield Send(b"re: " + request)
        for message in farewell:
            yield Send(message)

    return script


@pytest.fixture
def converse(start, key):
    """Start a server with a handler, and return a function that begins a call of it."""

    def converse(script, **settings):
        server = start(scripts={KIND: script}, **settings)
        return lambda: Conversation(server.client, KIND, key)

    return converse


def take_turns(conversation, requests=TURNS, times=1):
    """Send each request once the one before is answered."""
    for request in requests:
        conversation.send(request)
        for _ in range(times):
            conversation.receive()
    return conversation.end().answer()


def all_at_once(conversation, requests=TURNS, times=1):
    return conversation.send(*requests).end().answer()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("first", [take_turns, all_at_once])
def test_a_replay_works_in_turns_and_for_all_requests_at_once(converse, first, times):
    begin = converse(echo(times=times))
    answer = first(begin(), times=times)
    assert answer.ok
    assert answer.messages == tuple(b"re: " + turn for turn in TURNS for _ in range(times))
    for duplicate in (take_turns, all_at_once):
        replay = duplicate(begin(), times=times)
        assert replay.essence == answer.essence
        assert replay.replayed


def test_a_response_before_the_first_request_is_replayed_before_it(converse):
    begin = converse(echo(greeting=[b"hello"]))
    for replayed in (False, True):
        conversation = begin()
        assert conversation.receive() == b"hello"
        answer = take_turns(conversation)
        assert answer.messages[0] == b"hello"
        assert answer.replayed is replayed


def test_responses_after_the_end_are_replayed_after_the_end_of_the_duplicate(converse):
    begin = converse(echo(farewell=[b"total", b"bye"]))
    first = take_turns(begin())
    assert first.messages[-2:] == (b"total", b"bye")
    assert take_turns(begin()).essence == first.essence
    longer = take_turns(begin(), [*TURNS, b"d"])
    assert longer.reason is Reason.KEY_REUSED
    assert longer.messages == first.messages[:-2]


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
@pytest.mark.parametrize("turn", range(len(TURNS)))
@pytest.mark.parametrize("way", [take_turns, all_at_once])
def test_a_duplicate_that_differs_is_answered_up_to_the_difference(converse, turn, way):
    begin = converse(echo(farewell=[b"bye"]))
    first = take_turns(begin())
    other = [*TURNS[:turn], b"!", *TURNS[turn + 1 :]]
    answer = way(begin(), other)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.KEY_REUSED)
    assert answer.messages == first.messages[:turn]
    assert answer.run == first.run
    assert take_turns(begin()).essence == first.essence


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
def test_a_duplicate_that_ends_early_is_answered_up_to_its_end(converse):
    begin = converse(echo(farewell=[b"bye"]))
    first = take_turns(begin())
    answer = take_turns(begin(), TURNS[:2])
    assert answer.reason is Reason.KEY_REUSED
    assert answer.messages == first.messages[:2]


def test_a_turn_may_have_several_requests(converse):
    def pairs(context):
        while (yield Read()) is not None and (yield Read()) is not None:
            yield Send(b"a pair")

    begin = converse(pairs)
    for replayed in (False, True):
        conversation = begin()
        for _ in range(3):
            conversation.send(b"l", b"r")
            assert conversation.receive() == b"a pair"
        assert conversation.end().answer().replayed is replayed


def test_a_duplicate_takes_its_turns_once_the_first_is_over(converse):
    begin = converse(echo())
    first = begin().send(b"a")
    assert first.receive() == b"re: a"
    answers = []
    duplicate = begin()
    waiting = threading.Thread(target=lambda: answers.append(take_turns(duplicate)))
    waiting.start()
    until(lambda: duplicate.sent)
    first.send(b"b", b"c").end()
    answer = first.answer()
    waiting.join()
    assert answer.ok
    assert [replay.essence for replay in answers] == [answer.essence]
    assert answers[0].replayed


def test_an_error_after_turns_comes_after_the_same_turns(start, key):
    def declining(context):
        request = yield Read()
        yield Send(b"re: " + request)
        yield Read()
        yield Do(lambda: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "declined"))

    server = start(scripts={KIND: declining})
    for replayed in (False, True):
        answer = take_turns(Conversation(server.client, KIND, key), TURNS[:2])
        assert (answer.code, answer.details) == (grpc.StatusCode.FAILED_PRECONDITION, "declined")
        assert answer.messages == (b"re: a",)
        assert answer.replayed is replayed
    early = say(server.client, KIND, key, TURNS[:1])
    assert early.reason is Reason.KEY_REUSED
    assert early.messages == (b"re: a",)


@pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)
def test_leaving_during_a_replay_changes_nothing(start, key):
    server = start(scripts={KIND: echo()})
    first = take_turns(Conversation(server.client, KIND, key))
    leaving = Conversation(server.client, KIND, key).send(b"a")
    assert leaving.receive() == b"re: a"
    leaving.cancel()
    assert server.drain(30) == 0
    assert server.record(key, KIND).state is State.DONE
    assert take_turns(Conversation(server.client, KIND, key)).essence == first.essence
