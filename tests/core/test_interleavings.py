"""The laws of the flow hold in every order of steps, with everything that may go wrong."""

import pytest

from idem_grpc.endings import Ending
from idem_grpc.outcome import Code
from idem_grpc.policy import OnOutage
from idem_grpc.record import OnUnclear
from tests.core.walk import Faults, Scenario, Walk

RERUN, FAIL = OnUnclear.RERUN, OnUnclear.FAIL
TOGETHER, APART = (0, 0), (0, 1)
ONE_OF_EACH = Faults(lost=1, lapses=1, crashes=1, failures=1, cancels=1)
THRICE = Faults(lost=2, lapses=2, crashes=1, failures=2, cancels=1, all=3)
TWICE = THRICE._replace(all=2)
WIPED = Faults(lapses=2, crashes=1, failures=1, wipes=1)
CLEAR = (Ending.UNCLEAR, Ending.NOT_NOW, Ending.MENDABLE)
BUSINESS_ERRORS = (Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION)


def topology(processes) -> str:
    return {TOGETHER: "together", APART: "apart"}.get(processes, str(processes))


@pytest.fixture
def walk(record_property):
    """Walk a scenario, and note in the report how far it went."""

    def go(scenario: Scenario):
        tally = Walk(scenario).run()
        record_property("states", tally.states)
        record_property("paths", tally.paths)
        return tally

    return go


both_topologies = pytest.mark.parametrize("processes", [TOGETHER, APART], ids=topology)
both_modes = pytest.mark.parametrize("on_unclear", [RERUN, FAIL], ids=lambda mode: mode.name)


@both_topologies
@both_modes
@pytest.mark.parametrize("token", [False, True], ids=["own-key", "token"])
def test_one_of_each_fault(walk, processes, on_unclear, token):
    assert walk(Scenario(processes, (on_unclear,) * 2, ONE_OF_EACH, token=token)).states > 5000


@both_topologies
@both_modes
def test_any_three_faults(walk, processes, on_unclear):
    assert walk(Scenario(processes, (on_unclear,) * 2, THRICE)).states > 5000


@both_modes
def test_every_kind_of_failure(walk, on_unclear):
    faults = ONE_OF_EACH._replace(failures=2, cancels=0)
    assert walk(Scenario(APART, (on_unclear,) * 2, faults, failures=CLEAR)).states > 5000


@both_modes
def test_a_business_error_is_an_answer_like_any_other(walk, on_unclear):
    walk(Scenario(APART, (on_unclear,) * 2, ONE_OF_EACH, decided=BUSINESS_ERRORS))


def test_servers_that_differ_in_on_unclear(walk):
    walk(Scenario(APART, (RERUN, FAIL), ONE_OF_EACH))


@both_topologies
def test_running_while_the_store_is_away(walk, processes):
    faults = THRICE._replace(failures=1)
    walk(Scenario(processes, (RERUN,) * 2, faults, on_outage=OnOutage.RUN))


@both_topologies
@both_modes
def test_a_store_that_forgets_everything(walk, processes, on_unclear):
    """Runs can no longer be told apart then; flows end all the same, with one answer each."""
    walk(Scenario(processes, (on_unclear,) * 2, WIPED))


@pytest.mark.parametrize("processes", [(0, 1, 2), (0, 0, 1)], ids=topology)
@both_modes
def test_three_callers_and_any_two_faults(walk, processes, on_unclear):
    assert walk(Scenario(processes, (on_unclear,) * 3, TWICE)).states > 50_000
