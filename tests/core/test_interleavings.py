"""The laws of the flow hold in every order of steps, with every fault."""

import pytest

from idem_grpc._core.outcome import Code
from idem_grpc._core.policy import OnOutage
from idem_grpc._core.record import OnUnclear
from idem_grpc._core.steps import Ending
from tests.core.walk import Faults, Scenario, Walk

RERUN, FAIL = OnUnclear.RERUN, OnUnclear.FAIL
TOGETHER, APART = (0, 0), (0, 1)
ONE_OF_EACH = Faults(lost=1, lapses=1, crashes=1, failures=1, cancels=1)
THRICE = Faults(lost=2, lapses=2, crashes=1, failures=2, cancels=1, all=3)
TWICE = THRICE._replace(all=2)
SLOW = Faults(lost=1, resent=1, late=1, lapses=2, crashes=1, failures=1, all=3)
AWAY = Faults(outages=1, lost=1, crashes=1, failures=1)
WIPED = Faults(lapses=2, crashes=1, failures=1, wipes=1)
CLEAR = (Ending.UNCLEAR, Ending.NOT_NOW, Ending.FIXABLE)
BUSINESS_ERRORS = (Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION)


def topology(processes) -> str:
    return {TOGETHER: "together", APART: "apart"}.get(processes, str(processes))


def states(scenario: Scenario) -> int:
    """Walk a scenario, and return how many states it has."""
    return Walk(scenario).run().states


both_topologies = pytest.mark.parametrize("processes", [TOGETHER, APART], ids=topology)
both_modes = pytest.mark.parametrize("on_unclear", [RERUN, FAIL], ids=lambda mode: mode.name)


@both_topologies
@both_modes
@pytest.mark.parametrize("token", [False, True], ids=["own-key", "token"])
def test_one_of_each_fault(processes, on_unclear, token):
    assert states(Scenario(processes, (on_unclear,) * 2, ONE_OF_EACH, token=token)) > 4500


@both_topologies
@both_modes
def test_any_three_faults(processes, on_unclear):
    assert states(Scenario(processes, (on_unclear,) * 2, THRICE)) > 5000


@both_modes
def test_every_kind_of_failure(on_unclear):
    faults = ONE_OF_EACH._replace(failures=2, cancels=0)
    assert states(Scenario(APART, (on_unclear,) * 2, faults, failures=CLEAR)) > 5000


@both_modes
def test_a_business_error_is_an_answer(on_unclear):
    states(Scenario(APART, (on_unclear,) * 2, ONE_OF_EACH, decided=BUSINESS_ERRORS))


@both_topologies
@both_modes
def test_request_streams_are_compared_before_a_replay(processes, on_unclear):
    assert states(Scenario(processes, (on_unclear,) * 2, ONE_OF_EACH, stream=True)) > 5000


def test_servers_that_differ_in_on_unclear():
    states(Scenario(APART, (RERUN, FAIL), ONE_OF_EACH))


@both_topologies
def test_running_while_the_store_is_away(processes):
    faults = THRICE._replace(failures=1)
    states(Scenario(processes, (RERUN,) * 2, faults, on_outage=OnOutage.RUN))


@both_topologies
@both_modes
@pytest.mark.parametrize("token", [False, True], ids=["own-key", "token"])
def test_swaps_that_are_sent_again_and_handlers_that_start_late(processes, on_unclear, token):
    assert states(Scenario(processes, (on_unclear,) * 2, SLOW, token=token)) > 3000


def test_swaps_that_are_sent_again_by_servers_that_differ_in_on_unclear():
    states(Scenario(APART, (RERUN, FAIL), SLOW))


@pytest.mark.parametrize("processes", [(0, 1, 2), (0, 0, 1)], ids=topology)
@both_modes
def test_three_callers_of_which_one_may_be_late(processes, on_unclear):
    faults = SLOW._replace(all=2)
    assert states(Scenario(processes, (on_unclear,) * 3, faults)) > 20_000


@both_topologies
@both_modes
@pytest.mark.parametrize("faults", [ONE_OF_EACH, SLOW], ids=["one of each", "slow"])
def test_callers_whose_keys_may_be_too_many(processes, on_unclear, faults):
    assert states(Scenario(processes, (on_unclear,) * 2, faults, rate=True)) > 3000


@both_topologies
@both_modes
def test_an_outage_that_all_calls_see_causes_no_second_run(processes, on_unclear):
    assert states(Scenario(processes, (on_unclear,) * 2, AWAY)) > 500


@both_topologies
@both_modes
def test_a_store_that_forgets_everything(processes, on_unclear):
    """A call may run twice then; every flow still ends with one answer."""
    states(Scenario(processes, (on_unclear,) * 2, WIPED))


@pytest.mark.parametrize("processes", [(0, 1, 2), (0, 0, 1)], ids=topology)
@both_modes
def test_three_callers_and_any_two_faults(processes, on_unclear):
    assert states(Scenario(processes, (on_unclear,) * 3, TWICE)) > 50_000
