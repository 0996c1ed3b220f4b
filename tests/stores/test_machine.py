"""Every store does what a dict with the rules of the protocol does, in any order of swaps.

Tests depend on time in two ways, both certain: a record written with minutes to live is still
there, and a record written with a millisecond to live is waited for until it has expired.
"""

import math
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores import open_async_store, open_store
from idem_grpc.testing import AsyncStoreContract
from tests.support.wait import until

KEYS = st.sampled_from([b"a", b"b"])
VALUES = st.sampled_from([None, b"one", b"two", b"\0\xff"])
TTLS = st.sampled_from([1000.0, 3000.0])
# Never near a ttl, so that no verdict hangs on how long a test takes.
BOUNDS = st.sampled_from([None, -1.0, 0.0, 500.0, 2000.0, 4000.0, math.inf])


class Machine(RuleBasedStateMachine):
    """A store, and a dict of (value, ttl) as its model."""

    @staticmethod
    def make_store():
        raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.store = self.make_store()
        self.model: dict[bytes, tuple[bytes, float]] = {}

    @rule(key=KEYS, expected=VALUES, new=VALUES, ttl=TTLS, max_left=BOUNDS)
    def swap(self, key, expected, new, ttl, max_left):
        value, left = self.model.get(key, (None, 0.0))
        answer = self.store.swap(Swap(key, expected, new, ttl, max_left))
        unrenewed = max_left is None or left <= max_left
        if value == new or (value == expected and unrenewed):
            assert isinstance(answer, Swapped)
            self.model[key] = (new, ttl)
            if new is None:
                del self.model[key]
        else:
            assert isinstance(answer, Held)
            assert answer.value == value
        assert left - 500 < answer.ttl_left <= left

    @rule(key=KEYS, ttl=TTLS)
    def renew(self, key, ttl):
        value, _ = self.model.get(key, (None, 0.0))
        assert isinstance(self.store.swap(Swap(key, value, value, ttl)), Swapped)
        if value is not None:
            self.model[key] = (value, ttl)

    @rule(key=KEYS)
    def expire(self, key):
        value, _ = self.model.pop(key, (None, 0.0))
        assert isinstance(self.store.swap(Swap(key, value, b"dying", 0.001)), Swapped)
        until(lambda: self.store.read(key) == Held(None, 0.0), step=0.001)

    @invariant()
    def every_key_holds_what_the_model_says(self):
        for key in (b"a", b"b"):
            value, ttl = self.model.get(key, (None, 0.0))
            held = self.store.read(key)
            assert held.value == value
            assert ttl - 500 < held.ttl_left <= ttl

    def teardown(self):
        self.store.close()


class Adapted(AsyncStoreContract):
    """An AsyncStore behind the interface of a Store."""

    def __init__(self, store):
        self.store = store

    def make_store(self):
        return self.store


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make_url(request, tmp_path):
    """Return a function that returns the URL of an empty store."""
    match request.param:
        case "memory":
            return lambda: "memory:"
        case "sqlite":
            return lambda: f"sqlite:///{tmp_path}/{uuid4()}.db"
        case _:
            server = request.getfixturevalue("redis_server")
            return lambda: server.url


def run(make_store, examples):
    run_state_machine_as_test(
        type("Machine", (Machine,), {"make_store": staticmethod(make_store)}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_a_store_does_what_its_model_does(make_url):
    run(lambda: open_store(make_url(), namespace=uuid4().hex), 40)


def test_an_async_store_does_what_its_model_does(make_url):
    def make_store():
        return Adapted(open_async_store(make_url(), namespace=uuid4().hex))._open()

    run(make_store, 15)
