"""The context that a keyed handler gets: it records what the handler says.

The real one follows the store, for an answer must not go out before it is kept; and
once the caller is gone, the handler must be able to finish as if it were not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import grpc

from idem_grpc.endings import Ending, ending_of
from idem_grpc.execution import KeyedExecution
from idem_grpc.outcome import Code, Metadata, Outcome
from idem_grpc.policy import OnCancel, Rules
from idem_grpc.server.admission import NOT_PARSED, Caller
from idem_grpc.server.arities import Handler, NotSerialized
from idem_grpc.server.transcript import Incoming, Outgoing
from idem_grpc.server.values import pairs, shown, text
from idem_grpc.steps import Ended

logger = logging.getLogger("idem_grpc")

NO_DEADLINE = 9e18
"""What ``time_remaining`` says in grpc's threaded servers when a call has no deadline."""


class Recording:
    """What a handler said of its answer, and what it may know of its caller.

    ``time_remaining`` is asked for the seconds to the deadline (None: there is none), and
    ``is_gone`` whether the caller is. The methods here are alike in grpc and grpc.aio.
    """

    def __init__(
        self,
        caller: Caller,
        execution: KeyedExecution,
        rules: Rules,
        handler: Handler,
        *,
        time_remaining: Callable[[], float | None],
        is_gone: Callable[[], bool],
    ) -> None:
        self.incoming: Incoming | None = None
        self._outgoing: Outgoing | None = None
        if handler.request_streaming:
            self.incoming = Incoming(caller.method, rules, handler.request_deserializer)
        if handler.response_streaming:
            self._outgoing = Outgoing(rules.max_response_bytes, self.incoming)
        self._caller = caller
        self._execution = execution
        self._rules = rules
        self._real_time_remaining = time_remaining
        self._is_gone = is_gone
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._initial: Metadata = ()
        self._trailing: Metadata = ()
        self._callbacks: list[Callable[[], None]] = []
        self._caller_left = False
        self.aborted = False
        self._compression: grpc.Compression | None = None
        self._next_is_plain = False

    def invocation_metadata(self) -> Any:
        return self._caller.invocation_metadata

    def peer(self) -> str:
        return self._caller.peer

    def peer_identities(self) -> Sequence[bytes] | None:
        return self._caller.peer_identities

    def peer_identity_key(self) -> str | None:
        return self._caller.peer_identity_key

    def auth_context(self) -> Mapping[str, Any]:
        return self._caller.auth_context

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = text(details)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = pairs(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def code(self) -> Any:
        return self._code

    def set_compression(self, compression: grpc.Compression) -> None:
        self._compression = compression

    def disable_next_message_compression(self) -> None:
        self._next_is_plain = True

    @property
    def initial_metadata(self) -> Metadata:
        """What the handler wants sent ahead of its responses."""
        return self._initial

    def compress(self, context: Any) -> None:
        """Have the real context compress the answer as the handler wanted it."""
        if self._compression is not None:
            context.set_compression(self._compression)

    def next_is_plain(self) -> bool:
        """Whether the handler wants its next message not to be compressed: asked once for each."""
        plain, self._next_is_plain = self._next_is_plain, False
        return plain

    def record_initial_metadata(self, initial_metadata: Any) -> None:
        if self._initial:
            raise ValueError("Initial metadata no longer allowed!")
        self._initial = pairs(initial_metadata)

    def record_abort(
        self, code: grpc.StatusCode, details: str | bytes, trailing_metadata: Any = None
    ) -> None:
        """Note how the handler ended its call; what it raises next is of no account."""
        if code == grpc.StatusCode.OK:
            logger.error("abort() called with StatusCode.OK; returning UNKNOWN")
            code, details = grpc.StatusCode.UNKNOWN, ""
        if trailing_metadata is not None:
            self._trailing = pairs(trailing_metadata)
        self._code = code
        self._details = text(details)
        self.aborted = True

    def _sees_caller_gone(self) -> bool:
        return self._rules.on_cancel is OnCancel.CANCEL and self._is_gone()

    def _time_remaining(self) -> float | None:
        if self._is_gone() and not self._sees_caller_gone():
            return None
        return self._real_time_remaining()

    def sends(self, message: bytes) -> None:
        """Note a response of a stream. Raises CallerGone where a handler must stop for that."""
        if self._sees_caller_gone():
            raise CallerGone("the caller went away")
        assert self._outgoing is not None
        self._outgoing.add(message)

    def caller_left(self) -> bool:
        """Tell a handler that must stop. Returns whether this one must."""
        if stops := self._rules.on_cancel is OnCancel.CANCEL:
            self.run_callbacks()
        return stops

    def run_callbacks(self) -> None:
        """Call what the handler wants called at the end of its RPC: for it, that is the end of its run."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logger.exception("Exception in a callback at the end of %s", self._caller.method)

    def returned(self, serialize: Callable[[], bytes] | None) -> Ended:
        """The end of a handler that returned.

        ``serialize`` gives its response, if it does not stream them, and is asked on success.
        """
        if self.aborted or self._code not in (None, grpc.StatusCode.OK) or serialize is None:
            return self._ended()
        return self._ended((serialize(),))

    def raised(self, error: BaseException) -> Ended:
        """The end of a handler that raised; an abort is raised too, and is no accident."""
        if self.aborted:
            return self._ended()
        if self._is_malformed:
            pass  # which is logged already, and decides how the call ends
        elif isinstance(error, NotSerialized):
            logger.error("%s: Failed to serialize response!", self._caller.method, exc_info=error)
            self._code, self._details = grpc.StatusCode.INTERNAL, "Failed to serialize response!"
        elif isinstance(error, (CallerGone, asyncio.CancelledError)):
            self._caller_left = True
            self._code, self._details = grpc.StatusCode.CANCELLED, "the caller went away"
        else:
            logger.error("Exception calling application: %s", shown(error), exc_info=error)
            if self._code in (None, grpc.StatusCode.OK):
                self._code = grpc.StatusCode.UNKNOWN
            self._details = self._details or text(f"Exception calling application: {shown(error)}")
        return self._ended(usual=Ending.UNCLEAR)

    def _ended(self, messages: tuple[bytes, ...] = (), usual: Ending | None = None) -> Ended:
        name = "OK" if self._code is None else getattr(self._code, "name", "")
        code = Code.__members__.get(name, Code.UNKNOWN)
        details = self._details
        if self._is_malformed:
            code, details, messages = Code.INTERNAL, NOT_PARSED, ()
        outcome = Outcome(code, details, self._initial, self._trailing, messages)
        if self._outgoing is not None:
            outcome = self._outgoing.outcome(outcome)
        ending = self._execution.ending or usual or ending_of(outcome, self._rules.replay_errors)
        if self.incoming is None:
            return Ended(outcome, ending, caller_left=self._caller_left)
        broke_off = self.incoming.cut or self.incoming.malformed
        if broke_off and ending is not Ending.NOT_NOW:
            ending = Ending.UNCLEAR
        return Ended(outcome, ending, self.incoming.so_far(), caller_left=self._caller_left or broke_off)

    @property
    def _is_malformed(self) -> bool:
        return self.incoming is not None and self.incoming.malformed


class RecordingContext(Recording, grpc.ServicerContext):
    """For handlers that run on a thread."""

    def is_active(self) -> bool:
        return not self._sees_caller_gone()

    def time_remaining(self) -> float:
        remaining = self._time_remaining()
        return NO_DEADLINE if remaining is None else remaining

    def cancel(self) -> bool:
        self.record_abort(grpc.StatusCode.CANCELLED, "Cancelled by the server")
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._sees_caller_gone():
            return False
        self._callbacks.append(callback)
        return True

    def details(self) -> bytes:
        return self._details.encode()

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        self.record_initial_metadata(initial_metadata)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.record_abort(code, details)
        raise Aborted

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self.record_abort(status.code, status.details, status.trailing_metadata)
        raise Aborted


class AsyncRecordingContext(Recording, grpc.aio.ServicerContext[Any, Any]):
    """The same for coroutines. ``reader`` and ``writer`` serve its streams, if it has them."""

    reader: Callable[[], Awaitable[Any]] | None = None
    writer: Callable[[Any], Awaitable[None]] | None = None

    def time_remaining(self) -> Any:
        return self._time_remaining()

    def cancelled(self) -> bool:
        return self._sees_caller_gone()

    def done(self) -> bool:
        return self.aborted

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(partial(callback, self))

    def details(self) -> str:
        return self._details

    async def read(self) -> Any:
        if self.reader is None:
            raise grpc.aio.UsageError("this method has no request stream to read from")
        return await self.reader()

    async def write(self, message: Any) -> None:
        if self.writer is None:
            raise grpc.aio.UsageError("this method has no response stream to write to")
        await self.writer(message)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self.record_initial_metadata(initial_metadata)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self.record_abort(code, details or self._details, trailing_metadata or None)
        raise grpc.aio.AbortError("Locally aborted.")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)


class CallerGone(grpc.RpcError):
    """The caller went away: its request stream is cut, or a handler that must stop is told so."""


class Aborted(Exception):
    """Ends a handler after ``abort``, as a bare Exception does in grpc."""
