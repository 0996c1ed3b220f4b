"""What is left of many calls: nothing."""

import gc
import threading
from collections import Counter
from time import monotonic
from types import SimpleNamespace

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

from idem_grpc import Retry
from idem_grpc._client import timer as timers
from idem_grpc._client.engine import Engine
from idem_grpc._client.foreign_calls import CancelledCall
from idem_grpc._client.requests import SyncFeed, SyncRequests
from idem_grpc._client.sync_call import RetriedCall, SyncDriver
from idem_grpc._client.timer import Entry, Timer, timer
from tests.client.faces import PATIENT
from tests.server.ledger import DEADLINE
from tests.support.scripted import fail, hang
from tests.support.wait import until

REQUEST = pb.LedgerRequest(order="one")
OURS = (RetriedCall, SyncDriver, Engine, SyncRequests, SyncFeed, Entry, CancelledCall)


def alive():
    """How many objects there are of each of our classes that a call consists of."""
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, OURS))


@pytest.fixture
def nothing_is_left():
    """A check that nothing is left but what there was; waits for grpc's threads to end."""
    timer.start()
    before = alive()
    threads = threading.active_count()

    def check(more_threads=0):
        assert until(lambda: not alive() - before), alive() - before
        assert until(lambda: threading.active_count() <= threads + more_threads)

    return check


def test_calls_cancelled_while_they_wait(stub_of, nothing_is_left):
    """10,000 calls to a server that is down, all of them waiting at a time, on no thread of their own."""
    nobody_listens = SimpleNamespace(address="127.0.0.1:1")
    stub = stub_of(nobody_listens, retry=Retry(initial_backoff=600, max_backoff=600, budget=None))
    threads = threading.active_count()
    calls = [stub.Unary.future(REQUEST) for _ in range(10_000)]
    assert until(lambda: alive()["Entry"] >= 10_000, step=0.2)
    assert threading.active_count() <= threads + 8, "grpc's own"
    for call in calls:
        assert call.cancel()
    del call
    calls.clear()
    nothing_is_left(more_threads=8)


@pytest.mark.parametrize("left", [False, True], ids=["cancelled", "left to the collector"])
def test_streams_that_end_early(script, stub_of, nothing_is_left, left):
    server = script(hang(threading.Event()))
    stub = stub_of(server)
    for _ in range(20):
        calls = [stub.ServerStream(REQUEST, timeout=DEADLINE) for _ in range(10)]
        calls += [stub.Bidi(iter([REQUEST]), timeout=DEADLINE) for _ in range(10)]
        if not left:
            for call in calls:
                call.cancel()
            del call
        calls.clear()
    nothing_is_left(more_threads=64 + 8)


def test_calls_that_fail(script, stub_of, nothing_is_left):
    stub = stub_of(script(fail()), retry=Retry(max_attempts=2, initial_backoff=0.001, budget=None))
    for _ in range(200):
        with pytest.raises(grpc.RpcError):
            stub.Unary.future(REQUEST).result()
        with pytest.raises(grpc.RpcError):
            list(stub.Bidi(iter([REQUEST])))
        with pytest.raises(grpc.RpcError):
            stub.ClientStream(iter([REQUEST]))
    nothing_is_left(more_threads=64 + 8)


def test_calls_in_flight_and_waiting_are_left_to_the_collector(script, stub_of, nothing_is_left):
    server = script(fail())
    stub = stub_of(server, retry=PATIENT)
    for _ in range(200):
        stub.Unary.future(REQUEST)
    nothing_is_left(more_threads=64 + 8)


class TestTimer:
    @pytest.fixture
    def clock(self, monkeypatch):
        """The clock of timers, which the test moves."""
        clock = SimpleNamespace(now=monotonic())
        monkeypatch.setattr(timers, "monotonic", lambda: clock.now)
        return clock

    def test_what_is_due_first_is_done_first(self, clock):
        mine = Timer()
        mine.start()
        done: list[int] = []
        over = threading.Event()
        mine.after(0.06, over.set)
        mine.after(0.04, lambda: done.append(2))
        mine.after(0.02, lambda: done.append(1))
        mine.after(0, lambda: done.append(0))
        until(lambda: done)  # and so it has seen the others, which came before
        clock.now += 0.06
        assert over.wait(DEADLINE)
        assert done == [0, 1, 2]

    def test_what_fails_does_not_stop_the_others(self, caplog):
        mine = Timer()
        mine.start()
        over = threading.Event()
        mine.after(0, lambda: 1 / 0)
        mine.after(0, over.set)
        assert over.wait(DEADLINE)
        assert "a retry could not be made" in caplog.text

    def test_what_is_cancelled_is_let_go_of_and_not_done(self, clock):
        mine = Timer()
        mine.start()
        done: list[int] = []
        entries = [mine.after(0.05, lambda: done.append(1)) for _ in range(1000)]
        for entry in entries:
            entry.cancel()
            entry.cancel()
        over = threading.Event()
        mine.after(0.1, over.set)
        clock.now += 0.1
        assert over.wait(DEADLINE)
        assert not done

    @pytest.mark.parametrize("seconds", [1e6, 1e12, float("inf")])
    def test_the_longest_wait_disturbs_nobody(self, seconds):
        mine = Timer()
        mine.start()
        over = threading.Event()
        entry = mine.after(seconds, over.set)
        mine.after(0, over.set)
        assert over.wait(DEADLINE)
        entry.cancel()

    def test_one_thread_does_for_all(self):
        mine = Timer()
        before = threading.enumerate()
        for _ in range(100):
            mine.start()
            mine.after(600, print)
        new = [thread for thread in threading.enumerate() if thread not in before]
        assert [thread.name for thread in new].count("idem_grpc retries") == 1
