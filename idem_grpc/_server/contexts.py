"""The contexts that keyed handlers get in the place of grpc's own.

What a handler says of its answer is recorded. All else is the real context's: attributes that
authentication or a wrapper outside has put on it are seen here, and those set here are seen there.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from inspect import getattr_static
from types import FunctionType, MethodType
from typing import Any, NoReturn

import grpc

from idem_grpc._server.metadata import pairs, text
from idem_grpc._server.recording import Recording

NO_DEADLINE = 9e18
"""What ``time_remaining`` says in grpc's threaded servers when a call has no deadline."""


class _Context:
    """What the contexts of grpc and grpc.aio have in common."""

    _recording: Recording

    def __init__(self, recording: Recording) -> None:
        self.__dict__["_recording"] = recording

    def __getattr__(self, name: str) -> Any:
        if name == "_recording":  # of an object that was not initialised, as a copy is
            raise AttributeError(name)
        recording = self._recording
        if recording.in_aio and recording.is_gone():
            return _left_on(recording.context, name)
        return getattr(recording.context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        recording = self._recording
        is_own = name in self.__dict__ or hasattr(type(self), name)
        if not is_own and not (recording.in_aio and recording.is_gone()):
            try:
                setattr(recording.context, name, value)
                return
            except AttributeError:  # grpc.aio's own context takes none
                pass
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        recording = self._recording
        if name in self.__dict__ or (recording.in_aio and recording.is_gone()):
            super().__delattr__(name)
        else:
            delattr(recording.context, name)

    def invocation_metadata(self) -> Any:
        return tuple(self._recording.fact("invocation_metadata") or ())

    def peer(self) -> str:
        fact: str = self._recording.fact("peer")
        return fact

    def peer_identities(self) -> Sequence[bytes] | None:
        fact: Sequence[bytes] | None = self._recording.fact("peer_identities")
        return fact

    def peer_identity_key(self) -> str | None:
        fact: str | None = self._recording.fact("peer_identity_key")
        return fact

    def auth_context(self) -> Mapping[str, Any]:
        fact: Mapping[str, Any] = self._recording.fact("auth_context")
        return fact

    def set_code(self, code: Any) -> None:
        self._recording.set_code(code)

    def code(self) -> Any:
        return self._recording.code

    def set_details(self, details: str) -> None:
        self._recording.details = text(details)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._recording.trailing_metadata = pairs(trailing_metadata)

    def set_compression(self, compression: grpc.Compression) -> None:
        self._recording.compression = compression

    def disable_next_message_compression(self) -> None:
        self._recording.next_is_plain = True


class SyncContext(_Context, grpc.ServicerContext):
    """For handlers of grpc.server."""

    def is_active(self) -> bool:
        return not self._recording.sees_caller_gone()

    def time_remaining(self) -> float:
        remaining = self._recording.time_remaining()
        return NO_DEADLINE if remaining is None else remaining

    def cancel(self) -> bool:
        self._recording.cancel()
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._recording.sees_caller_gone():
            return False
        self._recording.callbacks.append(callback)
        return True

    def details(self) -> bytes | None:
        details = self._recording.details
        return None if details is None else details.encode()

    def trailing_metadata(self) -> Any:
        return self._recording.trailing_metadata

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._recording.send_initial_metadata(initial_metadata)

    def abort(self, code: Any, details: str) -> NoReturn:
        self._recording.abort(code, details, self._recording.trailing_metadata)
        raise Exception

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self._recording.abort(status.code, status.details, status.trailing_metadata)
        raise Exception

    @property
    def _state(self) -> "_State":
        """grpc's own state of the call, which some interceptors read, with what is recorded here."""
        return _State(self._recording, self._recording.context._state)


class _State:
    """``context._state`` of grpc.server: the code, details and metadata of the handler, and the real rest."""

    def __init__(self, recording: Recording, state: Any) -> None:
        self._recording = recording
        self._real = state

    @property
    def code(self) -> Any:
        return self._recording.code

    @property
    def details(self) -> bytes | None:
        details = self._recording.details
        return None if details is None else details.encode()

    @property
    def trailing_metadata(self) -> Any:
        return self._recording.trailing_metadata

    @property
    def aborted(self) -> bool:
        return self._recording.aborted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class ThreadContext(SyncContext):
    """For plain handlers of a grpc.aio.server, which run on a thread."""

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        _abort(self._recording, code, details, trailing_metadata)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        _abort(self._recording, status.code, status.details, status.trailing_metadata)


class AioContext(_Context, grpc.aio.ServicerContext[Any, Any]):
    """For coroutines. ``reader`` and ``writer`` serve its streams, if it has them."""

    _reader: Callable[[], Awaitable[Any]] | None
    _writer: Callable[[Any], Awaitable[None]] | None

    def __init__(
        self,
        recording: Recording,
        reader: Callable[[], Awaitable[Any]] | None,
        writer: Callable[[Any], Awaitable[None]] | None,
    ) -> None:
        self.__dict__.update(_recording=recording, _reader=reader, _writer=writer)

    def time_remaining(self) -> Any:
        return self._recording.time_remaining()

    def cancelled(self) -> bool:
        return self._recording.is_cancelled or self._recording.sees_caller_gone()

    def done(self) -> bool:
        return self._recording.aborted

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._recording.callbacks.append(partial(callback, self))

    def details(self) -> str:
        return self._recording.details or ""

    def trailing_metadata(self) -> Any:
        return self._recording.trailing_metadata or ()

    async def read(self) -> Any:
        if self._reader is None:
            raise grpc.aio.UsageError("this method has no request stream to read from")
        return await self._reader()

    async def write(self, message: Any) -> None:
        if self._writer is None:
            raise grpc.aio.UsageError("this method has no response stream to write to")
        await self._writer(message)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._recording.send_initial_metadata(initial_metadata)

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        _abort(self._recording, code, details, trailing_metadata)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        _abort(self._recording, status.code, status.details, status.trailing_metadata)


def _abort(recording: Recording, code: Any, details: str, trailing_metadata: Any) -> NoReturn:
    """Abort as grpc.aio does, where what an abort does not say is what was said before."""
    recording.abort(
        code, details or recording.details or "", trailing_metadata or recording.trailing_metadata
    )
    raise grpc.aio.AbortError("Locally aborted.")


def _left_on(context: Any, name: str) -> Any:
    """An attribute of a grpc.aio context whose RPC is over, if it is a value.

    Methods and properties may ask grpc's own context, which then brings down the process.
    """
    if not isinstance(getattr_static(type(context), name, None), (FunctionType, property)):
        value = getattr(context, name)
        if not isinstance(value, MethodType):
            return value
    raise AttributeError(f"the RPC is over: its context can no longer be asked for {name!r}")
