"""Calls of all kinds against a server that fails as the test says, and what their callers see."""

import gc
import threading

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
from idem_grpc import Budget, Reason, Retry
from tests.client.conftest import FAST, send
from tests.client.scripted import UNAVAILABLE, answer, fail, hang, refuse, status
from tests.server.client import REPLAYED, RUN, Kind
from tests.server.ledger import DEADLINE

REQUEST = pb.LedgerRequest(order="one")
CODE = grpc.StatusCode
UNKEYED = pb.LedgerRequest(order="unkeyed")


def keyed(outgoing):
    """A key for the calls whose request is REQUEST."""
    return "k" if outgoing.request == REQUEST else None


def error_of(stub, kind=Kind.UNARY, *requests, **options):
    with pytest.raises(grpc.RpcError) as caught:
        send(stub, kind, *requests or [REQUEST], **options)
    return caught.value


def notes(error):
    return list(getattr(error, "__notes__", ()))


class TestAttempts:
    def test_all_attempts_of_a_call_bear_the_same_key_and_no_two_calls_do(self, script, stub_of, kind):
        server = script(fail(), fail(), answer(), fail(), answer())
        stub = stub_of(server)
        send(stub, kind, REQUEST)
        send(stub, kind, REQUEST)
        keys = server.keys
        assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4]

    def test_every_attempt_is_sent_the_same(self, script, stub_of, kind):
        server = script(fail(read=True), answer(7))
        requests = [pb.LedgerRequest(order="one", part=part) for part in range(3)]
        responses = send(stub_of(server), kind, *requests, metadata=(("who", "me"),))
        assert [response.part for response in responses] == [7]
        first, second = server.seen
        assert first.requests == second.requests != []
        assert first.metadata["who"] == second.metadata["who"] == "me"

    def test_the_last_failure_is_the_calls_own_and_its_notes_tell_of_the_others(self, script, stub_of, kind):
        server = script(fail(), fail(), fail(CODE.NOT_FOUND, trailing=(("why", "so"),)))
        error = error_of(stub_of(server), kind)
        assert error.code() is CODE.NOT_FOUND
        assert error.details() == "as the script says"
        assert ("why", "so") in tuple(error.trailing_metadata())
        assert notes(error) == ["idem_grpc: 3 attempts were made"]

    def test_one_attempt_needs_no_note(self, script, stub_of, kind):
        assert not notes(error_of(stub_of(script(fail(CODE.NOT_FOUND))), kind))

    def test_attempts_are_limited(self, script, stub_of, kind):
        server = script(fail())
        retry = Retry(max_attempts=3, initial_backoff=0.001)
        assert error_of(stub_of(server, retry=retry), kind).code() is UNAVAILABLE
        assert len(server.seen) == 3

    @pytest.mark.parametrize("retry", [Retry(max_attempts=1), None], ids=["one attempt", "native"])
    def test_a_key_without_retries(self, script, stub_of, kind, retry):
        server = script(fail(), answer(4))
        stub = stub_of(server, retry=retry)
        error = error_of(stub, kind)
        assert error.code() is UNAVAILABLE
        assert not notes(error)
        assert [response.part for response in send(stub, kind, REQUEST)] == [4]
        assert all(server.keys)
        assert len(set(server.keys)) == 2

    def test_a_call_without_a_key_is_sent_once(self, script, stub_of, kind):
        server = script(fail())
        error_of(stub_of(server, keys=None), kind)
        assert server.keys == [None]

    def test_a_method_that_changes_nothing_is_sent_again_without_a_key(self, script, stub_of):
        server = script(fail(), answer())
        send(stub_of(server), Kind.READ, REQUEST)
        assert server.keys == [None, None]

    @pytest.mark.parametrize("reason", [reason for reason in Reason if not reason.retryable])
    def test_refusals_that_stand_are_not_asked_for_again(self, script, stub_of, reason):
        server = script(refuse(reason), answer())
        error = error_of(stub_of(server, retry=Retry(codes=[reason.code.name], initial_backoff=0.001)))
        assert idem_grpc.reason(error) is reason
        assert len(server.seen) == 1

    @pytest.mark.parametrize("reason", [Reason.IN_PROGRESS, Reason.OUTCOME_PENDING])
    def test_an_answer_on_its_way_is_waited_for_however_often(self, script, stub_of, kind, reason):
        server = script(*[refuse(reason, pushback=1)] * 20, answer(3))
        retry = Retry(max_attempts=2, initial_backoff=0.001, max_backoff=0.001, budget=Budget(max_tokens=1))
        assert [response.part for response in send(stub_of(server, retry=retry), kind, REQUEST)] == [3]

    def test_one_attempt_waits_for_an_answer_on_its_way(self, script, stub_of, kind):
        server = script(*[refuse(Reason.IN_PROGRESS, pushback=1)] * 3, answer(3))
        retry = Retry(max_attempts=1, initial_backoff=0.001, max_backoff=0.001)
        assert [response.part for response in send(stub_of(server, retry=retry), kind, REQUEST)] == [3]

    @pytest.mark.parametrize("way", ["blocking", "future"])
    def test_calls_that_are_never_sent_again_feed_the_budget_too(self, script, stub_of, kind, way):
        server = script(fail(), fail(), *[answer()] * 6, fail())
        retry = Retry(max_attempts=3, initial_backoff=0.001, budget=Budget(max_tokens=4, ratio=1))
        stub = stub_of(server, retry=retry, keys=keyed)
        error_of(stub)
        assert len(server.seen) == 2, "the budget is used up"
        for _ in range(6):
            if way == "future" and not kind.has_response_stream:
                method = getattr(stub, kind.value)
                method.future(iter([UNKEYED]) if kind.has_request_stream else UNKEYED).result(DEADLINE)
            else:
                send(stub, kind, UNKEYED)
        assert server.keys[2:] == [None] * 6
        error_of(stub)
        assert len(server.seen) == 2 + 6 + 2, "there is another retry"

    def test_a_stream_that_nobody_holds_is_cancelled_where_it_is_never_sent_again(self, script, stub_of):
        server = script(hang(threading.Event()))
        call = stub_of(server, keys=None).ServerStream(REQUEST)
        server.await_calls(1)
        del call
        gc.collect()
        assert server.seen[0].is_gone.wait(DEADLINE)

    def test_the_budget_stops_retries_of_the_whole_channel(self, script, stub_of):
        server = script(fail())
        retry = Retry(initial_backoff=0.001, max_backoff=0.001, budget=Budget(max_tokens=8))
        stub = stub_of(server, retry=retry)
        for _ in range(20):
            error_of(stub)
        assert len(server.seen) == 20 + 3
        error_of(stub_of(server, retry=retry))
        assert len(server.seen) == 20 + 3 + 4, "another channel has a budget of its own"


class TestPushback:
    """What the server says is obeyed; that nothing comes earlier is shown by a deadline it outlasts."""

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
    def test_it_is_waited_and_a_deadline_that_it_outlasts_ends_the_call_at_once(self, script, stub_of, step):
        server = script(step)
        error = error_of(stub_of(server), timeout=50)
        assert error.code() in (UNAVAILABLE, CODE.RESOURCE_EXHAUSTED)
        assert len(server.seen) == 1

    @pytest.mark.parametrize("text", ["-1", "-9999999", "soon", "", "1.5", "9" * 400, "9" * 5000], ids=len)
    def test_negative_and_garbage_stop(self, script, stub_of, text):
        server = script(fail(pushback=text), answer())
        assert error_of(stub_of(server)).code() is UNAVAILABLE
        assert len(server.seen) == 1

    @pytest.mark.parametrize("step", [fail(CODE.RESOURCE_EXHAUSTED, pushback=1), fail(pushback=0)])
    def test_a_short_one_is_soon_over(self, script, stub_of, step):
        server = script(step, answer(1))
        assert stub_of(server).Unary(REQUEST).part == 1

    def test_exhausted_without_one_is_the_answer(self, script, stub_of):
        server = script(fail(CODE.RESOURCE_EXHAUSTED), answer())
        assert error_of(stub_of(server)).code() is CODE.RESOURCE_EXHAUSTED
        assert len(server.seen) == 1


class TestDeadline:
    def test_a_lost_reply_is_noticed_by_the_attempts_own(self, script, stub_of, kind):
        server = script(hang(threading.Event()), answer(5))
        retry = Retry(attempt_timeout=0.3, initial_backoff=0.001)
        responses = send(stub_of(server, retry=retry), kind, REQUEST, timeout=30)
        assert [response.part for response in responses] == [5]
        assert all(seen.time_remaining < 1 for seen in server.seen)  # as gRPC rounds it

    def test_the_calls_own_wins(self, script, stub_of, kind):
        server = script(*[hang(threading.Event()) for _ in range(8)])
        stub = stub_of(server, retry=Retry(attempt_timeout=60))
        timeout = 0.3
        while not server.seen:  # unless it passed on the way there
            assert error_of(stub, kind, timeout=timeout).code() is CODE.DEADLINE_EXCEEDED
            timeout *= 2
        assert len(server.seen) == len(set(server.keys)), "no call was sent twice"

    def test_it_holds_for_all_attempts_together(self, script, stub_of, kind):
        server = script(fail())
        stub = stub_of(server, retry=Retry(max_attempts=10_000, budget=None))
        left: list[float] = []
        timeout = 0.25
        while len(left) < 2:  # unless it passed before the second attempt
            timeout *= 2
            error = error_of(stub, kind, timeout=timeout)
            assert error.code() in (UNAVAILABLE, CODE.DEADLINE_EXCEEDED)
            left = [seen.time_remaining for seen in server.seen if seen.key == server.keys[-1]]
        assert 2 * timeout > left[0] >= left[-1]

    def test_calls_without_one_have_none(self, script, stub_of):
        server = script(fail(), answer())
        stub_of(server).Unary(REQUEST)
        assert all(seen.time_remaining > 1e6 for seen in server.seen)


class TestManners:
    def test_with_call(self, script, stub_of):
        server = script(fail(), answer(2, run="r", trailing=(("end", "well"),)))
        response, call = stub_of(server).Unary.with_call(REQUEST)
        assert response.part == 2
        assert call.code() is CODE.OK
        assert dict(call.initial_metadata())[RUN] == "r"
        assert dict(call.trailing_metadata())["end"] == "well"

    def test_waiting_for_a_server_to_appear(self, script, stub_of):
        class Nowhere:
            address = "127.0.0.1:1"  # where nobody listens

        stub = stub_of(Nowhere, retry=FAST)
        error = error_of(stub, timeout=30)
        assert error.code() is UNAVAILABLE
        assert notes(error) == ["idem_grpc: 10 attempts were made"]
        error = error_of(stub, timeout=0.2, wait_for_ready=True)
        assert error.code() is CODE.DEADLINE_EXCEEDED
        assert not notes(error)

    def test_compression_and_credentials_go_along_with_every_attempt(self, script, stub_of, kind):
        details = []

        class Inside(
            grpc.UnaryUnaryClientInterceptor,
            grpc.UnaryStreamClientInterceptor,
            grpc.StreamUnaryClientInterceptor,
            grpc.StreamStreamClientInterceptor,
        ):
            def _note(self, continuation, given, request):
                details.append(given)
                return continuation(given._replace(credentials=None), request)  # for want of TLS

            intercept_unary_unary = intercept_unary_stream = _note
            intercept_stream_unary = intercept_stream_stream = _note

        server = script(fail(), answer())
        credentials = grpc.access_token_call_credentials("token")
        options = {
            "compression": grpc.Compression.Gzip,
            "wait_for_ready": True,
            "credentials": credentials,
            "timeout": 30,
        }
        send(stub_of(server, inside=[Inside()]), kind, REQUEST, **options)
        assert len(details) == 2
        for given in details:
            assert given.compression is grpc.Compression.Gzip
            assert given.wait_for_ready is True
            assert given.credentials is credentials
            assert given.method == kind.path
            assert 25 < given.timeout <= 30

    def test_a_key_that_may_not_be_sent_is_the_callers_fault(self, script, stub_of):
        server = script(answer())
        stub = stub_of(server, keys=lambda outgoing: "no blanks")
        with pytest.raises(ValueError, match="'no blanks'"):
            stub.Unary(REQUEST)
        with pytest.raises(ValueError, match="'no blanks'"):
            stub.Unary.future(REQUEST).result()
        with pytest.raises(ValueError, match="'no blanks'"):
            list(stub.ServerStream(REQUEST))
        assert not server.seen

    def test_reason_and_replayed(self, script, stub_of):
        again = answer(run="r", trailing=[(REPLAYED, "true")])
        server = script(answer(run="r"), again, answer())
        stub = stub_of(server)
        found = [idem_grpc.replayed(stub.Unary.with_call(REQUEST)[1]) for _ in range(3)]
        assert found == [False, True, None]
        assert idem_grpc.reason(ValueError()) is None
        assert idem_grpc.reason(error_of(stub_of(script(fail(CODE.NOT_FOUND))))) is None
