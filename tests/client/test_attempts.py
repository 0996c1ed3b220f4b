"""When a call is sent again, when it is not, and what is sent."""

import threading
from collections import Counter
from itertools import count
from time import monotonic

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
from idem_grpc import Budget, Reason, Retry, keys
from tests.client.faces import REQUEST, notes
from tests.server.client import Kind
from tests.server.kinds import ALL
from tests.server.ledger import DEADLINE
from tests.support.scripted import NOWHERE, UNAVAILABLE, answer, fail, hang, refuse, status

CODE = grpc.StatusCode
FINAL = sorted(set(CODE) - {CODE.OK, UNAVAILABLE}, key=lambda code: code.name)
REFUSALS = [reason for reason in Reason if not reason.retryable]
GARBAGE = ["-1", "-9999999", "soon", "", "1.5", "9" * 400, "9" * 5000]
REQUESTS = [pb.LedgerRequest(order="one", part=part) for part in range(5)]


class TestAttempts:
    def test_all_attempts_of_a_call_have_the_same_key_and_no_two_calls_do(self, face, script, kind):
        server = script(fail(), fail(), answer(), fail(), answer(), fail())
        client = face.client(server)
        client.send(kind)
        client.send(kind)
        client.error_of(kind)
        keys = server.keys
        assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4] != keys[5]
        assert len(set(keys[5:])) == 1 < len(keys[5:])

    def test_every_attempt_is_sent_the_same(self, face, script, kind):
        server = script(fail(reads=None), fail(reads=1), fail(), answer(7, 8))
        responses = face.client(server).send(kind, *REQUESTS, metadata=(("who", "me"),))
        expected = [("3", 7), ("3", 8)] if kind.has_response_stream else [("3", 7)]
        assert [(response.entry, response.part) for response in responses] == expected
        first, *_, last = server.seen
        assert first.requests == last.requests == (REQUESTS if kind.has_request_stream else REQUESTS[:1])
        assert last.was_complete
        assert [seen.metadata["who"] for seen in server.seen] == ["me"] * 4

    @pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM], ids=lambda kind: kind.value)
    def test_a_request_is_sent_again_as_it_was(self, face, script, kind):
        gate = threading.Event()
        server = script(fail(reads=1, until=gate), answer())
        request = pb.LedgerRequest(order="as it was")
        call = face.client(server).begin(kind, request)
        server.await_calls(1)
        request.order = "as it is now"
        gate.set()
        call.responses()
        assert [seen.requests[0].order for seen in server.seen] == ["as it was"] * 2

    def test_the_last_failure_is_raised_with_a_note_of_the_attempts(self, face, script, kind):
        server = script(fail(), fail(), fail(CODE.NOT_FOUND, details="gone", trailing=(("why", "so"),)))
        error = face.client(server).error_of(kind)
        assert (error.code(), error.details()) == (CODE.NOT_FOUND, "gone")
        assert ("why", "so") in tuple(error.trailing_metadata())
        assert notes(error) == ["idem_grpc: 3 attempts were made"]

    def test_attempts_are_limited(self, face, script, kind):
        server = script(*[fail(details=f"attempt {number}") for number in range(4)], answer())
        retry = Retry(max_attempts=4, initial_backoff=0.001)
        error = face.client(server, retry=retry).error_of(kind)
        assert (error.code(), error.details()) == (UNAVAILABLE, "attempt 3")
        assert notes(error) == ["idem_grpc: 4 attempts were made"]
        assert len(server.seen) == 4

    def test_a_server_that_cannot_be_reached(self, face, kind):
        error = face.client(NOWHERE).error_of(kind)
        assert error.code() is UNAVAILABLE
        assert notes(error) == ["idem_grpc: 10 attempts were made"]

    def test_other_codes_end_the_call(self, face, script, kind):
        server = script(*[fail(code, details=code.name) for code in FINAL])
        client = face.client(server)
        for code in FINAL:
            error = client.error_of(kind)
            assert (error.code(), error.details()) == (code, code.name)
            assert notes(error) == []
        assert len(server.seen) == len(FINAL)

    def test_codes_can_be_chosen(self, face, script, kind):
        server = script(fail(CODE.ABORTED), answer())
        assert face.client(server, retry=Retry(initial_backoff=0.001, codes=[CODE.ABORTED])).send(kind)

    @pytest.mark.parametrize("retry", [Retry(max_attempts=1), None], ids=["one attempt", "native"])
    def test_a_key_without_retries(self, face, script, kind, retry):
        server = script(fail(), answer(4))
        client = face.client(server, retry=retry)
        error = client.error_of(kind)
        assert error.code() is UNAVAILABLE
        assert not notes(error)
        assert [response.part for response in client.send(kind)] == [4]
        assert all(server.keys)
        assert len(set(server.keys)) == 2

    def test_a_call_without_a_key_is_sent_once(self, face, script, kind):
        server = script(fail())
        assert face.client(server, keys=None).error_of(kind).code() is UNAVAILABLE
        assert server.keys == [None]

    def test_a_method_without_side_effects_is_sent_again_without_a_key(self, face, script):
        server = script(fail(), answer(), fail())
        client = face.client(server)
        client.send(Kind.READ)
        assert client.error_of(Kind.READ).code() is UNAVAILABLE
        assert server.keys == [None] * (2 + 10)

    def test_final_refusals_are_not_retried(self, face, script, kind):
        server = script(*[refuse(reason) for reason in REFUSALS])
        client = face.client(server, retry=Retry(initial_backoff=0.001, codes=set(CODE) - {CODE.OK}))
        assert [idem_grpc.reason(client.error_of(kind)) for _ in REFUSALS] == REFUSALS
        assert len(server.seen) == len(REFUSALS)

    @pytest.mark.parametrize("reason", [Reason.IN_PROGRESS, Reason.OUTCOME_PENDING])
    def test_waiting_for_a_run_costs_neither_attempts_nor_budget(self, face, script, kind, reason):
        server = script(*[refuse(reason, pushback=1)] * 20, answer(3))
        retry = Retry(max_attempts=2, initial_backoff=0.001, max_backoff=0.001, budget=Budget(max_tokens=1))
        assert [response.part for response in face.client(server, retry=retry).send(kind)] == [3]
        assert len(server.seen) == 21

    def test_one_attempt_waits_for_a_run(self, face, script, kind):
        server = script(*[refuse(Reason.IN_PROGRESS, pushback=1)] * 3, answer(3))
        retry = Retry(max_attempts=1, initial_backoff=0.001, max_backoff=0.001)
        assert [response.part for response in face.client(server, retry=retry).send(kind)] == [3]

    def test_many_at_a_time(self, face, script, kind):
        server = script(*[fail()] * 50, answer())
        retry = Retry(initial_backoff=0.001, max_backoff=0.01, budget=None, max_attempts=99)
        client = face.client(server, retry=retry)
        calls = [client.begin(kind) for _ in range(50)]
        assert [call.responses()[0].part for call in calls] == [0] * 50
        assert len(set(server.keys)) == 50


class TestBudget:
    @pytest.mark.parametrize("way", ["send", "begin"])
    def test_calls_that_are_never_sent_again_feed_it_too(self, face, script, kind, way):
        server = script(fail(), fail(), *[answer()] * 6, fail())
        retry = Retry(max_attempts=3, initial_backoff=0.001, budget=Budget(max_tokens=4, ratio=1))
        client = face.client(server, retry=retry, keys=None)
        with keys.using("k"):
            client.error_of(Kind.UNARY)
        assert len(server.seen) == 2, "the budget is used up"
        for _ in range(6):
            if way == "send":
                client.send(kind)
            else:
                client.begin(kind).responses()
        assert server.keys[2:] == [None] * 6
        with keys.using("k"):
            client.error_of(Kind.UNARY)
        assert len(server.seen) == 2 + 6 + 2, "there is another retry"

    def test_it_is_that_of_the_channel(self, face, script):
        server = script(fail())
        retry = Retry(initial_backoff=0.001, max_backoff=0.001, budget=Budget(max_tokens=8))
        client = face.client(server, retry=retry)
        for number in range(20):
            client.error_of(ALL[number % len(ALL)])
        assert len(server.seen) == 20 + 3
        assert len(set(server.keys[:4])) == 1, "the first call got all the retries"
        face.client(server, retry=retry).error_of(Kind.UNARY)
        assert len(server.seen) == 20 + 3 + 4, "another channel has a budget of its own"


class TestPushback:
    """The server says when to come back; a deadline that passes earlier ends the call at once."""

    @pytest.mark.parametrize(
        "step",
        [
            fail(pushback=60_000),
            fail(CODE.RESOURCE_EXHAUSTED, pushback=60_000),
            status(UNAVAILABLE, delay=60),
            status(CODE.RESOURCE_EXHAUSTED, delay=60),
            refuse(Reason.IN_PROGRESS, pushback=60_000),
        ],
        ids=["pushback", "exhausted", "RetryInfo", "exhausted with RetryInfo", "in progress"],
    )
    def test_one_beyond_the_deadline_ends_the_call_at_once(self, face, script, step):
        server = script(step)
        client = face.client(server)
        for kind in ALL:
            error = client.error_of(kind, timeout=50)
            assert error.code() in (UNAVAILABLE, CODE.RESOURCE_EXHAUSTED)
        assert len(server.seen) == len(ALL)

    def test_it_is_waited_for(self, face, script, kind):
        server = script(fail(pushback=200), answer())
        began = monotonic()
        assert face.client(server).send(kind)
        assert monotonic() - began >= 0.2

    def test_a_negative_one_and_one_that_is_no_number_end_the_call(self, face, script, kind):
        server = script(*[fail(pushback=text) for text in GARBAGE])
        client = face.client(server)
        assert [client.error_of(kind).code() for _ in GARBAGE] == [UNAVAILABLE] * len(GARBAGE)
        assert len(server.seen) == len(GARBAGE)

    @pytest.mark.parametrize("step", [fail(CODE.RESOURCE_EXHAUSTED, pushback=1), fail(pushback=0)])
    def test_a_short_one_is_soon_over(self, face, script, kind, step):
        server = script(step, answer(1))
        assert face.client(server).send(kind)[0].part == 1


class TestDeadline:
    def test_an_attempt_can_have_one_of_its_own(self, face, script, kind):
        server = script(hang(), answer(5))
        client = face.client(server, retry=Retry(attempt_timeout=0.3, initial_backoff=0.001))
        assert [response.part for response in client.send(kind, timeout=DEADLINE)] == [5]
        assert len(server.seen) >= 2  # the deadline may have passed for another attempt
        assert all(seen.time_remaining < 1 for seen in server.seen)  # as gRPC rounds it
        assert len(set(server.keys)) == 1

    def test_it_is_not_for_calls_that_are_not_sent_again(self, face, script, kind):
        server = script(answer())
        client = face.client(server, retry=Retry(attempt_timeout=0.05), keys=None)
        assert client.send(kind, timeout=60)
        assert server.seen[0].time_remaining > 1

    def test_that_of_the_call_holds_without_it(self, face, script, kind):
        server = script(fail(), answer())
        assert face.client(server).send(kind, timeout=60)
        assert all(50 < seen.time_remaining < 70 for seen in server.seen)

    def test_that_of_the_call_ends_an_attempt(self, face, script, kind):
        server = script(hang())
        client = face.client(server, retry=Retry(attempt_timeout=60))
        for timeout in (0.3 * 2**times for times in count()):
            assert client.error_of(kind, timeout=timeout).code() is CODE.DEADLINE_EXCEEDED
            if server.seen:  # else it passed on the way there
                break
        assert len(server.seen) == len(set(server.keys)), "no call was sent twice"

    def test_that_of_the_call_ends_the_last_of_many_attempts(self, face, script, kind):
        server = script(hang())
        client = face.client(
            server, retry=Retry(initial_backoff=0.001, attempt_timeout=0.15, max_attempts=99, budget=None)
        )
        for timeout in (0.4 * 2**times for times in count()):
            began = monotonic()
            assert client.error_of(kind, timeout=timeout).code() is CODE.DEADLINE_EXCEEDED
            assert monotonic() - began < timeout + 5
            if max(Counter(server.keys).values(), default=0) >= 2:  # else it passed before the second
                break

    def test_that_of_the_call_is_for_all_attempts_together(self, face, script, kind):
        server = script(fail())
        client = face.client(server, retry=Retry(max_attempts=10_000, budget=None))
        for timeout in (0.5 * 2**times for times in count()):
            error = client.error_of(kind, timeout=timeout)
            assert error.code() in (UNAVAILABLE, CODE.DEADLINE_EXCEEDED)
            left = [seen.time_remaining for seen in server.seen if seen.key == server.keys[-1]]
            if len(left) >= 2:  # else it passed before the second
                assert 2 * timeout > left[0] >= left[-1]
                break

    def test_calls_without_one_have_none(self, face, script):
        server = script(fail(), answer())
        face.client(server).send(Kind.UNARY, REQUEST)
        assert all(seen.time_remaining > 1e6 for seen in server.seen)
