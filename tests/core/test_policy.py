"""Policies are layered field by field, and invalid ones are refused with a reason."""

import math
from datetime import timedelta

import pytest

from idem_grpc._core.outcome import Code
from idem_grpc._core.policy import KeyRule, OnOutage, Policy, Rules
from idem_grpc._core.record import OnUnclear

METHOD = "/shop.v1.Orders/Create"


def rules(*layers: Policy) -> Rules:
    return Rules.of(METHOD, layers)


def test_the_defaults():
    defaults = {
        "operation": METHOD,
        "key": KeyRule.OPTIONAL,
        "retention": 86400.0,
        "lease": 30.0,
        "wait": 10.0,
        "max_run": 3600.0,
        "on_unclear": OnUnclear.RERUN,
        "on_outage": OnOutage.REFUSE,
        "replay_errors": {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION},
        "ignore": (),
        "max_response_bytes": 1024 * 1024,
    }
    assert {field: getattr(rules(), field) for field in defaults} == defaults


def test_a_field_is_decided_by_the_first_layer_that_sets_it():
    method = Policy(lease=1, ignore=[])
    wildcard = Policy(lease=2, retention=100, ignore=["trace"])
    default = Policy(lease=3, retention=200, wait=5)
    decided = rules(method, wildcard, default)
    assert (decided.lease, decided.retention, decided.wait, decided.ignore) == (1, 100, 5, ())


def test_zero_and_empty_override_later_layers():
    nothing = Policy(wait=0, max_response_bytes=0, replay_errors=(), ignore=())
    decided = rules(nothing, Policy(wait=7, max_response_bytes=7, replay_errors=["ABORTED"], ignore=["a"]))
    assert (decided.wait, decided.max_response_bytes) == (0, 0)
    assert (decided.replay_errors, decided.ignore) == (frozenset(), ())


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (timedelta(minutes=1), 60.0),
        (60, 60.0),
        (1.5, 1.5),
        (1.23456, 1.235),
        (timedelta(microseconds=1600), 0.002),
    ],
)
def test_durations_are_timedeltas_or_seconds_to_the_millisecond(given, seconds):
    assert rules(Policy(lease=given)).lease == seconds


@pytest.mark.parametrize("field", ["retention", "lease", "max_run", "wait"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (timedelta(days=4000), ValueError),
        ("1h", TypeError),
        (True, TypeError),
    ],
)
def test_a_duration_of_another_type_or_range_is_refused(field, value, error):
    with pytest.raises(error, match=f"Policy\\({field}="):
        Policy(**{field: value})


@pytest.mark.parametrize("field", ["retention", "lease", "max_run"])
@pytest.mark.parametrize("value", [0, 0.0004, timedelta(0)])
def test_only_wait_may_be_zero(field, value):
    assert rules(Policy(wait=value)).wait == 0
    with pytest.raises(ValueError, match=f"Policy\\({field}="):
        Policy(**{field: value})


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"key": "required"}, TypeError, "give a member of KeyRule"),
        ({"on_unclear": "fail"}, TypeError, "give a member of OnUnclear"),
        ({"on_outage": True}, TypeError, "give a member of OnOutage"),
        ({"operation": ""}, ValueError, "leave it out"),
        ({"operation": 5}, TypeError, "give a name, such as"),
        ({"max_response_bytes": -1}, ValueError, "give 0 or more"),
        ({"max_response_bytes": 1.5}, TypeError, "give a whole number"),
        ({"max_response_bytes": "1MB"}, TypeError, "give a whole number"),
        ({"max_response_bytes": True}, TypeError, "give a whole number"),
        ({"ignore": "trace"}, TypeError, "not one string"),
        ({"ignore": 5}, TypeError, "give a collection of fields"),
        ({"ignore": [1]}, TypeError, "1 is not a field: give dotted paths"),
        ({"ignore": [""]}, TypeError, "'' is not a field"),
        ({"replay_errors": "NOT_FOUND"}, TypeError, "not one string"),
        ({"replay_errors": Code.ABORTED}, TypeError, "give a collection of status codes"),
        ({"replay_errors": iter([Code.ABORTED])}, TypeError, "give a collection of status codes"),
        ({"replay_errors": ["OK"]}, ValueError, "OK is not an error: leave it out"),
        ({"replay_errors": ["NOT_A_CODE"]}, ValueError, "NOT_A_CODE is not"),
        ({"replay_errors": [5]}, ValueError, "5 is not"),
    ],
)
def test_an_invalid_policy_is_refused_and_the_error_says_what_is_valid(fields, error, says):
    with pytest.raises(error, match=says):
        Policy(**fields)


def test_replay_errors_are_codes_or_their_names():
    assert rules(Policy(replay_errors=[Code.ABORTED, "INTERNAL"])).replay_errors == {
        Code.ABORTED,
        Code.INTERNAL,
    }


def test_ignored_fields_are_sorted_and_unique():
    assert rules(Policy(ignore=["b", "a", "b"])).ignore == ("a", "b")


def test_methods_that_name_an_operation_share_it():
    assert rules(Policy(operation="order")).operation == "order"


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy(retention=119.999, lease=30), "at least four leases"),
        (Policy(max_run=29.999), "at least one lease"),
        (Policy(on_outage=OnOutage.RUN, on_unclear=OnUnclear.FAIL), "may run a call twice"),
        (Policy(on_outage=OnOutage.RUN, key=KeyRule.TOKEN), "may run a call twice"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_for_the_method(policy, says):
    with pytest.raises(ValueError, match=f"{METHOD}: .*{says}"):
        rules(policy)


def test_a_contradiction_between_layers_is_found():
    with pytest.raises(ValueError, match="may run a call twice"):
        rules(Policy(on_outage=OnOutage.RUN), Policy(on_unclear=OnUnclear.FAIL))


def test_a_retention_of_exactly_four_leases_is_valid():
    assert rules(Policy(retention=120, lease=30, max_run=30)).retention == 120
