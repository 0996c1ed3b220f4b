"""The parts of the core that both clients use, by themselves."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Budget, Reason, Retry
from idem_grpc._client.answers import Failure, failure, replayed_in, run_in
from idem_grpc._client.channel import Channel, with_key
from idem_grpc._client.engine import (
    NO_RUN,
    NO_TOKEN,
    TOO_LARGE,
    Backoff,
    Delivery,
    Engine,
    Finish,
    Renew,
    Send,
    add_note,
)
from idem_grpc._client.retry import Bucket
from idem_grpc._core.messages import size_of, snapshot
from idem_grpc._core.outcome import Code
from tests.client.sources import Source

DOWN = Failure(Code.UNAVAILABLE)
RUN_R = (("idempotency-run", "r"),)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DETAILS = "grpc-status-details-bin"


def rich(*details):
    status = status_pb2.Status(code=14)
    for detail in details:
        status.details.add().Pack(detail)
    return DETAILS, status.SerializeToString()


def failed(code, metadata) -> Failure:
    found = failure(code, metadata)
    assert found is not None
    return found


class TestFailures:
    @pytest.mark.parametrize(
        ("metadata", "pushback"),
        [
            ((), None),
            (None, None),
            ((("grpc-retry-pushback-ms", "1500"),), 1.5),
            ((("grpc-retry-pushback-ms", "0"),), 0),
            ((("grpc-retry-pushback-ms", "-1"),), -0.001),
            ((("grpc-retry-pushback-ms", "soon"),), -1),
            ((("grpc-retry-pushback-ms", ""),), -1),
            ((("grpc-retry-pushback-ms", "9" * 400),), -1),
            ((rich(error_details_pb2.RetryInfo()),), 0),
            ((("grpc-retry-pushback-ms", "7"), rich(error_details_pb2.RetryInfo())), 0.007),
            (((DETAILS, b"\xff\xff"),), None),
        ],
        ids=str,
    )
    def test_when_to_come_back(self, metadata, pushback):
        assert failed(UNAVAILABLE, metadata).pushback == pushback

    def test_every_code_has_its_own(self):
        assert failure(grpc.StatusCode.OK, ()) is None
        for code in grpc.StatusCode:
            if code is not grpc.StatusCode.OK:
                assert failed(code, ()).code is Code(code.value[0])

    def test_refusals_of_others_are_no_reason_of_ours(self):
        other = error_details_pb2.ErrorInfo(domain="other", reason="IN_PROGRESS")
        ours = error_details_pb2.ErrorInfo(domain="idem_grpc", reason="IN_PROGRESS")
        unknown = error_details_pb2.ErrorInfo(domain="idem_grpc", reason="NEWER_THAN_THIS")
        assert failed(UNAVAILABLE, (rich(other),)).reason is None
        assert failed(UNAVAILABLE, (rich(unknown),)).reason is None
        assert failed(UNAVAILABLE, (rich(other, ours),)).reason is Reason.IN_PROGRESS

    def test_what_a_run_is_known_by(self):
        assert run_in(None) == run_in(()) == ""
        assert run_in((("idempotency-run", "r"),)) == "r"
        assert replayed_in(None) is None
        assert replayed_in((("idempotency-run", "r"),)) is False
        assert replayed_in((("idempotency-run", "r"), ("idempotency-replayed", "true"))) is True


class TestEngine:
    def test_notes(self):
        engine = Engine(Retry(initial_backoff=0.001), Bucket(None), timeout=None, may_retry=True)
        error = ValueError()
        first = engine.begin()
        engine.annotate(error)
        assert not hasattr(error, "__notes__")
        assert isinstance(engine.ended(first.attempt, DOWN), Backoff)
        second = engine.timer()
        assert isinstance(second, Send)
        assert engine.ended(second.attempt, DOWN, is_whole=False) is Finish.AS_ENDED
        engine.annotate(error)
        engine.annotate(error)
        assert error.__notes__ == ["idem_grpc: 2 attempts were made", f"idem_grpc: {TOO_LARGE}"]

    def test_success_is_paid_into_the_budget(self):
        bucket = Bucket(Budget(max_tokens=2, ratio=1))
        bucket.take()
        engine = Engine(Retry(), bucket, timeout=None, may_retry=True)
        assert engine.ended(engine.begin().attempt, None) is Finish.AS_ENDED
        assert bucket.take() is False


class TestRenewal:
    UNKNOWN = Failure(Code.FAILED_PRECONDITION, Reason.TOKEN_UNKNOWN)

    def engine(self, source):
        return Engine(
            Retry(initial_backoff=0.001),
            Bucket(None),
            timeout=None,
            may_retry=True,
            source=source,
            key="first",
        )

    def test_a_key_that_the_server_does_not_know_is_replaced_once(self):
        source = Source()
        engine = self.engine(source)
        assert isinstance(engine.ended(engine.begin().attempt, self.UNKNOWN), Renew)
        assert isinstance(engine.renewed("second"), Send)
        assert engine.ended(2, self.UNKNOWN) is Finish.AS_ENDED
        assert source.dropped == ["first", "second"]

    def test_it_is_not_replaced_once_the_call_may_have_been_run(self):
        engine = self.engine(Source())
        assert isinstance(engine.ended(engine.begin().attempt, DOWN), Backoff)
        assert isinstance(engine.timer(), Send)
        assert engine.ended(2, self.UNKNOWN) is Finish.AS_ENDED

    def test_it_is_replaced_after_attempts_of_which_none_was_run(self):
        engine = self.engine(Source())
        away = Failure(Code.UNAVAILABLE, Reason.STORE_UNAVAILABLE)
        assert isinstance(engine.ended(engine.begin().attempt, away), Backoff)
        assert isinstance(engine.timer(), Send)
        assert isinstance(engine.ended(2, self.UNKNOWN), Renew)

    def test_a_refusal_that_a_run_passed_on_is_not_about_the_key(self):
        source = Source()
        engine = self.engine(source)
        passed_on = Failure(Code.FAILED_PRECONDITION, Reason.TOKEN_UNKNOWN, of_run=True)
        assert engine.ended(engine.begin().attempt, passed_on) is Finish.AS_ENDED
        assert not source.dropped

    def test_there_is_no_other_key(self):
        engine = self.engine(Source())
        engine.ended(engine.begin().attempt, self.UNKNOWN)
        assert engine.not_renewed(LookupError("none")) is Finish.AS_ENDED
        error = ValueError()
        engine.annotate(error)
        assert error.__notes__ == [f"idem_grpc: {NO_TOKEN}LookupError('none')"]


class TestStreams:
    """What of a response stream is handed over, and whether another attempt can go on from there."""

    def engine(self):
        engine = Engine(Retry(initial_backoff=0.001), Bucket(None), timeout=None, may_retry=True)
        engine.begin()
        return engine

    def again(self, engine):
        assert isinstance(engine.ended(engine.attempts, DOWN), Backoff)
        assert isinstance(engine.timer(), Send)

    def test_nothing_was_handed_over(self):
        engine = self.engine()
        self.again(engine)
        assert not engine.is_behind
        assert engine.delivered(2, None) is Delivery.HAND_OVER

    def test_the_same_run(self):
        engine = self.engine()
        for _ in range(2):
            assert engine.delivered(1, RUN_R) is Delivery.HAND_OVER
        self.again(engine)
        assert engine.is_behind
        found = [engine.delivered(2, RUN_R) for _ in range(3)]
        assert found == [Delivery.SKIP, Delivery.SKIP, Delivery.HAND_OVER]
        assert engine.handed_from == 2

    @pytest.mark.parametrize("metadata", [(("idempotency-run", "s"),), (), None])
    def test_another_run(self, metadata):
        engine = self.engine()
        engine.delivered(1, RUN_R)
        self.again(engine)
        assert engine.delivered(2, metadata) is Finish.AS_INTERRUPTED
        assert engine.handed_from == 1

    def test_a_shorter_answer(self):
        engine = self.engine()
        engine.delivered(1, RUN_R)
        self.again(engine)
        assert engine.ended(2, None) is Finish.AS_INTERRUPTED

    def test_a_run_that_is_not_known(self):
        engine = self.engine()
        assert engine.delivered(1, None) is Delivery.HAND_OVER
        assert engine.ended(1, DOWN) is Finish.AS_ENDED
        error = ValueError()
        engine.annotate(error)
        assert error.__notes__ == [f"idem_grpc: {NO_RUN}"]


class TestChannel:
    @pytest.mark.parametrize(
        ("retry", "keys", "will"),
        [
            (Retry(), lambda outgoing: "k", True),
            (Retry(), None, False),
            (Retry(max_attempts=1), lambda outgoing: "k", True),
            (None, lambda outgoing: "k", False),
        ],
    )
    def test_which_calls_it_retries(self, retry, keys, will):
        channel = Channel(keys, retry, derive=True)
        chosen = channel.choose("/tests.v1.LedgerService/Unary", pb.LedgerRequest(), None)
        assert channel.will_retry(chosen) is will


def test_metadata_with_a_key():
    assert with_key(None, None) is None
    assert with_key([("a", "1")], None) == (("a", "1"),)
    assert with_key(None, "k") == (("idempotency-key", "k"),)
    assert with_key([("a", b"1")], "k") == (("a", b"1"), ("idempotency-key", "k"))


def test_snapshots_and_sizes():
    request = pb.LedgerRequest(order="one")
    copy = snapshot(request)
    request.order = "another"
    assert copy.order == "one"
    assert snapshot(b"bytes") == b"bytes"
    assert size_of(copy) == len(copy.SerializeToString())
    assert size_of(b"123") == 3
    assert size_of("text") is None


def test_a_note_is_added_once():
    error = ValueError()
    add_note(error, "so")
    add_note(error, "so")
    assert error.__notes__ == ["idem_grpc: so"]
