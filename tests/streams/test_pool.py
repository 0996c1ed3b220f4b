"""The thread pool bounds how many handlers run, including those whose callers have left."""

import logging
import threading
from contextlib import suppress

import pytest

from tests.server.client import Kind
from tests.server.ledger import Gate
from tests.streams.scripts import Cross, Do, Read, Send
from tests.streams.servers import Conversation
from tests.streams.stores import barred
from tests.support.wait import until

KIND = Kind.SERVER_STREAM
WORKERS = 2

pytestmark = pytest.mark.parametrize("style", ["sync"], indirect=True)


class Work:
    """A handler that waits at a gate in mid-stream, and counts how many of its runs overlap."""

    def __init__(self):
        self.gate = Gate()
        self._lock = threading.Lock()
        self.at_once = self.most = self.over = 0

    def script(self, context):
        yield Read()
        yield Do(lambda: self._count(1))
        try:
            yield Send(b"first")
            yield Cross(self.gate)
        finally:
            self._count(-1)

    def _count(self, more):
        with self._lock:
            self.at_once += more
            self.most = max(self.most, self.at_once)
            self.over += more < 0


def test_callers_that_leave_do_not_let_more_handlers_run(start, key):
    work = Work()
    server = start(scripts={KIND: work.script}, workers=WORKERS)
    for number in range(WORKERS):
        call = Conversation(server.client, KIND, f"{key}-left-{number}", timeout=None)
        assert call.receive() == b"first"
        call.cancel()
    stayed = [
        Conversation(server.client, KIND, f"{key}-stayed-{number}", timeout=None) for number in range(3)
    ]
    # Handlers that must not start give no event to wait for: a wrong pool gets this time to start them.
    with suppress(AssertionError):
        until(lambda: work.most > WORKERS, deadline=0.5)
    work.gate.open()
    assert all(call.answer().ok for call in stayed)
    until(lambda: work.over == WORKERS + len(stayed))
    assert work.most == WORKERS


class Broken(BaseException):
    """An exception that stores do not raise."""


def test_an_exception_after_the_caller_left_is_logged(start, open_one, key, caplog):
    work, departed = Work(), threading.Event()

    def bar(swap):
        if departed.is_set():
            raise Broken

    server = start(store=barred(open_one(), bar), scripts={KIND: work.script})
    call = Conversation(server.client, KIND, key, timeout=None)
    assert call.receive() == b"first"
    call.cancel()
    departed.set()
    with caplog.at_level(logging.ERROR, "idem_grpc"):
        work.gate.open()
        until(lambda: [entry for entry in caplog.records if entry.exc_info and entry.exc_info[0] is Broken])
