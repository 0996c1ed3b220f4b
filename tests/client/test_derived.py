"""Keys passed down the call tree: a handler that is run again makes the same calls with the same keys."""

import gc
import threading
from contextvars import copy_context
from uuid import UUID

import grpc
import pytest
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
from idem_grpc import keys
from tests.client.conftest import send
from tests.client.front import Front
from tests.client.scripted import answer, fail, hang
from tests.server.client import Kind
from tests.server.ledger import DEADLINE
from tests.support.wait import until

REQUEST = pb.LedgerRequest(order="one")
CODE = grpc.StatusCode
OK = (CODE.OK, "")


@pytest.fixture
def front():
    """Start a front: ``front(Name=handler)``."""
    fronts: list[Front] = []

    def start(*args, **handlers) -> Front:
        fronts.append(Front(*args, **handlers))
        return fronts[-1]

    yield start
    for each in fronts:
        each.server.close()


@pytest.fixture
def down(script):
    """The server that is called by the front."""
    return script(answer())


@pytest.fixture
def stub(down, stub_of):
    return stub_of(down, keys=None)


def breaks_once(handler):
    """A handler whose first run ends unclear, after all that it does."""
    runs = []

    def handle(request, context):
        handler(request, context)
        runs.append(request)
        if len(runs) == 1:
            raise RuntimeError("lost")

    return handle


def test_a_second_run_makes_its_calls_with_the_keys_of_the_first(front, down, stub):
    def handle(request, context):
        stub.Unary(REQUEST)
        stub.Unary(REQUEST)
        list(stub.ServerStream(REQUEST))

    tree = front(Do=breaks_once(handle))
    assert tree.call()[0] is CODE.UNKNOWN
    assert tree.call() == OK
    first, second = down.keys[:3], down.keys[3:]
    assert first == second
    assert len(set(first)) == 3
    assert UUID(first[0]).version == 8


def test_all_attempts_of_one_call_have_one_key(front, script, stub_of, kind):
    down = script(fail(), fail(), answer())
    stub = stub_of(down, keys=None)
    assert front(Do=lambda request, context: send(stub, kind, REQUEST) and None).call() == OK
    assert len(down.keys) == 3
    assert len(set(down.keys)) == 1


def test_tenants_with_one_key_do_not_meet(front, down, stub):
    tree = front(idem_grpc.metadata("x-tenant"), Do=lambda request, context: stub.Unary(REQUEST))
    assert tree.call(tenant="a") == tree.call(tenant="b") == OK
    assert len(set(down.keys)) == 2


def test_methods_with_one_key_do_not_meet(front, down, stub):
    def handle(request, context):
        stub.Unary(REQUEST)

    tree = front(Do=handle, Undo=handle)
    assert tree.call("Do") == tree.call("Undo") == OK
    assert len(set(down.keys)) == 2


def test_a_mended_request_is_new_downstream_too(front, down, stub):
    def handle(request, context):
        stub.Unary(REQUEST)
        if request.amount < 0:
            context.abort(CODE.INVALID_ARGUMENT, "mend it")

    tree = front(Do=handle)
    assert tree.call(amount=-1)[0] is CODE.INVALID_ARGUMENT
    assert tree.call(amount=1) == OK
    assert len(set(down.keys)) == 2


def test_two_calls_to_a_method_at_a_time_are_refused_with_a_sentence(front, script, stub_of):
    gate = threading.Event()
    down = script(hang(gate), answer())
    stub = stub_of(down, keys=None)
    sentences = []

    def handle(request, context):
        first = stub.Unary.future(REQUEST)
        down.await_calls(1)
        with pytest.raises(RuntimeError) as caught:
            stub.Unary(REQUEST)
        sentences.append(str(caught.value))
        with pytest.raises(RuntimeError):
            stub.Unary.future(REQUEST).result()
        stub.ClientStream(iter([REQUEST]))  # another method
        with keys.step("second"):
            stub.Unary(REQUEST)
        gate.set()
        first.result(DEADLINE)
        stub.Unary(REQUEST)

    assert front(Do=handle).call() == OK
    assert "keys.step(…)" in sentences[0]
    assert "cancel a stream that you leave before its end" in sentences[0]
    assert f"calls {Kind.UNARY.path} while it is calling it already" in sentences[0]
    assert len(set(down.keys)) == len(down.keys) == 4


@pytest.mark.parametrize("retry", [{}, {"retry": None}], ids=["ours", "native"])
class TestCallsThatAreOver:
    """However a call ends, the next one to the same method may be made."""

    @pytest.fixture
    def check(self, front, script, stub_of, retry):
        def check(handler, *steps):
            down = script(*steps, answer())
            stub = stub_of(down, keys=None, **retry)

            def handle(request, context):
                handler(stub, down)
                stub.Unary(REQUEST)
                list(stub.ServerStream(REQUEST))

            assert front(Do=handle).call() == OK

        return check

    def test_by_an_error(self, check):
        def handle(stub, down):
            with pytest.raises(grpc.RpcError):
                stub.Unary(REQUEST)
            assert stub.Unary.future(REQUEST).exception(DEADLINE) is not None

        check(handle, fail(CODE.NOT_FOUND), fail(CODE.NOT_FOUND))

    def test_by_cancelling(self, check):
        def handle(stub, down):
            call = stub.Unary.future(REQUEST)
            stream = stub.ServerStream(REQUEST)
            down.await_calls(2)
            assert call.cancel()
            assert stream.cancel()

        check(handle, hang(threading.Event()), hang(threading.Event()))

    def test_by_being_left(self, check):
        def handle(stub, down):
            calls = [stub.ServerStream(REQUEST), stub.Unary.future(REQUEST)]
            down.await_calls(2)
            calls.clear()
            gc.collect()
            until(lambda: is_free(stub.Unary))
            until(lambda: is_free(lambda request: list(stub.ServerStream(request))))

        def is_free(method):
            try:
                method(REQUEST)
            except RuntimeError:
                return False
            return True

        check(handle, hang(threading.Event()), hang(threading.Event()))

    def test_by_leaving_a_stream_before_its_end(self, check):
        def handle(stub, down):
            for _ in range(100):
                for _ in stub.ServerStream(REQUEST):
                    break
                assert next(stub.ServerStream(REQUEST)) == pb.LedgerResponse()

        check(handle, *[answer(0, 1)] * 200)

    def test_in_a_row(self, check):
        def handle(stub, down):
            for _ in range(200):
                stub.Unary.future(REQUEST).result()
                list(stub.ServerStream(REQUEST))

        check(handle)


def test_threads_with_the_copied_context(front, down, stub):
    found = []

    def in_step(name):
        with keys.step(name):
            stub.Unary(REQUEST)

    def handle(request, context):
        threads = [
            threading.Thread(target=copy_context().run, args=(in_step, name)) for name in ("a", "b", "c")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        found.append(sorted(down.keys[-3:]))

    tree = front(Do=breaks_once(handle))
    assert tree.call()[0] is CODE.UNKNOWN
    assert tree.call() == OK
    assert found[0] == found[1]
    assert len(set(found[0])) == 3


def test_threads_without_it_are_outside(front, down, stub):
    def handle(request, context):
        thread = threading.Thread(target=stub.Unary, args=(REQUEST,))
        thread.start()
        thread.join(DEADLINE)

    assert front(Do=handle).call() == OK
    assert down.keys == [None]


def test_what_comes_before_a_derived_key(front, down, stub_of):
    stub = stub_of(down, keys={f"{Kind.SERVER_STREAM.path}": keys.from_request("order:{order}")})

    def handle(request, context):
        stub.Unary(REQUEST, metadata=[("idempotency-key", "own")])
        with keys.using("used"):
            stub.Unary(REQUEST)
        list(stub.ServerStream(REQUEST))
        stub.Read(REQUEST)

    assert front(Do=handle).call() == OK
    assert down.keys == ["own", "used", "order:one", None]


def test_a_derived_key_comes_before_any_other_source(front, down, stub_of):
    stub = stub_of(down, keys=keys.unique)
    tree = front(Do=breaks_once(lambda request, context: stub.Unary(REQUEST)))
    tree.call()
    assert tree.call() == OK
    assert len(set(down.keys)) == 1


def test_they_can_be_switched_off(front, down, stub_of):
    with_source, without = stub_of(down, derive=False), stub_of(down, derive=False, keys=None)

    def handle(request, context):
        with_source.Unary(REQUEST)
        without.Unary(REQUEST)

    tree = front(Do=breaks_once(handle))
    tree.call()
    assert tree.call() == OK
    unique = down.keys[::2]
    assert len(set(unique)) == 2
    assert down.keys[1::2] == [None, None]
