"""The calls that other interceptors put in place of grpc's, and how to recognise grpc's calls.

An interceptor may return any iterable for a response stream, such as a generator, and any future for a single
response. How such a call ended shows when it is iterated over, or in its exception.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import grpc

LOCALLY_CANCELLED = "Locally cancelled by application!"
"""What grpc says of a call that its caller cancelled."""


def is_background(call: Any) -> bool:
    """Whether a continuation returned a call in progress, as made by ``.future()``.

    An interceptor cannot see which of the two its caller asked for. A blocking call
    gives a response in hand, or an RpcError that cannot be iterated over, as a future's can.
    """
    if is_local_failure(call):
        return False
    if hasattr(call, "__next__"):
        return True
    is_future = hasattr(call, "add_done_callback") and hasattr(call, "exception")
    return is_future and not isinstance(call, grpc.RpcError) and not (call.done() and error_of(call) is None)


def is_local_failure(call: Any) -> bool:
    """Whether a call stands for a local exception that is not an RpcError, so nothing was sent."""
    if not (isinstance(call, grpc.Future) and call.done()):
        return False
    try:
        error = call.exception()
    except grpc.FutureCancelledError:
        return False
    return error is not None and not isinstance(error, grpc.RpcError)


def is_call(call: Any) -> bool:
    """Whether an object has the methods of grpc's calls. Other interceptors may return a generator."""
    return all(hasattr(call, name) for name in ("add_callback", "code", "trailing_metadata", "cancel"))


def error_of(call: Any) -> BaseException | None:
    """Return the error of a call that is over, or None if it succeeded."""
    try:
        error: BaseException | None = call.exception()
    except grpc.FutureCancelledError as cancelled:
        return cancelled
    except (AttributeError, NotImplementedError):
        return call if isinstance(call, BaseException) else None
    return error


def code_of(call: Any) -> grpc.StatusCode:
    """Return the status of a call that is over; UNKNOWN if its error has none."""
    error = error_of(call)
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, grpc.FutureCancelledError):
        return grpc.StatusCode.CANCELLED
    return answer_of(error, "code") or grpc.StatusCode.UNKNOWN


def metadata_of(call: Any) -> Any:
    """Return the trailing metadata of a call that is over, or of its error."""
    return answer_of(call, "trailing_metadata") or answer_of(error_of(call), "trailing_metadata") or ()


def answer_of(call: Any, method: str) -> Any:
    """Return what a method of a call returns, or None if the call has no such method."""
    try:
        return getattr(call, method)()
    except (AttributeError, NotImplementedError):
        return None


def when_over(call: Any, report: Callable[[grpc.StatusCode, Any], object]) -> None:
    """Call ``report`` with the status and trailing metadata of a call once it is over.

    Never, if nobody holds it until then.
    """
    held = weakref.ref(call)  # weakly, because grpc cancels a call once nothing holds it

    def over(_: Any = None) -> None:
        if (this := held()) is not None:
            report(code_of(this), metadata_of(this))

    if not is_background(call):
        over()
    elif not hasattr(call, "add_callback"):
        call.add_done_callback(over)
    elif not call.add_callback(over):
        over()


class CancelledCall(grpc.RpcError, grpc.Call):
    """The end of a call that is cancelled while no attempt is in progress."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.code()}, {self.details()}>"

    __str__ = __repr__

    def debug_error_string(self) -> str:
        """As in grpc's own errors; it is not part of grpc.Call."""
        return ""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return LOCALLY_CANCELLED

    def initial_metadata(self) -> Any:
        return ()

    def trailing_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> Any:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False


def as_call(given: Any, *, is_stream: bool) -> Any:
    """Return what a continuation returned, wrapped as a call if it is in progress and not one of grpc's."""
    if is_local_failure(given):
        return given
    if is_call(given) and not (given.done() and _is_of_another(error_of(given), given)):
        return given
    if is_stream:
        return ForeignStream(given)
    return ForeignFuture(given) if is_background(given) else given


def _is_of_another(error: BaseException | None, call: Any) -> bool:
    """Whether a call failed with the error of another call, so that its own status is of no use."""
    return isinstance(error, grpc.RpcError) and error is not call


class _ForeignCall:
    """A call whose status is that of its error."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def exception(self) -> BaseException | None:
        raise NotImplementedError

    def traceback(self) -> Any:
        return getattr(self.exception(), "__traceback__", None)

    def code(self) -> grpc.StatusCode:
        return code_of(self)

    def details(self) -> str:
        return str(answer_of(self.exception(), "details") or "")

    def trailing_metadata(self) -> Any:
        return answer_of(self._given, "trailing_metadata") or metadata_of(self.exception())

    def initial_metadata(self) -> Any:
        given = answer_of(self._given, "initial_metadata")
        return given or answer_of(self.exception(), "initial_metadata") or ()


class ForeignFuture(_ForeignCall):
    """Wraps a future that replaces a call with one response."""

    def exception(self) -> BaseException | None:
        return error_of(self._given)

    def done(self) -> bool:
        return bool(self._given.done())

    def result(self) -> Any:
        return self._given.result()

    def cancel(self) -> bool:
        return bool(self._given.cancel())

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call it when the call is over. Returns False if it is over already."""
        if self._given.done():
            return False
        self._given.add_done_callback(lambda _: callback())
        return True

    add_done_callback = add_callback


class ForeignStream(_ForeignCall):
    """Wraps an iterable that replaces a call with a response stream. It is over once it is exhausted."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self._iterator: Any = None
        self._reading = threading.Lock()  # a generator must not be entered twice
        self._changing = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._error: BaseException | None = None
        self._is_over = False

    def __iter__(self) -> "ForeignStream":
        return self

    def __next__(self) -> Any:
        with self._reading:
            if not self._is_over:
                try:
                    if self._iterator is None:
                        self._iterator = iter(self._given)
                    response = next(self._iterator)
                    if self.done():  # it was cancelled meanwhile
                        self._let_go()
                    return response
                except StopIteration:
                    callbacks = self._end(None)
                except Exception as error:
                    callbacks = self._end(error)
            else:
                callbacks = []
            self._iterator = None
        for callback in callbacks:
            callback()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _end(self, error: BaseException | None) -> list[Callable[[], object]]:
        """End the stream. Returns the callbacks, to be called without the lock."""
        with self._changing:
            if self._is_over:
                return []
            self._is_over, self._error = True, error
            callbacks, self._callbacks = self._callbacks, []
            return callbacks

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call it when the stream was read to its end. Returns False if it was already."""
        with self._changing:
            if not self._is_over:
                self._callbacks.append(callback)
            return not self._is_over

    def done(self) -> bool:
        return self._is_over

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error

    def cancel(self) -> bool:
        """Cancel the call, or drop what cannot be cancelled. Returns False if it is over."""
        if self._is_over:
            return False
        callbacks = self._end(CancelledCall())
        answer_of(self._given, "cancel")
        if self._reading.acquire(blocking=False):
            self._let_go()
            self._reading.release()
        for callback in callbacks:
            callback()
        return True

    def _let_go(self) -> None:
        """Drop the iterable: a generator then closes, and grpc cancels its call."""
        self._given = self._iterator = None
