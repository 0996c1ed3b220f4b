"""The attempts at a call that its caller does not wait for, or not yet: futures and response streams.

Nothing here has a thread. An attempt that ends tells so on grpc's thread, the next one is
sent from the timer's, and who reads or waits does it on his own.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import Any, Protocol

import grpc

from idem_grpc._client.common import ANOTHER_RUN, NO_RUN, NO_TOKEN, TOO_LARGE, Handed, Trial
from idem_grpc._client.foreign_calls import ForeignFuture
from idem_grpc._client.grpc_calls import CancelledCall, is_call, is_local_failure
from idem_grpc._client.keying import end_left, leave
from idem_grpc._client.retry import Backoff, Renewal
from idem_grpc._client.sync_requests import Requests
from idem_grpc._client.sync_states import NOTHING, State, is_resumed
from idem_grpc._client.timer import Entry, timer

_log = logging.getLogger(__name__)


class Sending(Protocol):
    """What is sent in every attempt at one call."""

    def send(self, timeout: float | None) -> Any:
        """Make an attempt. Returns its call."""

    def another_key(self) -> Future[str]:
        """A key in place of one for a single use that the server does not know."""

    def use(self, key: str) -> None:
        """Send ``key`` from now on."""


class Attempts:
    """All attempts at one call. ``end`` is called when it is over."""

    def __init__(
        self,
        sending: Sending,
        first: Any,
        trial: Trial,
        requests: Requests | None,
        end: Callable[[], None],
    ) -> None:
        self._sending = sending
        self._trial = trial
        self._requests = requests
        self._end = end
        self._context = copy_context()
        self._changed = threading.Condition()
        self._handed = Handed()
        self._interrupted: Any = None  # the attempt that was last handed from
        self._call: Any = None
        self._state = State.FAILED
        self._next: Entry | None = None
        self._renewal: Future[str] | None = None
        self._ended_well = False
        self._readers = 0
        self._ended_early: Any = None
        self._notes: list[str] = []
        self._callbacks: list[Callable[[], object]] = []
        self.final: Any = None
        self.is_cancelled = False
        timer.start()
        self._begin(first)

    @property
    def is_over(self) -> bool:
        return self._state is State.OVER

    def note(self, error: BaseException) -> None:
        """Tell in the notes of an error how the call went."""
        self._trial.note(error, *self._notes)

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have it called when the call is over; False if it is."""
        with self._changed:
            if not self.is_over:
                self._callbacks.append(callback)
            return not self.is_over

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the call is over; False if it is not in ``timeout`` seconds."""
        return self._wait(lambda: False, timeout)

    def after(self, call: Any) -> Any:
        """Wait for the attempt that follows ``call``, or the end: the attempt, or None at the end."""
        while True:
            self._wait(lambda: self._follows(call), None)
            with self._changed:  # which may have moved on meanwhile, to what is to be skipped
                if self.is_over:
                    return None
                if self._follows(call):
                    return self._call

    def _follows(self, call: Any) -> bool:
        return self._state is State.CURRENT and self._call is not call

    def has_ended(self, call: Any, timeout: float) -> bool:
        """Whether ``call`` is over, or comes to be in ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._call is not call or self._state in (State.FAILED, State.OVER), timeout
            )

    def take(self, call: Any) -> Any:
        """The next response of ``call``; NOTHING if it is over, or another attempt has begun."""
        response, initial_metadata = NOTHING, None
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
                if response is not NOTHING and self._call is call:
                    self._handed.add(lambda: initial_metadata)
                    self._interrupted = call
                elif self.final is not call:
                    response = NOTHING
                ended, self._ended_early = self._ended_early, None
            if ended is not None:
                self._ended(ended)
        return response

    def cancel(self) -> bool:
        """End the call now; False if it is over."""
        with self._changed:
            if self.is_over:
                return False
            self.is_cancelled = True
            if self._next is None and self._call.cancel():
                callbacks = self._finish(self._call)
            elif self._next is None and self._call.code() is grpc.StatusCode.OK and not self._is_behind():
                self.is_cancelled = False  # it is over, and about to say so
                return False
            else:
                callbacks = self._finish(CancelledCall())
        self._conclude(callbacks)
        return True

    def abandon(self) -> None:
        """Cancel the call, soon; for use while garbage is collected, where no lock may be taken."""
        leave(self._end)  # its caller may make the next call at once
        timer.after(0, self._abandoned)

    def _abandoned(self) -> None:
        end_left()
        self.cancel()

    def _wait(self, is_enough: Callable[[], bool], timeout: float | None) -> bool:
        ends = None if timeout is None else monotonic() + timeout
        while True:
            with self._changed:
                left = None if ends is None else max(ends - monotonic(), 0)
                if not self._changed.wait_for(
                    lambda: self._state in (State.OVER, State.BEHIND) or is_enough(), left
                ):
                    return False
                if self._state is not State.BEHIND:
                    return True
                self._state = State.SKIPPING
                call = self._call
            self._skip(call)

    def _begin(self, call: Any) -> None:
        with self._changed:
            is_late = self.is_over
            if not is_late:
                self._call, self._next, self._ended_well = call, None, False
                self._state = State.BEHIND if self._handed.count else State.CURRENT
                self._changed.notify_all()
        if is_late:
            call.cancel()
        elif not call.add_callback(partial(self._ended, call)):
            self._ended(call)

    def _ended(self, call: Any) -> None:
        """An attempt is over: the call is too, or another attempt is due."""
        callbacks = None
        with self._changed:
            if self.is_over or self.is_cancelled or self._call is not call:
                return
            if self._readers:  # one of them may have its last response in hand
                self._ended_early = call
                return
            if call.code() is grpc.StatusCode.OK:
                if self._state is State.SKIPPING:
                    self._ended_well = True  # and whoever skips will tell whether it is the same stream
                    return
                self._trial.succeeded()
                callbacks = self._lose() if self._is_behind() else self._finish(call)
            else:
                callbacks = self._failed(call)
        if callbacks is not None:
            self._conclude(callbacks)

    def _failed(self, call: Any) -> list[Callable[[], object]] | None:
        is_whole = self._requests is None or self._requests.is_whole
        step = self._trial.failed(
            call.code(), call.trailing_metadata(), can_resend=is_whole and self._handed.can_resend
        )
        if step is None:
            if self._trial.was_held_back:
                self._notes.append(NO_RUN if is_whole else TOO_LARGE)
            return self._finish(call)
        self._state = State.FAILED
        if isinstance(step, Backoff):
            self._next = timer.after(step.seconds, self._again)
        else:
            self._renew(step)
        self._changed.notify_all()
        return None

    def _renew(self, renewal: Renewal) -> None:
        """Have another attempt made with another key, which is waited for nowhere."""
        self._renewal = key = self._sending.another_key()
        if renewal.timeout is not None:
            self._next = timer.after(renewal.timeout, partial(self._renewed, key, TimeoutError()))
        # Not on the thread that fetched it, which others wait for, nor on this one, which holds a lock.
        key.add_done_callback(lambda key: timer.after(0, partial(self._renewed, key, key.exception())))

    def _renewed(self, key: Future[str], failure: BaseException | None) -> None:
        with self._changed:
            if self.is_over or self._renewal is not key:
                return
            self._renewal = None
            if self._next is not None:
                self._next.cancel()
            if failure is None:
                self._sending.use(key.result())
                self._trial.renewed(key.result())
        if failure is None:
            self._again()
        else:
            self._give_up(f"{NO_TOKEN}{failure!r}")

    def _again(self) -> None:
        """Send the call once more, on the timer's thread, in the context that it was made in."""
        with self._changed:
            if self.is_over:
                return
            timeout = self._trial.attempt()
        try:
            call = self._context.run(self._sending.send, timeout)
        except Exception as error:  # the channel was closed, or another interceptor is at fault
            self._give_up(f"the last of them could not be sent: {error!r}")
            return
        if is_local_failure(call):
            self._give_up(f"the last of them could not be sent: {call.exception()!r}")
        else:
            # A future that is done by now looks like the response of a blocking call, which this is not.
            self._begin(call if is_call(call) else ForeignFuture(call))

    def _give_up(self, note: str) -> None:
        with self._changed:
            if self.is_over:
                return
            self._notes.append(note)
            callbacks = self._finish(self._call)
        self._conclude(callbacks)

    def _is_behind(self) -> bool:
        return self._state in (State.BEHIND, State.SKIPPING)

    def _skip(self, call: Any) -> None:
        """Read again what was handed over before, if it is the same."""
        is_same = is_resumed(call, self._handed)
        callbacks = None
        with self._changed:
            if self._call is not call or self._state is not State.SKIPPING:
                return
            if is_same is None:
                self._state = State.CURRENT  # it failed: what follows is that of any failure
            elif not is_same:
                callbacks = self._lose()
            elif self._ended_well:
                self._trial.succeeded()
                callbacks = self._finish(call)
            else:
                self._state = State.CURRENT
            self._changed.notify_all()
        if callbacks is not None:
            self._conclude(callbacks)

    def _lose(self) -> list[Callable[[], object]]:
        """The stream cannot be resumed: the call ends as the attempt did that was handed from."""
        self._notes.append(ANOTHER_RUN)
        self._call.cancel()
        return self._finish(self._interrupted)

    def _finish(self, final: Any) -> list[Callable[[], object]]:
        self._end()  # before anybody knows
        self.final, self._state = final, State.OVER
        if self._next is not None:
            self._next.cancel()
        if self._requests is not None:
            self._requests.close()
        callbacks, self._callbacks = self._callbacks, []
        self._changed.notify_all()
        return callbacks

    def _conclude(self, callbacks: list[Callable[[], object]]) -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:  # as grpc does: it is of no concern to the call
                _log.exception("a callback of a call failed")
