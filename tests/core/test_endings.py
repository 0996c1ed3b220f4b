"""The class of ending that each status code belongs to."""

import pytest

from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.policy import Rules
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.steps import ENDINGS, Ending, ending_of

DEFAULT = Rules.of("/a.B/C", []).replay_errors

CLASSES = {
    Ending.DECIDED: "OK NOT_FOUND ALREADY_EXISTS FAILED_PRECONDITION",
    Ending.FIXABLE: "INVALID_ARGUMENT OUT_OF_RANGE UNIMPLEMENTED PERMISSION_DENIED UNAUTHENTICATED",
    Ending.NOT_NOW: "RESOURCE_EXHAUSTED ABORTED",
    Ending.UNCLEAR: "UNKNOWN INTERNAL DATA_LOSS UNAVAILABLE CANCELLED DEADLINE_EXCEEDED",
}


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_every_code_has_one_ending(code):
    classes = [ending for ending, codes in CLASSES.items() if code.name in codes.split()]
    assert classes == [ending_of(Outcome(code), DEFAULT)]


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_a_policy_can_keep_any_error(code):
    assert ending_of(Outcome(code), frozenset({code})) is Ending.DECIDED


def test_a_policy_can_keep_no_error():
    assert ending_of(Outcome(Code.NOT_FOUND), frozenset()) is Ending.UNCLEAR
    assert ending_of(Outcome(Code.OK), frozenset()) is Ending.DECIDED


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_passed_on_from_downstream_is_never_kept(reason):
    refusal = Problem(reason).outcome()
    assert ending_of(refusal, frozenset(Code)) is ENDINGS.get(reason.code, Ending.UNCLEAR)
    assert ending_of(refusal, DEFAULT) is not Ending.DECIDED
