"""Several server processes on one store, one of which may be killed."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from idem_grpc import Reason
from tests.server.kinds import FIRST_AND_LAST, kinds
from tests.server.ledger import order, run
from tests.server.processes import starting_processes
from tests.support.wait import until

pytestmark = pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
AT_WORK = "at-work"
SHORT = {"lease": 2, "retention": 600, "wait": 5}  # and longer than a slow machine stands still


kind = kinds(*FIRST_AND_LAST)


@pytest.fixture
def processes(face, url):
    """Return ``processes(count)``, which starts servers on the store."""
    with starting_processes(face, url) as start:
        yield lambda count, **settings: start([()] * count, **settings)


def half_way(kind):
    """Settings of a run that waits at a gate once it has sent a part of its answer."""
    return {"gate": AT_WORK, "responses_before_gate": 1 if kind.has_response_stream else 0}


def attempts(processes, request):
    return sorted(attempt for process in processes for attempt in process.attempts(request))


def test_200_duplicates_at_once_are_one_run(processes, url, kind, key):
    servers = processes(2 if url.startswith("sqlite") else 3)
    request = order(run(gate=AT_WORK))

    def persist(number):
        return servers[number % len(servers)].client.persist(kind, request, key)

    with ThreadPoolExecutor(200) as pool:
        calls = [pool.submit(persist, number) for number in range(200)]
        until(lambda: attempts(servers, request))
        for process in servers:
            process.open(AT_WORK)
        answers = [call.result() for call in calls]
    assert {answer.code for answer in answers} == {grpc.StatusCode.OK}
    assert len({answer.essence for answer in answers}) == 1
    assert attempts(servers, request) == [1]


def test_after_a_kill_during_a_call_another_server_runs_it_again(processes, kind, key):
    one, other = processes(2, default=SHORT)
    request = order(run(**half_way(kind)), run())
    call = one.client.begin(kind, request, key)
    one.await_gate(AT_WORK)
    assert other.client.call(kind, request, key, timeout=0.3).code is not grpc.StatusCode.OK
    one.kill()
    assert call.answer().code is grpc.StatusCode.UNAVAILABLE
    answer = other.client.persist(kind, request, key)
    assert answer.ok
    assert (one.attempts(request), other.attempts(request)) == ([1], [2])
    assert len(answer.messages) == (3 if kind.has_response_stream else 1)
    again = other.client.call(kind, request, key)
    assert again.essence == answer.essence
    assert again.replayed


def test_after_a_kill_during_a_call_no_server_runs_it_again_under_fail(processes, kind, key):
    one, other = processes(2, default={**SHORT, "on_unclear": "FAIL"})
    request = order(run(**half_way(kind)), run())
    one.client.begin(kind, request, key)
    one.await_gate(AT_WORK)
    one.kill()
    for _ in range(2):
        answer = other.client.persist(kind, request, key)
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            Reason.OUTCOME_UNKNOWN,
        )
    assert attempts([one, other], request) == [1]


def test_an_answer_survives_the_kill_of_its_server(processes, kind, key):
    one, other = processes(2)
    request = order(run())
    first = one.client.call(kind, request, key)
    one.kill()
    answer = other.client.call(kind, request, key)
    assert answer.essence == first.essence
    assert answer.replayed
    assert attempts([one, other], request) == [1]
