"""A method's contract applies once its generated module is imported, even if it was looked up before."""

import pytest

from idem_grpc._core.methods import Methods, find_method, has_no_side_effects
from idem_grpc._core.policy import KeyRule, Policy
from tests.support.late_module import LateModule


@pytest.fixture
def late():
    return LateModule()


def test_a_method_is_found_once_its_module_is_imported(late):
    assert find_method(late.method("Look")) is None
    late.load()
    assert has_no_side_effects(find_method(late.method("Look")))
    assert find_method(late.method("None")) is None


def test_rules_follow_the_contract_once_it_is_imported(late):
    methods = Methods({}, Policy())
    before = methods.rules(late.method("Pay"))
    assert before is not None
    assert before.key is KeyRule.OPTIONAL
    assert methods.rules(late.method("Look")) is not None
    late.load()
    after = methods.rules(late.method("Pay"))
    assert after is not None
    assert after.key is KeyRule.REQUIRED
    assert methods.rules(late.method("Look")) is None


def test_rules_are_resolved_once_the_method_is_known(late):
    methods = Methods({}, Policy())
    for _ in range(2):
        assert methods.rules(late.method("Pay")) is methods.rules(late.method("Pay"))
        if find_method(late.method("Pay")) is None:
            late.load()
