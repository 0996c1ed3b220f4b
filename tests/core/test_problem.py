"""Refusals as they are on the wire, and how clients recognize them."""

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.problem import (
    DOMAIN,
    PUSHBACK,
    STATUS_DETAILS,
    Problem,
    Reason,
    is_refusal,
    pushback_ms,
    reason_in,
)

CODES = {
    Reason.KEY_REQUIRED: Code.INVALID_ARGUMENT,
    Reason.KEY_INVALID: Code.INVALID_ARGUMENT,
    Reason.KEY_REUSED: Code.INVALID_ARGUMENT,
    Reason.TOKEN_UNKNOWN: Code.FAILED_PRECONDITION,
    Reason.TOKEN_MISMATCH: Code.PERMISSION_DENIED,
    Reason.IN_PROGRESS: Code.UNAVAILABLE,
    Reason.OUTCOME_PENDING: Code.UNAVAILABLE,
    Reason.OUTCOME_UNKNOWN: Code.FAILED_PRECONDITION,
    Reason.RESPONSE_NOT_KEPT: Code.FAILED_PRECONDITION,
    Reason.STORE_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.OVERLOADED: Code.UNAVAILABLE,
    Reason.ETAG_MISMATCH: Code.ABORTED,
    Reason.MASK_INVALID: Code.INVALID_ARGUMENT,
}
"""The table of the wire format, which clients in other languages rely on."""


def details(outcome: Outcome) -> bytes:
    value = outcome.trailer(STATUS_DETAILS)
    assert isinstance(value, bytes)
    return value


def unpacked(outcome: Outcome, kind):
    found = []
    for detail in status_pb2.Status.FromString(details(outcome)).details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def foreign(domain: str, reason: str = "IN_PROGRESS") -> bytes:
    status = status_pb2.Status(code=14)
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain=domain, reason=reason))
    return status.SerializeToString()


@pytest.mark.parametrize(("reason", "code"), CODES.items())
def test_the_status_of_every_reason(reason, code):
    assert reason.code is code
    assert reason.retryable is (code is Code.UNAVAILABLE)


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_has_the_same_code_and_reason_in_its_rich_status(reason):
    outcome = Problem(reason).outcome()
    status = status_pb2.Status.FromString(details(outcome))
    assert (status.code, status.message) == (outcome.code, outcome.details)
    assert outcome.code is reason.code
    assert outcome.details
    (info,) = unpacked(outcome, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == (DOMAIN, reason)
    assert reason_in(details(outcome)) is reason
    assert is_refusal(outcome)


@pytest.mark.parametrize("reason", Reason)
def test_only_retryable_refusals_have_a_retry_delay(reason):
    outcome = Problem(reason).outcome(previous_attempts=1, uniform=lambda low, high: 1.0)
    delays = [info.retry_delay.ToMilliseconds() for info in unpacked(outcome, error_details_pb2.RetryInfo)]
    assert delays == ([1250] if reason.retryable else [])
    assert outcome.trailer(PUSHBACK) == ("1250" if reason.retryable else None)


def test_a_problem_may_have_its_own_details():
    assert Problem(Reason.KEY_INVALID, "two keys").outcome().details == "two keys"


def test_the_pushback_grows_fivefold_up_to_the_last_attempt():
    waits = [pushback_ms(n, lambda low, high: 1.0) for n in range(6)]
    assert waits == [250, 1250, 6250, 31_250, 31_250, 31_250]


@given(st.integers(0, 10**9))
def test_the_pushback_is_jittered_by_a_fifth(attempts):
    middle = 250 * 5 ** min(attempts, 3)
    assert round(0.8 * middle) <= pushback_ms(attempts) <= round(1.2 * middle)
    assert pushback_ms(attempts, lambda low, high: low) == round(0.8 * middle)
    assert pushback_ms(attempts, lambda low, high: high) == round(1.2 * middle)


def test_a_refusal_is_recognized_by_the_domain_of_its_error_info():
    assert reason_in(foreign(DOMAIN)) is Reason.IN_PROGRESS
    assert reason_in(foreign("example.com")) is None
    assert not is_refusal(Outcome(trailing_metadata=((STATUS_DETAILS, foreign("example.com")),)))


def test_an_unknown_reason_is_still_a_refusal():
    later = foreign(DOMAIN, "NOT_THOUGHT_OF_YET")
    assert reason_in(later) is None
    assert is_refusal(Outcome(trailing_metadata=((STATUS_DETAILS, later),)))


def test_a_status_without_error_info_is_no_refusal():
    assert not is_refusal(Outcome(Code.UNAVAILABLE))
    assert not is_refusal(Outcome(trailing_metadata=((STATUS_DETAILS, b""),)))


def test_a_malformed_detail_is_no_refusal():
    broken = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    status = status_pb2.Status(details=[broken]).SerializeToString()
    assert reason_in(status) is None


@given(st.binary())
def test_no_bytes_raise(value):
    reason_in(value)
    is_refusal(Outcome(trailing_metadata=((STATUS_DETAILS, value),)))
