"""What other interceptors give in place of grpc's calls, with all the methods that are needed here.

An interceptor may give any iterable for a response stream, such as a generator, and any
future for a single response. How such a call ended shows in iterating over it, or in its exception.
"""

import threading
from collections.abc import Callable
from typing import Any

import grpc

from idem_grpc._client.grpc_calls import (
    CancelledCall,
    answer_of,
    code_of,
    error_of,
    is_background,
    is_call,
    is_local_failure,
    metadata_of,
)


def as_call(given: Any, *, is_stream: bool) -> Any:
    """What a continuation gave for an attempt, made a call if it is on its way and not one of grpc's."""
    if is_local_failure(given):
        return given
    if is_call(given) and not (given.done() and _is_of_another(error_of(given), given)):
        return given
    if is_stream:
        return ForeignStream(given)
    return ForeignFuture(given) if is_background(given) else given


def _is_of_another(error: BaseException | None, call: Any) -> bool:
    """Whether a call failed with the error of another: its own status does not tell."""
    return isinstance(error, grpc.RpcError) and error is not call


class _ForeignCall:
    """A call that ends as its error says."""

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
    """A future in place of a call with one response."""

    def exception(self) -> BaseException | None:
        return error_of(self._given)

    def done(self) -> bool:
        return bool(self._given.done())

    def result(self) -> Any:
        return self._given.result()

    def cancel(self) -> bool:
        return bool(self._given.cancel())

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have it called when the call is over; False if it is."""
        if self._given.done():
            return False
        self._given.add_done_callback(lambda _: callback())
        return True

    add_done_callback = add_callback


class ForeignStream(_ForeignCall):
    """An iterable in place of a call with a stream of responses. It is over once it was read to its end."""

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
        """Returns the callbacks to call, once no lock is held."""
        with self._changing:
            if self._is_over:
                return []
            self._is_over, self._error = True, error
            callbacks, self._callbacks = self._callbacks, []
            return callbacks

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have it called when the stream was read to its end; False if it was."""
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
        """Cancel the call, or let go of what cannot be cancelled; False if it is over."""
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
        """Once nobody holds it, a generator closes, and grpc cancels its call."""
        self._given = self._iterator = None
