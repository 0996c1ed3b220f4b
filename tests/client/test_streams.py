"""Streams of responses that break off, and are taken up again where it is the same answer."""

import gc
import threading

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
from idem_grpc import Reason, Retry
from idem_grpc._client.foreign_calls import CancelledCall
from tests.client.conftest import FAST
from tests.client.scripted import UNAVAILABLE, answer, fail, hang, refuse
from tests.client.test_futures import PATIENT
from tests.server.client import RUN, Kind
from tests.server.kinds import kinds
from tests.server.ledger import DEADLINE
from tests.support.wait import until

REQUEST = pb.LedgerRequest(order="one")
CODE = grpc.StatusCode

kind = kinds(Kind.SERVER_STREAM, Kind.BIDI)


@pytest.fixture
def call_of(script, stub_of, kind):
    """Call a server with a script: gives the call, and the server."""

    def call_of(*steps, retry=FAST, **options):
        server = script(*steps)
        method = getattr(stub_of(server, retry=retry), kind.value)
        return method(iter([REQUEST]) if kind.has_request_stream else REQUEST, **options), server

    return call_of


def read(call):
    """The parts that are handed over, and the error that follows, if any."""
    parts: list[int] = []
    try:
        parts.extend(response.part for response in call)
    except grpc.RpcError as error:
        return parts, error
    return parts, None


class TestResuming:
    def test_the_same_run_goes_on_where_it_broke_off(self, call_of):
        call, server = call_of(
            answer(0, 1, run="r", then=UNAVAILABLE),
            fail(),
            refuse(Reason.IN_PROGRESS, pushback=1),
            answer(0, 1, 2, run="r", then=UNAVAILABLE),
            answer(0, 1, 2, 3, 4, run="r", trailing=[("end", "well")]),
        )
        assert read(call) == ([0, 1, 2, 3, 4], None)
        assert call.code() is CODE.OK
        assert dict(call.trailing_metadata())["end"] == "well"
        assert dict(call.initial_metadata())[RUN] == "r"
        assert idem_grpc.replayed(call) is False
        assert len(set(server.keys)) == 1

    def test_it_may_have_nothing_more_to_say(self, call_of):
        call, _ = call_of(answer(0, 1, run="r", then=UNAVAILABLE), answer(0, 1, run="r"))
        assert read(call) == ([0, 1], None)
        assert call.code() is CODE.OK

    def test_it_may_break_off_earlier(self, call_of):
        call, _ = call_of(
            answer(0, 1, 2, run="r", then=UNAVAILABLE),
            answer(0, run="r", then=UNAVAILABLE),
            answer(0, 1, 2, 3, run="r"),
        )
        assert read(call) == ([0, 1, 2, 3], None)

    @pytest.mark.parametrize(
        "other",
        [
            answer(0, 1, 2, run="s"),
            answer(0, 1, 2),
            answer(0, run="r"),
            answer(0, 1, run="s", then=UNAVAILABLE),
        ],
        ids=["another run", "no run", "the same run, shorter", "another run that fails"],
    )
    def test_any_other_answer_ends_it_as_it_broke_off(self, call_of, other):
        call, server = call_of(answer(0, 1, run="r", then=UNAVAILABLE), other, answer(0, 1, 2, run="r"))
        parts, error = read(call)
        assert parts == [0, 1]
        assert error.code() is call.code() is UNAVAILABLE
        assert error.details() == call.details() == "as the script says"
        assert error.__notes__ == [
            "idem_grpc: 2 attempts were made",
            "idem_grpc: its stream could not be resumed, since the new answer is not of the same run",
        ]
        assert dict(call.trailing_metadata())[RUN] == "r"
        assert len(server.seen) == 2
        with pytest.raises(grpc.RpcError):
            next(call)

    def test_an_answer_without_a_run_is_not_asked_for_again(self, call_of):
        call, server = call_of(answer(0, then=UNAVAILABLE), answer(0, 1))
        parts, error = read(call)
        assert parts == [0]
        assert error.code() is UNAVAILABLE
        (note,) = error.__notes__
        assert note.startswith("idem_grpc: it was not sent again, since the answer that was begun does not")
        assert len(server.seen) == 1

    def test_a_failure_that_stands_ends_it_whatever_was_handed_over(self, call_of):
        call, server = call_of(answer(0, run="r", then=CODE.NOT_FOUND), answer(0, 1, run="r"))
        parts, error = read(call)
        assert (parts, error.code()) == ([0], CODE.NOT_FOUND)
        assert not hasattr(error, "__notes__")
        assert len(server.seen) == 1

    def test_a_lost_reply_is_noticed(self, call_of):
        def stall(requests, context):
            yield from answer(0, 1, run="r")(requests, context)
            context.add_callback(gone.set)
            gone.wait(DEADLINE)

        gone = threading.Event()
        retry = Retry(attempt_timeout=0.5, initial_backoff=0.001)
        call, _ = call_of(stall, answer(0, 1, 2, run="r"), retry=retry, timeout=30)
        assert read(call) == ([0, 1, 2], None)

    def test_who_waits_for_its_end_has_it_caught_up(self, call_of):
        call, server = call_of(answer(0, 1, run="r", then=UNAVAILABLE), answer(0, 1, run="r"))
        assert [next(call).part, next(call).part] == [0, 1]
        assert call.code() is CODE.OK
        assert len(server.seen) == 2


class TestManners:
    def test_before_anything_is_read(self, call_of):
        call, server = call_of(fail(), fail(), answer(5, run="r"))
        assert dict(call.initial_metadata())[RUN] == "r"
        assert len(server.seen) == 3
        assert read(call) == ([5], None)
        assert read(call) == ([], None)

    def test_it_is_retried_though_nobody_reads(self, call_of):
        def fail_later(requests, context):
            assert gate.wait(DEADLINE)
            yield from fail(CODE.NOT_FOUND)(requests, context)

        gate, over = threading.Event(), threading.Event()
        call, server = call_of(fail(), fail_later)
        assert call.add_callback(over.set)
        gate.set()
        assert over.wait(DEADLINE)
        assert call.code() is CODE.NOT_FOUND
        assert len(server.seen) == 2
        assert not call.is_active()
        assert not call.add_callback(over.set)

    def test_cancelling_while_it_is_read(self, call_of):
        def one_and_no_more(requests, context):
            yield pb.LedgerResponse(part=1)
            context.add_callback(gone.set)
            gone.wait(DEADLINE)

        gone = threading.Event()
        call, server = call_of(one_and_no_more)
        assert next(call).part == 1
        assert call.cancel()
        self.check_cancelled(call)
        assert server.seen[0].is_gone.wait(DEADLINE)

    def test_cancelling_while_it_waits(self, call_of):
        call, server = call_of(fail(), answer(), retry=PATIENT)
        server.await_calls(1)
        assert server.seen[0].is_gone.wait(DEADLINE)
        assert call.cancel()
        self.check_cancelled(call)
        assert len(server.seen) == 1

    def test_cancelling_wakes_who_reads(self, call_of):
        call, server = call_of(fail(), answer(), retry=PATIENT)
        server.await_calls(1)
        found = []
        reader = threading.Thread(target=lambda: found.append(read(call)))
        reader.start()
        assert call.cancel()
        reader.join(DEADLINE)
        ((parts, error),) = found
        assert (parts, error.code()) == ([], CODE.CANCELLED)

    def check_cancelled(self, call):
        parts, error = read(call)
        assert not parts
        assert error.code() is call.code() is CODE.CANCELLED
        assert error.details() == call.details() == "Locally cancelled by application!"
        assert "StatusCode.CANCELLED" in str(error)
        assert "Locally cancelled by application!" in repr(error)
        assert call.cancelled()
        assert not call.cancel()

    def test_one_that_nobody_holds_is_cancelled(self, call_of):
        call, server = call_of(hang(threading.Event()))
        server.await_calls(1)
        del call
        gc.collect()
        assert server.seen[0].is_gone.wait(DEADLINE)

    def test_one_that_is_left_while_it_waits_is_not_sent_again(self, call_of):
        call, server = call_of(fail(), answer(), retry=PATIENT)
        server.await_calls(1)
        driver = call._driver
        del call
        gc.collect()
        assert until(lambda: driver.is_over)
        assert len(server.seen) == 1


def test_the_error_of_a_call_that_is_cancelled_between_attempts():
    error = CancelledCall()
    assert (
        str(error)
        == repr(error)
        == "<CancelledCall: StatusCode.CANCELLED, Locally cancelled by application!>"
    )
    assert error.debug_error_string() == ""  # which grpc's own errors have, too
