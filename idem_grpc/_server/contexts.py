"""The contexts that keyed handlers get instead of grpc's own.

Status and metadata set by the handler are recorded. Everything else is delegated to the real context:
attributes that an outer interceptor sets there can be read here, and the other way round.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from inspect import getattr_static
from types import FunctionType, MethodType
from typing import Any, NoReturn

import grpc

from idem_grpc._server.metadata import checked_metadata, encodable_text
from idem_grpc._server.recording import Recording

NO_DEADLINE = 9e18
"""What ``time_remaining`` returns in grpc's threaded servers if a call has no deadline."""


class _Context:
    """Base class of the contexts for grpc and grpc.aio."""

    _recording: Recording

    def __init__(self, recording: Recording) -> None:
        self.__dict__["_recording"] = recording

    def __getattr__(self, name: str) -> Any:
        if name == "_recording":  # a copy has no attributes yet
            raise AttributeError(name)
        recording = self._recording
        if recording.in_aio and recording.is_gone():
            return _plain_attribute(recording.context, name)
        return getattr(recording.context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        recording = self._recording
        is_own = name in self.__dict__ or hasattr(type(self), name)
        if not is_own and not (recording.in_aio and recording.is_gone()):
            try:
                setattr(recording.context, name, value)
                return
            except AttributeError:  # grpc.aio's own context has no __dict__
                pass
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        recording = self._recording
        if name in self.__dict__ or (recording.in_aio and recording.is_gone()):
            super().__delattr__(name)
        else:
            delattr(recording.context, name)

    def invocation_metadata(self) -> Any:
        return tuple(self._recording.caller_value("invocation_metadata") or ())

    def peer(self) -> str:
        value: str = self._recording.caller_value("peer")
        return value

    def peer_identities(self) -> Sequence[bytes] | None:
        value: Sequence[bytes] | None = self._recording.caller_value("peer_identities")
        return value

    def peer_identity_key(self) -> str | None:
        value: str | None = self._recording.caller_value("peer_identity_key")
        return value

    def auth_context(self) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self._recording.caller_value("auth_context")
        return value

    def set_code(self, code: Any) -> None:
        self._recording.set_code(code)

    def code(self) -> Any:
        return self._recording.code

    def set_details(self, details: str) -> None:
        self._recording.details = encodable_text(details)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._recording.trailing_metadata = checked_metadata(trailing_metadata)

    def set_compression(self, compression: grpc.Compression) -> None:
        self._recording.compression = compression

    def disable_next_message_compression(self) -> None:
        self._recording.next_uncompressed = True


class SyncContext(_Context, grpc.ServicerContext):
    """The context for handlers of a grpc.server."""

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
        """A view of grpc's own call state, which some interceptors read, with the recorded values."""
        return _State(self._recording, self._recording.context._state)


class _State:
    """``context._state`` of grpc.server, with code, details, trailing metadata and abort as recorded."""

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
    """The context for plain functions in a grpc.aio.server, which run on a thread."""

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        _abort(self._recording, code, details, trailing_metadata)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        _abort(self._recording, status.code, status.details, status.trailing_metadata)


class AioContext(_Context, grpc.aio.ServicerContext[Any, Any]):
    """The context for coroutines. ``reader`` and ``writer`` are for request and response streams."""

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
    """Abort as grpc.aio does: details and metadata that are not given are those set before."""
    recording.abort(
        code, details or recording.details or "", trailing_metadata or recording.trailing_metadata
    )
    raise grpc.aio.AbortError("Locally aborted.")


def _plain_attribute(context: Any, name: str) -> Any:
    """Return a plain attribute of a grpc.aio context whose RPC has ended.

    Raises AttributeError for methods and properties: they may use grpc's own context, which would crash
    the process.
    """
    if not isinstance(getattr_static(type(context), name, None), (FunctionType, property)):
        value = getattr(context, name)
        if not isinstance(value, MethodType):
            return value
    raise AttributeError(f"{name!r} is not available after the RPC has ended")
