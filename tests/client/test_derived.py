"""Keys passed down the call tree: a handler that is run again makes the same calls with the same keys."""

import threading
from contextvars import copy_context
from uuid import UUID

import grpc
import pytest

import idem_grpc
from idem_grpc import keys
from tests.client.front import Abort, Front
from tests.server.client import Kind
from tests.server.ledger import DEADLINE
from tests.support.scripted import answer, fail, hang

CODE = grpc.StatusCode
OK = (CODE.OK, "")
SINGLE = [Kind.UNARY, Kind.CLIENT_STREAM]


@pytest.fixture
def front(face):
    """Start a front: ``front(Name=handler)``."""
    fronts: list[Front] = []

    def start(*args, **handlers) -> Front:
        fronts.append(Front(face, *args, **handlers))
        return fronts[-1]

    yield start
    for each in fronts:
        each.close()


@pytest.fixture
def down(script):
    """The server that is called by the front."""
    return script()


@pytest.fixture
def client(face, down):
    return face.client(down, keys=None)


def breaks_once(handler):
    """A handler whose first run ends unclear, after all that it does."""
    runs = []

    def handle(request):
        handler(request)
        runs.append(request)
        if len(runs) == 1:
            raise RuntimeError("lost")

    return handle


def test_a_second_run_makes_its_calls_with_the_keys_of_the_first(front, down, client):
    def handle(request):
        client.send(Kind.UNARY)
        client.send(Kind.UNARY)
        client.send(Kind.SERVER_STREAM)
        client.send(Kind.CLIENT_STREAM)

    tree = front(Do=breaks_once(handle))
    assert tree.call()[0] is CODE.UNKNOWN
    assert tree.call() == OK
    first, second = down.keys[:4], down.keys[4:]
    assert first == second
    assert len(set(first)) == 4
    assert UUID(first[0]).version == 8


def test_all_attempts_of_one_call_have_one_key(face, front, script, kind):
    down = script(fail(), fail(), answer())
    client = face.client(down, keys=None)
    assert front(Do=lambda request: client.send(kind)).call() == OK
    assert len(down.keys) == 3
    assert len(set(down.keys)) == 1


def test_other_calls_have_other_keys(front, down, client):
    tree = front(Do=lambda request: client.send(Kind.UNARY))
    assert tree.call(key="a") == tree.call(key="b") == OK
    assert len(set(down.keys)) == 2


def test_tenants_with_one_key_have_other_keys(front, down, client):
    tree = front(idem_grpc.metadata("x-tenant"), Do=lambda request: client.send(Kind.UNARY))
    assert tree.call(tenant="a") == tree.call(tenant="b") == OK
    assert len(set(down.keys)) == 2


def test_methods_with_one_key_have_other_keys(front, down, client):
    def handle(request):
        client.send(Kind.UNARY)

    tree = front(Do=handle, Undo=handle)
    assert tree.call("Do") == tree.call("Undo") == OK
    assert len(set(down.keys)) == 2


def test_a_corrected_request_has_other_keys(front, down, client):
    def handle(request):
        client.send(Kind.UNARY)
        if request.amount < 0:
            raise Abort(CODE.INVALID_ARGUMENT, "correct it")

    tree = front(Do=handle)
    assert tree.call(amount=-1)[0] is CODE.INVALID_ARGUMENT
    assert tree.call(amount=1) == OK
    assert len(set(down.keys)) == 2


@pytest.mark.parametrize("kind", SINGLE, ids=lambda kind: kind.value)
def test_two_calls_to_a_method_at_a_time_are_refused(face, front, script, kind):
    gate = threading.Event()
    down = script(hang(gate), answer())
    client = face.client(down, keys=None)
    messages = []

    def handle(request):
        first = client.begin(kind)
        down.await_calls(1)
        with pytest.raises(RuntimeError) as caught:
            client.send(kind)
        messages.append(str(caught.value))
        with pytest.raises(RuntimeError):
            client.begin(kind).responses()
        client.send(Kind.BIDI)  # another method
        with keys.step("second"):
            client.send(kind)
        gate.set()
        first.responses()
        client.send(kind)

    assert front(Do=handle).call() == OK
    assert "keys.step(…)" in messages[0]
    assert "cancel a stream that you leave before its end" in messages[0]
    assert f"calls {kind.path} while it is calling it already" in messages[0]
    assert len(set(down.keys)) == len(down.keys) == 4


@pytest.mark.parametrize("retry", [{}, {"retry": None}], ids=["ours", "native"])
class TestCallsThatAreOver:
    """However a call ends, the next one to the same method may be made."""

    @pytest.fixture
    def check(self, face, front, script, retry):
        def check(handler, *steps):
            down = script(*steps, answer())
            client = face.client(down, keys=None, **retry)

            def handle(request):
                handler(client, down)
                client.send(Kind.UNARY)
                client.send(Kind.SERVER_STREAM)

            assert front(Do=handle).call() == OK

        return check

    def test_by_an_error(self, check):
        def handle(client, down):
            client.error_of(Kind.UNARY)
            client.begin(Kind.UNARY).error()

        check(handle, fail(CODE.NOT_FOUND), fail(CODE.NOT_FOUND))

    def test_by_a_deadline(self, check):
        def hang_before_a_deadline(requests, context):
            has_deadline = context.time_remaining() < 1e6
            yield from (hang() if has_deadline else answer())(requests, context)

        def handle(client, down):
            error = client.error_of(Kind.UNARY, timeout=0)  # which may not even be sent
            assert error.code() is CODE.DEADLINE_EXCEEDED

        check(handle, hang_before_a_deadline)

    def test_by_cancelling(self, check):
        def handle(client, down):
            call = client.begin(Kind.UNARY)
            stream = client.begin(Kind.SERVER_STREAM)
            down.await_calls(2)
            assert call.cancel()
            assert stream.cancel()

        check(handle, hang(), hang())

    def test_by_cancelling_a_stream_of_which_part_was_read(self, check):
        def handle(client, down):
            for _ in range(3):
                stream = client.begin(Kind.SERVER_STREAM)
                assert stream.next() is not None
                stream.cancel()

        check(handle, *[answer(0, until=threading.Event())] * 3)

    def test_in_a_row(self, check):
        def handle(client, down):
            for _ in range(200):
                client.begin(Kind.UNARY).responses()
                client.send(Kind.SERVER_STREAM)

        check(handle)


def test_threads_with_the_copied_context(front, down, client):
    found = []

    def in_step(name):
        with keys.step(name):
            client.send(Kind.UNARY)

    def handle(request):
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


def test_threads_without_it_are_outside(front, down, client):
    def handle(request):
        thread = threading.Thread(target=client.send, args=(Kind.UNARY,))
        thread.start()
        thread.join(DEADLINE)

    assert front(Do=handle).call() == OK
    assert down.keys == [None]


def test_what_comes_before_a_derived_key(face, front, down):
    client = face.client(down, keys={Kind.SERVER_STREAM.path: keys.from_request("order:{order}")})

    def handle(request):
        client.send(Kind.UNARY, metadata=(("idempotency-key", "own"),))
        with keys.using("used"):
            client.send(Kind.UNARY)
        client.send(Kind.SERVER_STREAM)
        for call in [client.begin(Kind.READ), client.begin(Kind.READ)]:  # which need no step each
            call.responses()

    assert front(Do=handle).call() == OK
    assert down.keys == ["own", "used", "order:one", None, None]


def test_a_derived_key_comes_before_any_other_source(face, front, down):
    client = face.client(down, keys=keys.unique)
    tree = front(Do=breaks_once(lambda request: client.send(Kind.UNARY)))
    tree.call()
    assert tree.call() == OK
    assert len(set(down.keys)) == 1


def test_they_can_be_switched_off(face, front, down):
    with_source = face.client(down, derive=False)
    without = face.client(down, derive=False, keys=None)

    def handle(request):
        with_source.send(Kind.UNARY)
        for call in [without.begin(Kind.UNARY), without.begin(Kind.UNARY)]:
            call.responses()

    tree = front(Do=breaks_once(handle))
    tree.call()
    assert tree.call() == OK
    unique = [key for key in down.keys if key is not None]
    assert len(down.keys) == 6
    assert len(set(unique)) == len(unique) == 2
