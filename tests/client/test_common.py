"""The parts of the core that both clients use, by themselves."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Budget, Reason, Retry
from idem_grpc._client.answers import failure, replayed_in, run_in
from idem_grpc._client.common import (
    Channel,
    Handed,
    Trial,
    add_note,
    once,
    single,
    size_of,
    snapshot,
    with_key,
)
from idem_grpc._client.retry import Tokens
from idem_grpc._core.outcome import Code

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DETAILS = "grpc-status-details-bin"


def rich(*details):
    status = status_pb2.Status(code=14)
    for detail in details:
        status.details.add().Pack(detail)
    return DETAILS, status.SerializeToString()


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
        assert failure(UNAVAILABLE, metadata).pushback == pushback

    def test_every_code_has_its_own(self):
        for code in grpc.StatusCode:
            assert failure(code, ()).code is Code(code.value[0])

    def test_refusals_of_others_are_no_reason_of_ours(self):
        other = error_details_pb2.ErrorInfo(domain="other", reason="IN_PROGRESS")
        ours = error_details_pb2.ErrorInfo(domain="idem_grpc", reason="IN_PROGRESS")
        unknown = error_details_pb2.ErrorInfo(domain="idem_grpc", reason="NEWER_THAN_THIS")
        assert failure(UNAVAILABLE, (rich(other),)).reason is None
        assert failure(UNAVAILABLE, (rich(unknown),)).reason is None
        assert failure(UNAVAILABLE, (rich(other, ours),)).reason is Reason.IN_PROGRESS

    def test_what_a_run_is_known_by(self):
        assert run_in(None) == run_in(()) == ""
        assert run_in((("idempotency-run", "r"),)) == "r"
        assert replayed_in(None) is None
        assert replayed_in((("idempotency-run", "r"),)) is False
        assert replayed_in((("idempotency-run", "r"), ("idempotency-replayed", "true"))) is True


class TestTrial:
    def test_what_it_counts_and_tells(self):
        trial = Trial(Retry(initial_backoff=0.001), Tokens(None), True, None)
        error = ValueError()
        trial.attempt()
        trial.note(error)
        assert not hasattr(error, "__notes__")
        assert trial.failed(UNAVAILABLE, ()) is not None
        trial.attempt()
        assert trial.failed(UNAVAILABLE, (), can_resend=False) is None
        assert trial.was_held_back
        trial.note(error, "more")
        trial.note(error, "more")
        assert error.__notes__ == ["idem_grpc: 2 attempts were made", "idem_grpc: more"]

    def test_success_is_paid_into_the_budget(self):
        tokens = Tokens(Budget(max_tokens=2, ratio=1))
        tokens.take()
        trial = Trial(Retry(), tokens, True, None)
        trial.attempt()
        trial.succeeded()
        assert tokens.take() is False
        assert trial.made == 1

    def test_one_that_is_never_sent_again(self):
        trial = single(7.0)
        assert trial.attempt() == pytest.approx(7.0, abs=0.5)
        assert trial.failed(UNAVAILABLE, (("grpc-retry-pushback-ms", "1"),)) is None
        assert not trial.was_held_back


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


class TestHanded:
    def test_nothing_yet(self):
        handed = Handed()
        assert handed.can_resend
        assert handed.to_skip(None) == 0

    def test_metadata_is_asked_for_once(self):
        handed = Handed()
        handed.add(lambda: (("idempotency-run", "r"),))
        handed.add(pytest.fail)
        assert handed.can_resend
        assert handed.to_skip((("idempotency-run", "r"),)) == 2
        assert handed.to_skip((("idempotency-run", "s"),)) is None
        assert handed.to_skip(()) is None

    def test_a_run_that_is_not_known(self):
        handed = Handed()
        handed.add(lambda: None)
        assert not handed.can_resend
        assert handed.to_skip(()) is None


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


def test_once():
    done: list[int] = []
    do = once(lambda: done.append(1))
    do()
    do()
    assert len(done) == 1


def test_a_note_is_added_once():
    error = ValueError()
    add_note(error, "so")
    add_note(error, "so")
    assert error.__notes__ == ["idem_grpc: so"]
