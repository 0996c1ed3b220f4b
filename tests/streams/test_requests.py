"""The request streams of duplicates are compared, like single requests."""

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb
from tests_pb.v1 import order_pb2

from idem_grpc import Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.streams.scripts import Read, Send
from tests.streams.servers import Conversation, say
from tests.support.wait import until

REQUEST = [b"one", b"two", b"three"]
SMALL_MESSAGES = 500
TOO_MUCH = 64 * 1024
BOUND = 8 << 20  # far less than a duplicate would send, and more than lies between a client and a server

# The interceptor compares requests in every style of handlers.
pytestmark = pytest.mark.parametrize("style", ["sync", "aio"], indirect=True)


@pytest.fixture(params=[Kind.CLIENT_STREAM, Kind.BIDI], ids=lambda kind: kind.value)
def kind(request):
    return request.param


@pytest.fixture
def runs():
    """The requests that each run of the handler has read."""
    return []


@pytest.fixture
def serve(start, kind, runs):
    """Start a server whose handler reads a stream, or its first ``reads`` messages, and then answers."""

    def serve(reads=None, **settings):
        def script(context):
            runs.append([])
            while len(runs[-1]) != reads and (request := (yield Read())) is not None:
                runs[-1].append(request)
            answer = b"run %d" % len(runs)
            if kind.has_response_stream:
                yield Send(answer)
            return answer

        return start(scripts={kind: script}, **settings)

    return serve


def is_refused(answer):
    return (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.KEY_REUSED)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(REQUEST[:2], id="shorter"),
        pytest.param([], id="empty"),
        pytest.param([*REQUEST, b"four"], id="longer"),
        pytest.param([*REQUEST, b""], id="an empty message longer"),
        pytest.param([b"two", b"one", b"three"], id="reordered"),
        pytest.param([b"one", b"two", b"drei"], id="changed"),
        pytest.param([b"onet", b"wo", b"three"], id="cut up otherwise"),
    ],
)
def test_another_stream_is_refused(serve, kind, key, runs, other):
    server = serve()
    first = say(server.client, kind, key, REQUEST)
    answer = say(server.client, kind, key, other)
    assert is_refused(answer)
    assert answer.run == first.run
    again = say(server.client, kind, key, REQUEST)
    assert again.essence == first.essence
    assert again.replayed
    assert runs == [REQUEST]


def test_an_empty_stream_is_a_request_too(serve, kind, key, runs):
    server = serve()
    first = say(server.client, kind, key, [])
    assert first.ok
    assert is_refused(say(server.client, kind, key, [b""]))
    assert say(server.client, kind, key, []).essence == first.essence
    assert runs == [[]]


def test_only_messages_that_were_read_are_compared(serve, kind, key, runs):
    server = serve(reads=2)
    first = say(server.client, kind, key, REQUEST)
    assert first.ok
    for same in (REQUEST, REQUEST[:2], [*REQUEST[:2], b"never read"]):
        assert say(server.client, kind, key, same).essence == first.essence
    for other in ([b"one", b"zwei", b"three"], REQUEST[:1], []):
        assert is_refused(say(server.client, kind, key, other))
    assert runs == [REQUEST[:2]]


def test_a_handler_that_reads_nothing_answers_any_stream(serve, kind, key, runs):
    server = serve(reads=0)
    first = say(server.client, kind, key, REQUEST)
    assert first.ok
    for other in ([], [b"four"], REQUEST):
        assert say(server.client, kind, key, other).essence == first.essence
    assert runs == [[]]


def test_a_handler_that_stops_reading_answers_a_client_that_does_not_stop_sending(serve, kind, key):
    server = serve(reads=1)
    first = Conversation(server.client, kind, key).send(b"one").answer()
    second = Conversation(server.client, kind, key).send(b"one").answer()
    assert first.ok
    assert second.essence == first.essence


def test_the_order_of_fields_and_maps_makes_no_difference(serve, kind, key, runs):
    server = serve(parse=order_pb2.Order.FromString)
    customer, *counts = (
        order_pb2.Order(**fields).SerializeToString()
        for fields in ({"customer": "c"}, {"counts": {"apples": 1}}, {"counts": {"pears": 2}})
    )
    first = say(server.client, kind, key, [customer, counts[0] + counts[1] + customer])
    assert first.ok
    same = say(server.client, kind, key, [customer, customer + counts[1] + counts[0]])
    assert same.essence == first.essence
    assert is_refused(say(server.client, kind, key, [customer, customer + counts[1]]))
    assert len(runs) == 1


def test_ignored_fields_make_no_difference(serve, kind, key, runs):
    server = serve(parse=pb.LedgerRequest.FromString, default=Policy(ignore=["amount"]))

    def sent(order, *amounts):
        messages = [pb.LedgerRequest(order=order, amount=amount).SerializeToString() for amount in amounts]
        return say(server.client, kind, key, messages)

    first = sent("shoes", 1, 2)
    assert first.ok
    assert sent("shoes", 3, 4).essence == first.essence
    assert is_refused(sent("hats", 1, 2))
    assert is_refused(sent("shoes", 1, 2, 3))
    assert len(runs) == 1


def test_the_duplicate_is_read_to_its_end_before_it_is_answered(serve, kind, key):
    server = serve()
    first = say(server.client, kind, key, REQUEST)
    duplicate = Conversation(server.client, kind, key).send(*REQUEST)
    until(lambda: duplicate.sent == sum(map(len, REQUEST)))
    assert not duplicate.rpc.done()
    assert duplicate.end().answer().essence == first.essence


@pytest.mark.parametrize("messages", [SMALL_MESSAGES, 3])
def test_a_duplicate_that_is_far_larger_is_not_read_to_its_end(serve, kind, key, messages):
    """Its messages may be larger, or there may be more of them."""
    server = serve()
    assert say(server.client, kind, key, [b"."] * messages).ok
    duplicate = Conversation(server.client, kind, key).send(*[b"." * TOO_MUCH] * SMALL_MESSAGES)
    assert is_refused(duplicate.answer())
    assert duplicate.sent < BOUND < TOO_MUCH * SMALL_MESSAGES


def test_the_wait_for_a_silent_duplicate_is_bounded(serve, kind, key):
    server = serve(default=Policy(lease=0.1, max_run=0.3))
    first = say(server.client, kind, key, REQUEST)
    assert first.ok
    silent = Conversation(server.client, kind, key, timeout=None).send(*REQUEST).answer()
    assert is_refused(silent) or silent.code is grpc.StatusCode.CANCELLED
    assert server.record(key, kind).state is State.DONE
    assert say(server.client, kind, key, REQUEST).essence == first.essence


def test_a_duplicate_that_is_cut_gets_no_answer_and_changes_nothing(serve, kind, key, runs):
    server = serve()
    first = say(server.client, kind, key, REQUEST)
    duplicate = Conversation(server.client, kind, key).send(*REQUEST)
    until(lambda: duplicate.sent == sum(map(len, REQUEST)))
    duplicate.cancel()
    assert not duplicate.answer().messages
    assert server.drain(30) == 0
    assert say(server.client, kind, key, REQUEST).essence == first.essence
    assert runs == [REQUEST]
