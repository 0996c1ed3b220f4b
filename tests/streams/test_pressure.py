"""Many responses do not pile up in memory, neither for a slow reader nor for the record."""

import resource

from idem_grpc import OnCancel, Policy, Reason
from idem_grpc._core.record import State
from tests.server.client import Kind
from tests.streams.scripts import Read, Send
from tests.streams.servers import Conversation
from tests.support.wait import until

KIND = Kind.SERVER_STREAM
MESSAGE = 64 * 1024
MANY = 2000  # 125 MiB in all
WAY = 48 << 20  # bytes; more than flow control and sockets let lie between a handler and its client


class Flood:
    """A handler that sends ``count`` large responses, and counts them."""

    def __init__(self, count=MANY):
        self.count = count
        self.given = 0
        self.runs = 0
        self.stopped = False

    def script(self, context):
        self.runs += 1
        yield Read()
        try:
            for number in range(self.count):
                self.given += 1
                yield Send(b"%08d" % number + bytes(MESSAGE))
        except BaseException:
            self.stopped = True
            raise


def begin(server, key):
    return Conversation(server.client, KIND, key, timeout=None)


def stands_still(flood):
    """Whether the handler gave no more responses for 0.3 seconds.

    A handler that waits for its reader does nothing that could be waited for, so this needs a time.
    """
    before = flood.given

    def moves():
        return flood.given != before

    try:
        until(moves, deadline=0.3)
    except AssertionError:
        return True
    return False


def test_a_handler_does_not_run_far_ahead_of_a_slow_reader(start, key):
    flood = Flood()
    server = start(scripts={KIND: flood.script})
    slow = begin(server, key)
    assert slow.receive() is not None
    until(lambda: stands_still(flood))
    assert flood.given * MESSAGE < WAY
    read = 1
    for _ in range(300):
        assert slow.receive() is not None
        read += 1
    until(lambda: stands_still(flood))
    assert (flood.given - read) * MESSAGE < WAY
    slow.cancel()
    until(lambda: server.record(key, KIND).state is State.DONE)
    assert flood.given == MANY


def test_a_flood_is_stopped_when_its_caller_leaves_under_cancel(start, key):
    flood = Flood()
    server = start(scripts={KIND: flood.script}, default=Policy(on_cancel=OnCancel.CANCEL))
    slow = begin(server, key)
    assert slow.receive() is not None
    slow.cancel()
    until(lambda: server.record(key, KIND).state is State.OPEN)
    assert flood.stopped
    assert flood.given * MESSAGE < WAY


def test_an_answer_over_the_limit_takes_no_memory(start, key):
    """The first caller gets all messages, and the process hardly grows."""
    flood = Flood()
    server = start(scripts={KIND: flood.script}, default=Policy(max_response_bytes=1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = begin(server, key)
    for number in range(MANY):
        message = next(call.rpc)
        assert message[:8] == b"%08d" % number
    assert call.answer().ok
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MANY * MESSAGE / 2
    for _ in range(2):
        answer = begin(server, key).answer()
        assert answer.reason is Reason.RESPONSE_NOT_KEPT
        assert not answer.messages
    assert flood.runs == 1


def test_a_flood_whose_caller_left_takes_no_memory(start, key):
    flood = Flood()
    server = start(scripts={KIND: flood.script}, default=Policy(max_response_bytes=1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = begin(server, key)
    assert call.receive() is not None
    call.cancel()
    until(lambda: server.record(key, KIND).state is State.DONE)
    assert flood.given == MANY
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MANY * MESSAGE / 2
    assert begin(server, key).answer().reason is Reason.RESPONSE_NOT_KEPT


def test_the_limit_of_a_record_is_exact(start, key):
    """An answer of exactly the limit is kept, and one of a byte more is not."""
    size = len(b"%08d" % 0) + MESSAGE
    for name, room, kept in (("fits", 3 * size, True), ("does not", 3 * size - 1, False)):
        flood = Flood(3)
        server = start(scripts={KIND: flood.script}, default=Policy(max_response_bytes=room))
        assert begin(server, name.replace(" ", "-")).answer().ok
        again = begin(server, name.replace(" ", "-")).answer()
        assert again.ok is kept
        assert len(again.messages) == (3 if kept else 0)
