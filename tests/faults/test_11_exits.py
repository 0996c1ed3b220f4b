"""SystemExit and KeyboardInterrupt in a keyed coroutine reach the event loop, and leave no run behind."""

import asyncio
import gc
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any
from uuid import uuid4

import grpc
import pytest

import idem_grpc
import idem_grpc.aio
from idem_grpc import OnCancel, OnUnclear, Policy, current
from idem_grpc._core.digest import store_key
from idem_grpc._core.record import Record, State
from tests.faults.compared import ask
from tests.faults.stopping import STATUS
from tests.server.client import Client, Kind
from tests.server.kinds import ALL, kinds
from tests.server.ledger import DEADLINE, Gate
from tests.server.processes import ENVIRONMENT, ROOT
from tests.streams.scripts import Cross, Do, Read, Send, handlers
from tests.streams.servers import Conversation
from tests.support.wait import until

kind = kinds(*ALL)
asyncio_styles = pytest.mark.parametrize("style", ["aio", "aio-read-write", "aio-thread"])


def state_of(store: Any, kind: Kind, key: str) -> State:
    name = store_key(store.namespace, kind.path, b"", key)
    return Record.from_bytes(store.read(name).value).state


class Process:
    """A process whose handler ends it; see ``tests.faults.stopping``."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.faults.stopping", *map(str, arguments)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def call(self, kind: Kind, key: str) -> None:
        assert self._process.stdout is not None
        client = Client(f"127.0.0.1:{int(self._process.stdout.readline())}")
        with suppress(grpc.RpcError):
            ask(client, kind, key)
        client.channel.close()

    def status(self) -> int:
        try:
            return self._process.wait(DEADLINE)
        finally:
            self._process.kill()
            self._process.communicate()


@asyncio_styles
@pytest.mark.parametrize("how", ["exit", "interrupt", "signal"])
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.BIDI], ids=lambda kind: kind.value, indirect=True)
@pytest.mark.parametrize("on_cancel", OnCancel)
def test_the_process_ends_as_it_does_without_the_interceptor(tmp_path, style, kind, key, how, on_cancel):
    if style == "aio-thread" and how == "signal":
        return  # which is the main thread's
    url = f"sqlite:///{tmp_path}/store.db"
    statuses = []
    for protected in (True, False):
        process = Process(style, kind.value, how, url, protected, on_cancel.name)
        process.call(kind, key)
        statuses.append(process.status())
    assert statuses[0] == statuses[1]
    assert statuses[0] == STATUS or how != "exit"
    with idem_grpc.open_store(url, namespace="stopping") as store:
        assert state_of(store, kind, key) is State.UNKNOWN


class Surviving:
    """A server in a loop that is run again whenever an exception ends it."""

    def __init__(self, style: str, script: Any, kind: Kind, outside: Any = (), **policy: Any) -> None:
        self.ended_by: queue.Queue[BaseException] = queue.Queue()
        self._ready: queue.Queue[str] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._is_over = False
        self._outside = outside
        self.store = idem_grpc.aio.open_store("memory:", namespace=uuid4().hex)
        self.interceptor = idem_grpc.aio.ServerInterceptor(
            self.store, scope=idem_grpc.SHARED, default=Policy(**policy)
        )
        self._handlers = handlers(style, {kind: script})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.client = Client(self._ready.get(timeout=DEADLINE))

    async def _serve(self) -> None:
        self._server = grpc.aio.server(interceptors=[*self._outside, self.interceptor])
        self._server.add_generic_rpc_handlers((self._handlers,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._ready.put(f"127.0.0.1:{port}")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        while not self._is_over:
            try:
                self._loop.run_forever()
            except (KeyboardInterrupt, SystemExit) as stop:
                self.ended_by.put(stop)

    def close(self) -> None:
        self.client.channel.close()
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(DEADLINE)
        self._is_over = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture
def surviving():
    started: list[Surviving] = []

    def start(*arguments: Any, **policy: Any) -> Surviving:
        started.append(Surviving(*arguments, **policy))
        return started[-1]

    yield start
    for server in started:
        server.close()


def exiting(kind, stop, seen, *, gate=None):
    """A handler whose first run raises ``stop``, and that answers after that."""

    def script(context):
        yield Read()
        run = current()
        assert run is not None
        seen.append(run.attempt)
        if gate is not None:
            yield Cross(gate)
        if kind.has_response_stream:
            yield Send(b"first")
        if run.attempt == 1:
            yield Do(int)
            raise stop
        return b"answer"

    return script


@asyncio_styles
@pytest.mark.parametrize("stopping", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("on_cancel", OnCancel)
def test_a_loop_that_goes_on_has_no_run_left(surviving, style, kind, key, stopping, on_cancel):
    seen: list[int] = []
    stop = stopping(STATUS)  # made here: its traceback holds the server as long as it lives
    server = surviving(style, exiting(kind, stop, seen), kind, on_cancel=on_cancel)
    first = ask(server.client, kind, key, timeout=1)
    assert not first.ok
    assert server.ended_by.get(timeout=DEADLINE) is stop
    until(lambda: server.interceptor._protection.runs.left() == 0)
    assert state_of(server.store.blocking, kind, key) is State.OPEN
    assert ask(server.client, kind, key).ok
    assert seen == [1, 2]
    assert server.ended_by.empty(), "it comes once"


@asyncio_styles
def test_a_loop_that_goes_on_has_no_run_left_under_fail(surviving, style, kind, key):
    seen: list[int] = []
    server = surviving(style, exiting(kind, SystemExit(1), seen), kind, on_unclear=OnUnclear.FAIL)
    ask(server.client, kind, key, timeout=1)
    server.ended_by.get(timeout=DEADLINE)
    assert state_of(server.store.blocking, kind, key) is State.UNKNOWN


@asyncio_styles
def test_the_exception_reaches_the_loop_when_the_caller_has_left(surviving, style, kind, key):
    seen: list[int] = []
    gate, stop = Gate(), SystemExit(STATUS)
    server = surviving(style, exiting(kind, stop, seen, gate=gate), kind)
    call = Conversation(server.client, kind, key)
    if kind.has_request_stream:
        call.send(b"request")
    call.end()
    gate.await_arrival()  # once its request was read
    call.cancel()
    assert not call.answer().ok
    gate.open()
    assert server.ended_by.get(timeout=DEADLINE) is stop
    until(lambda: server.interceptor._protection.runs.left() == 0)
    assert state_of(server.store.blocking, kind, key) is State.OPEN
    assert server.ended_by.empty()


class Rpcs(grpc.aio.ServerInterceptor):
    """Keeps the task of each RPC, which runs the interceptors too."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        return await continuation(details)


@pytest.mark.parametrize("style", ["aio", "aio-read-write"])
def test_the_exception_reaches_the_loop_whenever_the_rpc_is_cancelled(surviving, style, kind):
    """It is cancelled a turn of the loop later each time, until the RPC is over by itself."""
    rpcs, stop = Rpcs(), SystemExit(STATUS)
    turns = 0
    was_too_late = False

    def cancel(rpc: asyncio.Task[Any], left: int) -> None:
        nonlocal was_too_late
        if left:
            asyncio.get_running_loop().call_soon(cancel, rpc, left - 1)
        else:
            was_too_late = not rpc.cancel()

    def script(context):
        yield Read()
        yield Do(lambda: cancel(rpcs.tasks[-1], turns))
        raise stop

    server = surviving(style, script, kind, outside=[rpcs])
    while not was_too_late:
        call = Conversation(server.client, kind, uuid4().hex)
        if kind.has_request_stream:
            call.send(b"request")
        call.end()
        assert server.ended_by.get(timeout=DEADLINE) is stop, f"cancelled after {turns} turns"
        call.cancel()  # which hears no more of it
        turns += 1
        assert turns < 50
    until(lambda: server.interceptor._protection.runs.left() == 0)
    assert server.ended_by.empty()


def test_on_a_thread_the_call_fails_and_no_run_is_left(start_scripted, style, kind, key):
    """grpc loses such a call: its caller waits for ever, and the thread serves other calls."""
    if style != "sync":
        return
    seen: list[int] = []
    server = start_scripted(scripts={kind: exiting(kind, SystemExit(1), seen)})
    assert ask(server.client, kind, key).code is grpc.StatusCode.UNKNOWN
    assert server.record(key, kind).state is State.OPEN
    assert ask(server.client, kind, key).ok
    assert seen == [1, 2]


@pytest.mark.parametrize("style", ["aio", "aio-read-write"])
@pytest.mark.parametrize("on_unclear", [OnUnclear.RERUN, OnUnclear.FAIL])
def test_a_loop_that_is_dropped_with_its_coroutines_leaves_no_run(style, kind, key, on_unclear):
    """The coroutines are collected, and cannot await anything."""
    store = idem_grpc.aio.open_store("memory:")
    interceptor = idem_grpc.aio.ServerInterceptor(
        store, scope=idem_grpc.SHARED, default=Policy(on_unclear=on_unclear)
    )
    gate = Gate()

    def script(context):
        yield Read()
        yield Cross(gate)
        return b"answer"

    async def serve() -> None:
        server = grpc.aio.server(interceptors=[interceptor])
        server.add_generic_rpc_handlers((handlers(style, {kind: script}),))
        client = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        calling = threading.Thread(target=lambda: ask(client, kind, key, timeout=DEADLINE))
        calling.start()
        await asyncio.to_thread(gate.await_arrival)
        await server.stop(0)
        await asyncio.to_thread(calling.join)
        client.channel.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(serve())
    loop.run_until_complete(loop.shutdown_default_executor())
    assert state_of(store.blocking, kind, key) is State.RUNNING
    for task in asyncio.all_tasks(loop):
        task.get_coro().close()
    loop.run_until_complete(loop.shutdown_asyncgens())  # which the coroutines have left behind
    loop.close()
    left = State.OPEN if on_unclear is OnUnclear.RERUN else State.UNKNOWN
    until(lambda: state_of(store.blocking, kind, key) is left)
    gate.open()
    gc.collect()
