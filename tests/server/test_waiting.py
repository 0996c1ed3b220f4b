"""Duplicates of a running call, and how they wait for its answer."""

from collections import Counter
from functools import partial

import grpc
import pytest

from idem_grpc import Policy, Reason
from tests.server.client import Kind
from tests.server.harness import open_store
from tests.server.ledger import order, run
from tests.server.stores import watched
from tests.support.wait import until

IN_PROGRESS = (grpc.StatusCode.UNAVAILABLE, Reason.IN_PROGRESS)
OTHERS = 30
PATIENT = Policy(wait=600)


@pytest.fixture
def at_work(kind, key):
    """Start a call, and return once its handler is at its gate."""

    def at_work(server, request):
        call = server.client.begin(kind, request, key)
        server.ledger.gate("at work").await_arrival()
        return call

    return at_work


def serve_others(server):
    """Make unrelated calls, one after the other, so that calls that came before have begun to wait."""
    for _ in range(OTHERS):
        other = order()
        assert server.client.call(Kind.UNARY, other, other.order).ok


def settled(calls):
    return sum(call.done() for call in calls)


def test_duplicates_in_one_process_wait_without_reading_the_store(face, start, kind, key, at_work):
    store = watched(open_store(face, "memory:", "waiting"))
    server, request = start(store=store, max_waiters=20, default=PATIENT), order(run(gate="at work"))
    first = at_work(server, request)
    duplicates = [server.client.begin(kind, request, key) for _ in range(20)]
    until(lambda: len(store.swaps) == 21)  # each has read the store once
    serve_others(server)
    assert len(store.swaps) == 21 + 2 * OTHERS, "no call reads it again"
    server.ledger.gate("at work").open()
    answers = [call.answer() for call in duplicates]
    assert {answer.essence for answer in answers} == {first.answer().essence}
    assert all(answer.replayed for answer in answers)
    assert len(store.swaps) == 21 + 2 * OTHERS + 1, "all there is to do is to keep the answer"
    assert len(server.ledger.runs(request)) == 1


def test_a_duplicate_that_waited_for_a_failure_gets_that_failure(face, start, kind, key, at_work):
    store = watched(open_store(face, "memory:", "waiting"))
    server = start(store=store, max_waiters=20, default=PATIENT)
    request = order(run(code=grpc.StatusCode.ABORTED, details="busy", gate="at work"))
    first = at_work(server, request)
    duplicates = [server.client.begin(kind, request, key) for _ in range(20)]
    until(lambda: len(store.swaps) == 21)
    serve_others(server)
    server.ledger.gate("at work").open()
    answers = [call.answer() for call in (first, *duplicates)]
    assert {(answer.code, answer.details) for answer in answers} == {(grpc.StatusCode.ABORTED, "busy")}
    assert len({answer.run for answer in answers}) == 1
    assert len(server.ledger.runs(request)) == 1


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_a_duplicate_that_waited_in_another_process_is_in_progress(face, start, url, kind, key, at_work):
    one = start(url, default=PATIENT)
    store = watched(open_store(face, url, one.store.namespace))
    other = start(store=store, max_waiters=5, default=PATIENT)
    request = order(run(code=grpc.StatusCode.ABORTED, gate="at work"))
    first = at_work(one, request)
    duplicates = [other.client.begin(kind, request, key) for _ in range(5)]

    def all_have_looked_again():
        looks = Counter(swap.new for swap in list(store.swaps))  # each names itself in its own
        return len(looks) == 5 and min(looks.values()) >= 2

    until(all_have_looked_again)
    one.ledger.gate("at work").open()
    assert first.answer().code is grpc.StatusCode.ABORTED
    answers = [call.answer() for call in duplicates]
    assert {(answer.code, answer.reason) for answer in answers} == {IN_PROGRESS}
    assert not other.ledger.all_runs


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
def test_a_duplicate_in_another_process_waits_by_reading_the_store(start, url, kind, key, at_work):
    one, other = start(url, default=PATIENT), start(url, default=PATIENT)
    request = order(run(gate="at work"))
    first = at_work(one, request)
    duplicate = other.client.begin(kind, request, key)
    one.ledger.gate("at work").open()
    answer = duplicate.answer()
    assert answer.essence == first.answer().essence
    assert answer.replayed
    assert not other.ledger.all_runs


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_duplicate_that_left_stops_reading_the_store(face, start, url, kind, key, at_work):
    one = start(url, default=PATIENT)
    store = watched(open_store(face, url, one.store.namespace))
    other = start(store=store, default=PATIENT)
    request = order(run(gate="at work"))
    first = at_work(one, request)
    leaving = other.client.begin(kind, request, key, timeout=None)
    until(lambda: len(store.swaps) >= 2)  # it waits, and reads the store from time to time
    leaving.cancel()
    until(lambda: other.drain(0) == 0)
    one.ledger.gate("at work").open()
    assert first.answer().ok


def test_a_duplicate_is_in_progress_when_its_wait_is_over(start, kind, key, at_work):
    server, request = start(default=Policy(wait=0.1)), order(run(gate="at work"))
    first = at_work(server, request)
    answer = server.client.call(kind, request, key)
    assert (answer.code, answer.reason) == IN_PROGRESS
    server.ledger.gate("at work").open()
    assert answer.run == first.answer().run


@pytest.mark.parametrize("face", ["sync"], indirect=True)
def test_duplicates_do_not_starve_the_pool(start, kind, key, at_work):
    """24 duplicates come to 8 threads, of which the run has one and those that wait have two."""
    server = start(workers=8, max_waiters=2, default=PATIENT)
    request = order(run(gate="at work"))
    first = at_work(server, request)
    duplicates = [server.client.begin(kind, request, key) for _ in range(24)]
    serve_others(server)
    until(lambda: settled(duplicates) == 22)
    assert server.client.call(Kind.READ, order()).ok
    assert settled(duplicates) == 22
    assert not first.done()
    server.ledger.gate("at work").open()
    answers = [call.answer() for call in duplicates]
    assert sum((answer.code, answer.reason) == IN_PROGRESS for answer in answers) == 22
    assert [answer.essence for answer in answers if answer.ok] == [first.answer().essence] * 2
    assert len(server.ledger.runs(request)) == 1


def test_a_waiting_place_is_given_back(face, start, kind, key, at_work):
    store = watched(open_store(face, "memory:", "waiting"))
    server, request = start(store=store, max_waiters=1, default=PATIENT), order(run(gate="at work"))
    first = at_work(server, request)

    def came(duplicates):
        return len(store.swaps) == 1 + duplicates

    def has_place():
        places = server.interceptor._protection._places
        if is_free := places.acquire(blocking=False):
            places.release()
        return is_free

    for number in range(3):
        gone = server.client.begin(kind, request, key)
        until(partial(came, number + 1))
        gone.cancel()
        until(lambda: server.drain(0) == 1)  # all but the first are over
        until(has_place)  # which is given back right after
    waiter = server.client.begin(kind, request, key)
    until(partial(came, 4))
    server.ledger.gate("at work").open()
    assert waiter.answer().essence == first.answer().essence
