"""Makes the attempts at a call of the sync client.

A blocking call is retried on its caller's thread. A future or a stream of responses is a RetriedCall, which
has no thread: its attempts end on grpc's thread, the next one is sent from the timer's thread, and responses
are read on the thread of the reader.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any

import grpc

from idem_grpc._client.answers import failure
from idem_grpc._client.channel import Pairs, with_another_key
from idem_grpc._client.engine import Action, Backoff, Delivery, Engine, Finish, Renew, Send
from idem_grpc._client.foreign_calls import (
    CancelledCall,
    ForeignFuture,
    as_call,
    code_of,
    is_background,
    is_call,
    is_local_failure,
    metadata_of,
)
from idem_grpc._client.requests import SyncRequests
from idem_grpc._client.timer import Entry, timer
from idem_grpc._core.keys import SingleUse
from idem_grpc._core.messages import snapshot

_log = logging.getLogger(__name__)
_GRACE = 0.1  # seconds; an answer that has neither metadata nor responses shows its status at once
_NOTHING = object()

Continuation = Callable[[Any, Any], Any]
Callbacks = list[Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Details(grpc.ClientCallDetails):
    """The details of an attempt."""

    method: str
    timeout: float | None
    metadata: Pairs | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class SyncDriver:
    """Carries out what the engine of a call decides.

    ``request`` is one message or a SyncRequests; ``source`` is that of the key, if it is for a single use.
    """

    def __init__(
        self,
        engine: Engine,
        continuation: Continuation,
        details: Details,
        request: Any,
        *,
        gives_stream: bool,
        source: SingleUse | None,
    ) -> None:
        self._engine = engine
        self._continuation = continuation
        self._details = details
        self._request = request
        self._requests = request if isinstance(request, SyncRequests) else None
        self._gives_stream = gives_stream
        self._source = source

    def run(self) -> Any:
        """Make the call. Returns what to give to grpc: a RetriedCall, or the end of a blocking call."""
        call = self._attempt(self._engine.begin())
        if is_background(call):
            self._request = snapshot(self._request)  # the caller may change its own from now on
            return self._in_background(call)
        try:
            return call if is_local_failure(call) else self._insist(call)
        finally:
            self._engine.cancelled()  # if an exception ended it
            if self._requests is not None:
                self._requests.close()

    def _attempt(self, send: Send) -> Any:
        request = self._request if self._requests is None else self._requests.feed()
        call = self._continuation(replace(self._details, timeout=send.timeout), request)
        return as_call(call, is_stream=self._gives_stream)

    def _ending(self, call: Any, attempt: int) -> Action | None:
        """Report the end of an attempt to the engine."""
        is_whole = self._requests is None or self._requests.is_whole
        return self._engine.ended(attempt, failure(code_of(call), metadata_of(call)), is_whole=is_whole)

    def _another_key(self) -> "Future[str]":
        assert self._source is not None
        return self._source.another()  # type: ignore[no-any-return]  # that of the sync client

    def _use(self, key: str) -> None:
        self._details = replace(self._details, metadata=with_another_key(self._details.metadata, key))

    # A blocking call.

    def _insist(self, call: Any) -> Any:
        """Send a blocking call until it succeeds, or until another attempt is of no use."""
        engine = self._engine
        while True:
            # A response may be of any class, so a blocking call has failed only if it is an RpcError.
            if isinstance(call, grpc.RpcError):
                action = self._ending(call, engine.attempts)
            else:
                action = engine.ended(engine.attempts, None)
            if isinstance(action, Backoff):
                threading.Event().wait(min(action.seconds, threading.TIMEOUT_MAX))
                action = engine.timer()
            elif isinstance(action, Renew):
                action = self._renew_now(action)
            following: Any = None
            if isinstance(action, Send):
                following = self._attempt(action)
                if is_local_failure(following):
                    action = engine.not_sent(following.exception())
            if not isinstance(action, Send):
                break
            call = following
        if isinstance(call, grpc.RpcError):
            engine.annotate(call)
            if not hasattr(call, "result"):  # another interceptor raised it, and grpc asks for its result
                raise call
        return call

    def _renew_now(self, renew: Renew) -> Action | None:
        timeout = None if renew.timeout is None else min(renew.timeout, threading.TIMEOUT_MAX)
        try:
            key = self._another_key().result(timeout)
        except Exception as error:
            return self._engine.not_renewed(error)
        self._use(key)
        return self._engine.renewed(key)

    # A call in the background. All that follows is guarded by `_changed`, the engine included.

    def _in_background(self, first: Any) -> "RetriedCall":
        self._context = copy_context()
        self._changed = threading.Condition()
        self._call: Any = None  # the latest attempt that was sent, and its number
        self._attempt_number = 0
        self._interrupted: Any = None  # the attempt from which a response was last handed over
        self._due: Entry | None = None
        self._readers = 0
        self._is_skipping = False
        self._ended_early: Any = None  # an attempt that ended while it was being read
        self._callbacks: Callbacks = []
        self.final: Any = None
        self.is_cancelled = False
        timer.start()
        retried = RetriedCall(self, self._details.timeout)
        self._sent(first, self._engine.attempts)
        return retried

    @property
    def is_over(self) -> bool:
        return self.final is not None

    def annotate(self, error: BaseException) -> None:
        self._engine.annotate(error)

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call it when the call is over. Returns False if it is over already."""
        with self._changed:
            if not self.is_over:
                self._callbacks.append(callback)
            return not self.is_over

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the call is over. Returns False if it is not in ``timeout`` seconds."""
        return self._wait(lambda: False, timeout)

    def after(self, call: Any) -> Any:
        """Wait for the attempt that follows ``call``. Returns None if the call is over instead."""
        while True:
            self._wait(lambda: self._follows(call), None)
            with self._changed:  # it may have changed since
                if self.is_over:
                    return None
                if self._follows(call):
                    return self._call

    def has_ended(self, call: Any, timeout: float) -> bool:
        """Whether ``call`` is over, or ends within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._call is not call or not self._is_live, timeout)

    def read(self, call: Any) -> Any:
        """The next response of ``call``; _NOTHING if it is over, or another attempt has begun."""
        response, initial_metadata = _NOTHING, None
        with self._changed:
            self._readers += 1
        try:
            response = next(call)
            initial_metadata = call.initial_metadata()
        except (StopIteration, grpc.RpcError):
            pass
        finally:
            with self._changed:
                self._readers -= 1
                action: Action | None = None
                callbacks: Callbacks = []
                if response is not _NOTHING and self._call is call:
                    action = self._engine.delivered(self._attempt_number, initial_metadata)
                if action is Delivery.HAND_OVER:
                    self._interrupted = call
                elif isinstance(action, Finish):
                    response, callbacks = _NOTHING, self._finish(action)
                elif action is None and self.final is not call:
                    response = _NOTHING
            _conclude(callbacks)
            self._report_early_end()
        return response

    def cancel(self) -> bool:
        """End the call now. Returns False if it is over."""
        with self._changed:
            if self.is_over:
                return False
            self.is_cancelled = True  # `_ended` does nothing any more, which may be called by `cancel` below
            final = self._call if self._is_live else None
            if final is not None and not final.cancel():
                if final.code() is grpc.StatusCode.OK and not self._engine.is_behind:
                    self.is_cancelled = False  # it has succeeded, and `_ended` is about to be called
                    return False
                final = None
            self._engine.cancelled()
            callbacks = self._end_as(final or CancelledCall())
        _conclude(callbacks)
        return True

    def abandon(self) -> None:
        """Cancel the call soon. Takes no lock, since it runs during garbage collection."""
        self._engine.abandon()
        timer.after(0, self.cancel)

    @property
    def _is_live(self) -> bool:
        """Whether ``_call`` is under way."""
        return self._engine.is_sent and self._attempt_number == self._engine.attempts

    def _follows(self, call: Any) -> bool:
        return self._is_live and self._call is not call and not self._engine.is_behind

    def _wait(self, is_enough: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until the call is over or ``is_enough``. Meanwhile, read what was handed over before."""

        def must_skip() -> bool:
            return self._is_live and self._engine.is_behind and not self._is_skipping

        ends = None if timeout is None else monotonic() + timeout
        while True:
            with self._changed:
                left = None if ends is None else max(ends - monotonic(), 0)
                if not self._changed.wait_for(lambda: self.is_over or must_skip() or is_enough(), left):
                    return False
                if self.is_over or not must_skip():
                    return True
                self._is_skipping = True
                call = self._call
            self._skip(call)

    def _skip(self, call: Any) -> None:
        """Read the responses of an attempt that were handed over before."""
        try:
            while self._engine.is_behind and self._call is call and self.read(call) is not _NOTHING:
                pass
        finally:
            with self._changed:
                self._is_skipping = False
                self._changed.notify_all()
            self._report_early_end()

    def _sent(self, call: Any, attempt: int) -> None:
        """An attempt is under way."""
        with self._changed:
            is_late = self.is_over
            if not is_late:
                self._call, self._attempt_number, self._due = call, attempt, None
                self._changed.notify_all()
        if is_late:
            call.cancel()
        elif not call.add_callback(partial(self._ended, call)):
            self._ended(call)

    def _ended(self, call: Any) -> None:
        """An attempt is over."""
        with self._changed:
            if self.is_over or self.is_cancelled or self._call is not call:
                return
            if self._readers or self._is_skipping:  # they may have its last response, which comes first
                self._ended_early = call
                return
            callbacks = self._act(self._ending(call, self._attempt_number))
            self._changed.notify_all()
        _conclude(callbacks)

    def _report_early_end(self) -> None:
        """Report the end of an attempt that ended while it was read."""
        # Read without the lock: it is set later only if others still read, who then report it.
        if self._ended_early is None:
            return
        with self._changed:
            ended, self._ended_early = self._ended_early, None
        if ended is not None:
            self._ended(ended)

    def _act(self, action: Action | None) -> Callbacks:
        """Carry out an action other than Send. Returns the callbacks, to be called without the lock."""
        if isinstance(action, Backoff):
            self._due = timer.after(action.seconds, self._timer)
        elif isinstance(action, Renew):
            self._renew(action)
        elif isinstance(action, Finish):
            return self._finish(action)
        return []

    def _renew(self, renew: Renew) -> None:
        key = self._another_key()
        if renew.timeout is not None:
            self._due = timer.after(renew.timeout, partial(self._renewed, key, TimeoutError()))
        # Neither on the thread that fetched it, which others wait for, nor on this one, which has a lock.
        key.add_done_callback(lambda key: timer.after(0, partial(self._renewed, key, key.exception())))

    def _renewed(self, key: "Future[str]", error: BaseException | None) -> None:
        with self._changed:
            if error is None:
                action = self._engine.renewed(key.result())
                if action is not None:
                    self._use(key.result())
            else:
                action = self._engine.not_renewed(error)
            if action is not None and self._due is not None:
                self._due.cancel()
            callbacks = self._act(action)
        _conclude(callbacks)
        self._send(action)

    def _timer(self) -> None:
        with self._changed:
            action = self._engine.timer()
        self._send(action)

    def _send(self, action: Action | None) -> None:
        """Make another attempt, on the timer's thread, in the context that the call was made in."""
        if not isinstance(action, Send):
            return
        error: BaseException | None
        try:
            call = self._context.run(self._attempt, action)
        except Exception as failed:  # the channel is closed, or another interceptor failed
            error = failed
        else:
            if not is_local_failure(call):
                # A future that is done by now looks like the response of a blocking call, which this is not.
                self._sent(call if is_call(call) else ForeignFuture(call), action.attempt)
                return
            error = call.exception()
        with self._changed:
            callbacks = self._act(self._engine.not_sent(error))
        _conclude(callbacks)

    def _finish(self, how: Finish) -> Callbacks:
        if how is Finish.AS_ENDED:
            return self._end_as(self._call)
        self._call.cancel()
        return self._end_as(self._interrupted)

    def _end_as(self, final: Any) -> Callbacks:
        self.final = final
        if self._due is not None:
            self._due.cancel()
        if self._requests is not None:
            self._requests.close()
        callbacks, self._callbacks = self._callbacks, []
        self._changed.notify_all()
        return callbacks


def _conclude(callbacks: Callbacks) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:  # as grpc does
            _log.exception("a callback of a call failed")


class RetriedCall(grpc.Call, grpc.Future):  # type: ignore[type-arg]  # at run time it takes none
    """A call as grpc would give it: a future, or an iterator of responses, which may be sent more than once.

    It ends as its last attempt does, and raises the RpcError of that. As with grpc's own, it
    is cancelled once nobody holds it any more.
    """

    def __init__(self, driver: SyncDriver, timeout: float | None) -> None:
        self._driver = driver
        self._ends = None if timeout is None else monotonic() + timeout
        self._read: Any = None  # the attempt that was read to its end, or gave way to another

    def __del__(self) -> None:
        if not self._driver.is_over:
            self._driver.abandon()

    def __iter__(self) -> "RetriedCall":
        return self

    def __next__(self) -> Any:
        while (call := self._driver.after(self._read)) is not None:
            if (response := self._driver.read(call)) is not _NOTHING:
                return response
            self._read = call
        return self._end_of_stream()

    def _end_of_stream(self) -> Any:
        final = self._driver.final
        if final.code() is grpc.StatusCode.OK:
            raise StopIteration
        if isinstance(final, BaseException):
            self._driver.annotate(final)
            raise final
        try:
            return next(final)  # the call of another interceptor, which raises what it will
        except grpc.RpcError as error:
            self._driver.annotate(error)
            raise

    def result(self, timeout: float | None = None) -> Any:
        """The response. Raises the RpcError of the last attempt, or grpc's errors of futures."""
        final = self._final(timeout)
        try:
            return final.result()
        except grpc.RpcError as error:
            self._driver.annotate(error)
            raise

    def exception(self, timeout: float | None = None) -> Any:
        """The RpcError of the last attempt; None if it succeeded. Raises grpc's errors of futures."""
        error = self._final(timeout).exception()
        if error is not None:
            self._driver.annotate(error)
        return error

    def traceback(self, timeout: float | None = None) -> Any:
        """The traceback of ``exception()``."""
        return self._final(timeout).traceback()

    def _final(self, timeout: float | None) -> Any:
        if not self._driver.wait(timeout):
            raise grpc.FutureTimeoutError
        if self._driver.is_cancelled:
            raise grpc.FutureCancelledError
        return self._driver.final

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Have ``fn`` called with this call when it is over, on whichever thread that is."""
        if not self._driver.add_callback(partial(fn, self)):
            fn(self)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._driver.add_callback(callback)

    def cancel(self) -> bool:
        """End the call now, whether an attempt is under way or waited for."""
        return self._driver.cancel()

    def cancelled(self) -> bool:
        return self._driver.is_cancelled

    def done(self) -> bool:
        return self._driver.is_over

    def running(self) -> bool:
        return not self._driver.is_over

    def is_active(self) -> bool:
        return not self._driver.is_over

    def time_remaining(self) -> Any:
        """What is left of the call's own timeout, in seconds; None if it has none."""
        return None if self._ends is None else max(self._ends - monotonic(), 0.0)

    def code(self) -> grpc.StatusCode:
        return self._last().code()  # type: ignore[no-any-return]  # of whatever call this is

    def details(self) -> str:
        return self._last().details()  # type: ignore[no-any-return]  # likewise of whatever call

    def trailing_metadata(self) -> Any:
        return self._last().trailing_metadata()

    def initial_metadata(self) -> Any:
        """That of the first attempt which is answered, or of the last one."""
        call = None
        while (call := self._driver.after(call)) is not None:
            metadata = call.initial_metadata()
            if metadata or not self._driver.has_ended(call, _GRACE):
                return metadata
        return self._last().initial_metadata()

    def _last(self) -> Any:
        self._driver.wait()
        return self._driver.final
