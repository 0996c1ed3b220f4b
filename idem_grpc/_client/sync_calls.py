"""The call that a caller holds while the attempts at it come and go."""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import grpc

from idem_grpc._client.sync_attempts import Attempts
from idem_grpc._client.sync_states import NOTHING

_GRACE = 0.1  # seconds; an answer that has neither metadata nor responses shows its status at once


class RetriedCall(grpc.Call, grpc.Future):  # type: ignore[type-arg]  # at run time it takes none
    """A call as grpc would give it: a future, or an iterator of responses, which may be sent more than once.

    It ends as its last attempt does, and raises the RpcError of that. As with grpc's own, it
    is cancelled once nobody holds it any more.
    """

    def __init__(self, attempts: Attempts, timeout: float | None) -> None:
        self._attempts = attempts
        self._ends = None if timeout is None else monotonic() + timeout
        self._read: Any = None  # the attempt that was read to its end, or gave way to another

    def __del__(self) -> None:
        if not self._attempts.is_over:
            self._attempts.abandon()

    def __iter__(self) -> "RetriedCall":
        return self

    def __next__(self) -> Any:
        while (call := self._attempts.after(self._read)) is not None:
            if (response := self._attempts.take(call)) is not NOTHING:
                return response
            self._read = call
        return self._end_of_stream()

    def _end_of_stream(self) -> Any:
        final = self._attempts.final
        if final.code() is grpc.StatusCode.OK:
            raise StopIteration
        if isinstance(final, BaseException):
            self._attempts.note(final)
            raise final
        try:
            return next(final)  # the call of another interceptor, which raises what it will
        except grpc.RpcError as error:
            self._attempts.note(error)
            raise

    def result(self, timeout: float | None = None) -> Any:
        """The response. Raises the RpcError of the last attempt, or grpc's errors of futures."""
        final = self._final(timeout)
        try:
            return final.result()
        except grpc.RpcError as error:
            self._attempts.note(error)
            raise

    def exception(self, timeout: float | None = None) -> Any:
        """The RpcError of the last attempt; None if it succeeded. Raises grpc's errors of futures."""
        error = self._final(timeout).exception()
        if error is not None:
            self._attempts.note(error)
        return error

    def traceback(self, timeout: float | None = None) -> Any:
        """The traceback of ``exception()``."""
        return self._final(timeout).traceback()

    def _final(self, timeout: float | None) -> Any:
        if not self._attempts.wait(timeout):
            raise grpc.FutureTimeoutError
        if self._attempts.is_cancelled:
            raise grpc.FutureCancelledError
        return self._attempts.final

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Have ``fn`` called with this call when it is over, on whichever thread that is."""
        if not self._attempts.add_callback(partial(fn, self)):
            fn(self)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._attempts.add_callback(callback)

    def cancel(self) -> bool:
        """End the call now, whether an attempt is under way or waited for."""
        return self._attempts.cancel()

    def cancelled(self) -> bool:
        return self._attempts.is_cancelled

    def done(self) -> bool:
        return self._attempts.is_over

    def running(self) -> bool:
        return not self._attempts.is_over

    def is_active(self) -> bool:
        return not self._attempts.is_over

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
        while (call := self._attempts.after(call)) is not None:
            metadata = call.initial_metadata()
            if metadata or not self._attempts.has_ended(call, _GRACE):
                return metadata
        return self._last().initial_metadata()

    def _last(self) -> Any:
        self._attempts.wait()
        return self._attempts.final
