"""Outcomes of runs outlive an outage of the store."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from idem_grpc import SHARED, Policy, ServerInterceptor, StoreUnavailable, current, reason
from idem_grpc._core.digest import store_key
from idem_grpc._core.problem import Reason
from idem_grpc._server import keeper
from idem_grpc.stores._memory import MemoryStore
from tests.support.wait import until

DEADLINE = 60


class LeavingStore(MemoryStore):
    """A store that can go away, and come back with its records."""

    is_away = False

    def swap(self, swap):
        if self.is_away:
            raise StoreUnavailable("away")
        return super().swap(swap)

    def left(self, key: str) -> float:
        """The remaining TTL of a record in seconds, also while the store is away."""
        name = store_key(self.namespace, "/t.T/Pay", b"", key)
        return self.read(name).ttl_left


class Server:
    """A server whose methods are functions of bytes."""

    def __init__(self, store, behaviors, default, **settings):
        self.store = store
        self.interceptor = ServerInterceptor(store, scope=SHARED, default=default, **settings)
        handlers = {name: handler(behavior) for name, (handler, behavior) in behaviors.items()}
        self._server = grpc.server(ThreadPoolExecutor(8), interceptors=[self.interceptor])
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}")
        self._server.start()

    def call(self, key, request=b"1", method="Pay"):
        metadata = (("idempotency-key", key),)
        return self.channel.unary_unary(f"/t.T/{method}").future(request, metadata=metadata, timeout=DEADLINE)

    def answer(self, key, request=b"1", method="Pay"):
        """Make a call, and return the response or the error."""
        try:
            return self.call(key, request, method).result()
        except grpc.RpcError as error:
            return error

    def persist(self, key):
        """Repeat the call until it is neither pending nor in progress."""
        while reason(answer := self.answer(key)) in (Reason.OUTCOME_PENDING, Reason.IN_PROGRESS):
            pass
        return answer

    def close(self):
        self.channel.close()
        self._server.stop(None).wait()
        assert self.interceptor.drain(DEADLINE) == 0


@contextmanager
def serving(*args, **settings):
    server = Server(*args, **settings)
    try:
        yield server
    finally:
        server.close()


class Work:
    """A handler that waits for ``go``, and counts its runs."""

    def __init__(self):
        self.runs = 0
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, request, context):
        self.runs += 1
        self.begun.set()
        assert self.go.wait(DEADLINE)
        return b"paid"


UNARY = grpc.unary_unary_rpc_method_handler
LEASE, RETENTION = 0.2, 60.0
SHORT = Policy(lease=LEASE, retention=RETENTION, max_run=60)


@pytest.mark.parametrize("refused", [110])
def test_an_outcome_outlives_any_number_of_calls_refused_meanwhile(monkeypatch, refused):
    monkeypatch.setattr(keeper, "MAX_GIVE_BACKS", 100)
    work = Work()
    with serving(LeavingStore(), {"Pay": (UNARY, work)}, Policy(retention=600)) as server:
        payment = server.call("payment")
        assert work.begun.wait(DEADLINE)
        server.store.is_away = True
        others = [server.call(f"other-{number}") for number in range(refused)]
        assert {reason(other.exception()) for other in others} == {Reason.STORE_UNAVAILABLE}
        work.go.set()
        assert reason(payment.exception()) is Reason.OUTCOME_PENDING
        server.store.is_away = False
        assert server.persist("payment") == b"paid"
    assert work.runs == 1


def test_a_run_outlives_an_outage_longer_than_its_lease_in_its_own_process():
    work = Work()
    with serving(LeavingStore(), {"Pay": (UNARY, work)}, SHORT) as server:
        first = server.call("key")
        assert work.begun.wait(DEADLINE)
        server.store.is_away = True
        until(lambda: server.store.left("key") < RETENTION - LEASE)
        server.store.is_away = False
        second = server.call("key")
        work.go.set()
        assert first.result() == second.result() == b"paid"
    assert work.runs == 1


def test_metadata_that_cannot_be_stored_is_the_handlers_error_and_leaves_the_key_open():
    runs = []

    def pay(request, context):
        runs.append(request)
        if len(runs) == 1:
            context.set_trailing_metadata((("x-count", 5),))
        context.set_details("\udc80")
        return b"paid"

    with serving(MemoryStore(), {"Pay": (UNARY, pay)}, Policy()) as server:
        error = server.answer("key")
        assert error.code() is grpc.StatusCode.UNKNOWN
        assert "x-count" in error.details()
        assert server.answer("key") == b"paid"
    assert len(runs) == 2


def test_two_methods_of_one_operation_share_keys_but_no_answers():
    work = Work()

    def pay_many(requests, context):
        list(requests)
        return b"many: " + work(None, context)

    behaviors = {"Pay": (UNARY, work), "PayMany": (grpc.stream_unary_rpc_method_handler, pay_many)}
    with serving(MemoryStore(), behaviors, Policy(operation="pay")) as server:
        metadata = (("idempotency-key", "key"),)
        many = server.channel.stream_unary("/t.T/PayMany").future(
            iter([b"1"]), metadata=metadata, timeout=DEADLINE
        )
        assert work.begun.wait(DEADLINE)
        one = server.call("key")
        work.go.set()
        assert many.result() == b"many: paid"
        assert reason(one.exception()) is Reason.KEY_REUSED
        assert reason(server.answer("key")) is Reason.KEY_REUSED
    assert work.runs == 1


def test_a_lease_is_lost_by_the_clock_while_the_store_is_silent():
    is_lost: Future[bool] = Future()
    hung = threading.Event()

    class Silent(MemoryStore):
        def swap(self, swap):
            if swap.expected == swap.new and swap.expected is not None:
                assert hung.wait(DEADLINE)
            return super().swap(swap)

    def pay(request, context):
        execution = current()
        assert execution is not None
        until(lambda: execution.lease_lost)
        is_lost.set_result(True)
        return b"paid"

    with serving(Silent(), {"Pay": (UNARY, pay)}, SHORT) as server:
        call = server.call("key")
        assert is_lost.result(DEADLINE)
        hung.set()
        assert call.result() == b"paid"
