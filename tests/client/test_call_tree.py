"""A calls B and C, and each of them acts once, whatever becomes of A: all are processes of their own."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from uuid import uuid4

import grpc
import pytest
from tests_pb.v1 import ledger_pb2_grpc

from idem_grpc import Retry, client_interceptors, replayed
from tests.client.call_tree import TENANT
from tests.server.client import Kind
from tests.server.ledger import DEADLINE, order, run
from tests.server.processes import ENVIRONMENT, ROOT, ServerProcess
from tests.support.wait import until

# Milliseconds after which the second address is tried in parallel to the first: as many as grpc allows.
IN_TURN = ("grpc.happy_eyeballs_connection_attempt_delay_ms", 2000)


class Root:
    """A process of tests.client.call_tree. As a context manager, it is gone afterwards."""

    def __init__(self, *options):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.client.call_tree", *options],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self):
        """The next line that it says; empty once it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def address(self):
        word, _, port = self.says().partition(" ")
        assert word == "port", "the process ended at its start"
        return f"127.0.0.1:{port}"

    def kill(self):
        self._process.kill()
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """B and C. Every test has orders of its own."""
    folder = tmp_path_factory.mktemp("leaves")
    leaves = [ServerProcess("sync", f"sqlite:///{folder}/{name}.db", name) for name in ("b", "c")]
    yield leaves
    for leaf in leaves:
        leaf.close()


@pytest.fixture(params=["sync", "aio"])
def roots(request, leaves, tmp_path):
    """Start so many processes of A, on one store."""
    with ExitStack() as stack:

        def roots(count):
            addresses = [leaf.address for leaf in leaves]
            options = (request.param, f"sqlite:///{tmp_path}/a.db", *addresses)
            return [stack.enter_context(Root(*options)) for _ in range(count)]

        yield roots


@pytest.fixture
def stub_for():
    """A stub for all of these processes, which turns to the next when one is gone."""
    with ExitStack() as stack:

        def stub_for(*roots):
            target = "ipv4:" + ",".join(root.address() for root in roots)
            plain = stack.enter_context(grpc.insecure_channel(target, [IN_TURN]))
            return ledger_pb2_grpc.LedgerServiceStub(
                grpc.intercept_channel(plain, *client_interceptors(retry=Retry(budget=None)))
            )

        yield stub_for


def call(method, request, key="k", tenant="one"):
    metadata = [("idempotency-key", key), (TENANT, tenant)]
    return method.with_call(request, timeout=DEADLINE, metadata=metadata)


def attempts(leaves, request):
    """Those that ran at B and at C. What a process says is heard in order, and so is what was said before."""
    last = order()
    for leaf in leaves:
        assert leaf.client.call(Kind.UNARY, last).ok
        until(partial(leaf.attempts, last))
    return [leaf.attempts(request) for leaf in leaves]


@pytest.mark.parametrize("place", ["between", "after"])
def test_a_root_that_is_killed_and_run_again_has_each_leaf_act_once(roots, stub_for, leaves, place):
    doomed, other = roots(2)
    request = order(run(gate=place), run())
    stub = stub_for(doomed, other)
    with ThreadPoolExecutor() as pool:
        calling = pool.submit(call, stub.Unary, request)
        assert [doomed.says(), doomed.says()] == [f"run {request.order} 1", f"gate {place}"]
        assert attempts(leaves, request) == ([[1], []] if place == "between" else [[1], [1]])
        doomed.kill()
        response, first = calling.result()
    assert other.says() == f"run {request.order} 2"
    assert attempts(leaves, request) == [[1], [1]]
    assert len(set(response.entry.split())) == 2
    again, second = call(stub.Unary, request)
    assert again == response
    assert (replayed(first), replayed(second)) == (False, True)
    assert attempts(leaves, request) == [[1], [1]]


def test_a_root_that_is_killed_while_a_leaf_works_has_that_act_once(roots, stub_for, leaves):
    doomed, other = roots(2)
    request = order(run(gate=uuid4().hex))
    stub = stub_for(doomed, other)
    first, second = leaves
    (gate,) = [run.gate for run in request.runs]
    with ThreadPoolExecutor() as pool:
        calling = pool.submit(call, stub.Unary, request)
        first.await_gate(gate)
        doomed.kill()
        assert other.says() == f"run {request.order} 2"  # and asks for what is being done already
        first.open(gate)
        second.open(gate)
        response, _ = calling.result()
    assert attempts(leaves, request) == [[1], [1]]
    assert len(set(response.entry.split())) == 2


def test_two_tenants_with_one_key_do_not_meet_downstream(roots, stub_for, leaves):
    stub = stub_for(*roots(1))
    request = order()
    entries = {call(stub.Unary, request, tenant=tenant)[0].entry for tenant in ("one", "other", "one")}
    assert len(entries) == 2
    assert attempts(leaves, request) == [[1, 1], [1, 1]]


def test_two_methods_with_one_key_do_not_meet_downstream(roots, stub_for, leaves):
    stub = stub_for(*roots(1))
    request = order()
    response, _ = call(stub.Unary, request)
    metadata = [("idempotency-key", "k"), (TENANT, "one")]
    (streamed,) = stub.ServerStream(request, timeout=DEADLINE, metadata=metadata)
    assert not set(response.entry.split()) & set(streamed.entry.split())
    assert attempts(leaves, request) == [[1, 1], [1, 1]]


def test_a_corrected_request_is_new_downstream(roots, stub_for, leaves):
    stub = stub_for(*roots(1))
    wrong = order(amount=-5)
    for _ in range(2):  # which is the same request, and so the same downstream
        with pytest.raises(grpc.RpcError) as refused:
            call(stub.Unary, wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert attempts(leaves, wrong) == [[1], [1]]
    corrected = order(name=wrong.order, amount=5)
    response, _ = call(stub.Unary, corrected)
    assert len(set(response.entry.split())) == 2
    assert attempts(leaves, corrected) == [[1, 1], [1, 1]]
