"""Record the answer of a handler until it is stored.

The recorded answer is passed to the real context only once it is stored, since it must not be sent before.
Recording also lets a handler finish normally after its caller has left.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from idem_grpc._core.outcome import Code, Metadata, Outcome
from idem_grpc._core.policy import OnCancel
from idem_grpc._core.steps import Ended, Ending, ending_of
from idem_grpc._server.admission import NOT_PARSED, CachedContext
from idem_grpc._server.call import ServedCall
from idem_grpc._server.handlers import NotSerialized, serialized
from idem_grpc._server.metadata import checked_metadata, code_of, encodable_text, error_text
from idem_grpc._server.replies import GRPC_CODES
from idem_grpc._server.streams import Incoming, StreamedResponses

logger = logging.getLogger("idem_grpc")

T = TypeVar("T")


class Recording:
    """Records the answer of a handler, and gives access to what it may read about its caller.

    in_aio: whether to follow grpc.aio, where codes may be numbers and the first abort ends the call. In
        grpc, codes may not be numbers, and the last abort decides.
    """

    def __init__(self, call: ServedCall, *, in_aio: bool) -> None:
        method = call.method
        self.incoming = Incoming(method) if method.streams_requests else None
        self._responses: StreamedResponses | None = None
        if method.streams_responses:
            self._responses = StreamedResponses(call.rules.max_response_bytes, self.incoming)
        self.call = call
        self.context = call.context
        self.in_aio = in_aio
        self._cached_context: CachedContext | None = None
        self._handler_context: weakref.ref[Any] | None = None
        self.code: Any = None
        self.details: str | None = None
        self.initial_metadata: Metadata = ()
        self.trailing_metadata: Metadata | None = None
        self.aborted = False
        self.callbacks: list[Callable[[], None]] = []
        self.compression: grpc.Compression | None = None
        self.next_uncompressed = False
        self._status = Code.OK
        self._final: tuple[Code, str, Metadata] | None = None
        self._failure: Exception | None = None
        self._caller_left = False

    # Set by the handler.

    def set_code(self, code: Any) -> None:
        self.code = code
        self._status = code_of(code, self.in_aio)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        self.raise_if_over()
        if self.initial_metadata:
            raise ValueError("Initial metadata no longer allowed!")
        self.initial_metadata = checked_metadata(initial_metadata)

    def abort(self, code: Any, details: str | bytes, trailing_metadata: Any) -> None:
        """Record an abort. The calling method must raise afterwards, as grpc does."""
        if self._final is not None:
            raise grpc.aio.UsageError("Abort already called!")
        trailing = checked_metadata(trailing_metadata)
        status = code_of(code, self.in_aio)
        if status is Code.OK:
            logger.error("abort() called with StatusCode.OK; returning UNKNOWN")
            code, status, details = grpc.StatusCode.UNKNOWN, Code.UNKNOWN, ""
        self.code, self._status = code, status
        self.details, self.trailing_metadata = encodable_text(details), trailing
        self.aborted = True
        if self.in_aio:
            self._final = status, self.details, trailing

    def cancel(self) -> None:
        """Record a cancel by the handler. As in grpc, later codes and aborts do not change it."""
        self.aborted = True
        self._final = Code.CANCELLED, "Cancelled by the server", self.trailing_metadata or ()

    def not_run(self, why: str) -> None:
        """Record that the handler was not called, so that a retry runs it."""
        self.abort(grpc.StatusCode.UNAVAILABLE, f"the handler was not run: {why}", ())
        self.call.release()

    def raise_if_over(self) -> None:
        """Raise AbortError if the handler continues after an abort, in grpc.aio."""
        if self.in_aio and self.aborted:
            raise grpc.aio.AbortError("Locally aborted.")

    def add_response(self, message: bytes) -> None:
        """Record a response of a stream. Raises CallerGone if the caller left and the handler must stop."""
        self.raise_if_over()
        if self.sees_caller_gone():
            raise CallerGone("the caller went away")
        assert self._responses is not None
        self._responses.add(message)

    # Read by the handler.

    def caller_value(self, name: str) -> Any:
        """Return the cached value of a context method that describes the caller."""
        if self._cached_context is None:
            self._cached_context = self.call.cached_context(self.context)
        return self._cached_context.get(name)

    def track_context(self, context: T) -> T:
        """Keep a weak reference to the handler's context, and return the context."""
        self._handler_context = weakref.ref(context)
        return context

    @property
    def is_context_held(self) -> bool:
        """Whether the handler's context is still referenced."""
        return self._handler_context is not None and self._handler_context() is not None

    def is_gone(self) -> bool:
        """Whether the caller has left."""
        return self.call.caller_is_gone()

    def sees_caller_gone(self) -> bool:
        return self.call.rules.on_cancel is OnCancel.CANCEL and self.is_gone()

    def time_remaining(self) -> float | None:
        if self.is_gone() and not self.sees_caller_gone():
            return None
        remaining: float | None = self.context.time_remaining()
        return remaining

    @property
    def is_cancelled(self) -> bool:
        return self._status is Code.CANCELLED

    def caller_left(self) -> bool:
        """Run the callbacks of a handler that must stop, since its caller left. Returns whether it must."""
        if stops := self.call.rules.on_cancel is OnCancel.CANCEL:
            self.run_callbacks()
        return stops

    def run_callbacks(self) -> None:
        """Call the end-of-RPC callbacks of the handler. For the handler, the RPC ends with its run."""
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            try:
                callback()
            except BaseException:  # as grpc.aio does
                logger.exception("Exception in a callback at the end of %s", self.call.method.path)

    # The end of the run.

    def compress(self) -> None:
        """Set the compression that the handler chose on the real context."""
        if self.compression is not None:
            self.context.set_compression(self.compression)

    def take_uncompressed(self) -> bool:
        """Return whether to send the next message without compression, and reset the flag."""
        uncompressed, self.next_uncompressed = self.next_uncompressed, False
        return uncompressed

    def returned(self, response: Any = None) -> Ended:
        """Return the end of a handler that returned ``response``, or that has streamed its responses.

        Raises NotSerialized if the response cannot be serialized.
        """
        method = self.call.method
        if self._final is not None or self._status is not Code.OK or method.streams_responses:
            return self._ended()
        return self._ended((serialized(method.serialize, response),))

    def raised(self, error: BaseException, doing: str = "calling application") -> Ended:
        """Return the end of a handler that raised. An exception after an abort does not change the status."""
        if self.aborted:
            self._status = self._status or Code.UNKNOWN
            return self._ended()
        if self._is_malformed:
            pass  # already logged; _ended sets the status
        elif isinstance(error, NotSerialized):
            logger.error("%s: Failed to serialize response!", self.call.method.path, exc_info=error)
            self._status, self.details = Code.INTERNAL, "Failed to serialize response!"
        elif isinstance(error, (CallerGone, asyncio.CancelledError)):
            self._caller_left = True
            self._status, self.details = Code.CANCELLED, "the caller went away"
        else:
            return self._failed(error, doing)
        return self._ended(usual=Ending.UNCLEAR)

    def _failed(self, error: BaseException, doing: str) -> Ended:
        """Return the end by an unexpected exception. Duplicates get the status that grpc gives it."""
        if self.in_aio:
            details = encodable_text(f"Unexpected {type(error)}: {error_text(error)}")
        elif self.details is None:
            details = encodable_text(f"Exception {doing}: {error_text(error)}")
        else:
            details = self.details
        self._final = self._status or Code.UNKNOWN, details, self.trailing_metadata or ()
        ended = self._ended(usual=Ending.UNCLEAR)
        if isinstance(error, Exception):
            self._failure = error
        else:  # not raised again: it must not end a thread of the pool
            logger.error("Exception %s: %s", doing, error_text(error), exc_info=error)
        if ended.ending is Ending.DECIDED:  # its status is the stored answer, so do not raise it
            self.log_failure()
        return ended

    def raise_failure(self) -> None:
        """Raise the exception that ended the handler, if any.

        Outer interceptors may inspect it and map it to a status for the caller.
        """
        failure, self._failure = self._failure, None
        if failure is None:
            return
        try:
            self.context.set_code(UNMAPPED if self._status is Code.OK else GRPC_CODES[self._status])
            if self.details is not None:
                self.context.set_details(self.details)
            raise failure
        finally:
            del failure  # a reference cycle: its traceback holds this frame

    def log_failure(self) -> None:
        """Log the exception that ended the handler, if any, where it will not be raised."""
        failure, self._failure = self._failure, None
        if failure is not None:
            logger.error(
                "%s: Exception calling application: %s",
                self.call.method.path,
                error_text(failure),
                exc_info=failure,
            )

    def _ended(self, messages: tuple[bytes, ...] = (), usual: Ending | None = None) -> Ended:
        code, details, trailing = self._final or (
            self._status,
            self.details or "",
            self.trailing_metadata or (),
        )
        if self._is_malformed:
            code, details, messages = Code.INTERNAL, NOT_PARSED, ()
        outcome = Outcome(code, details, self.initial_metadata, trailing, messages)
        if self._responses is not None:
            outcome = self._responses.outcome(outcome)
        ending = self.call.ending or usual or ending_of(outcome, self.call.rules.replay_errors)
        if self.incoming is None:
            return Ended(outcome, ending, caller_left=self._caller_left)
        broke_off = self.incoming.cut or self.incoming.malformed
        if broke_off and ending is not Ending.NOT_NOW:
            ending = Ending.UNCLEAR
        return Ended(outcome, ending, self.incoming.so_far(), caller_left=self._caller_left or broke_off)

    @property
    def _is_malformed(self) -> bool:
        return self.incoming is not None and self.incoming.malformed

    @property
    def has_only_outcome(self) -> bool:
        """Whether the handler set no compression and raised nothing, as most do."""
        return self.compression is None and not self.next_uncompressed and self._failure is None


def disable_compression(context: Any) -> None:
    """Send the next message without compression, if the context supports that."""
    try:
        context.disable_next_message_compression()
    except AttributeError:  # OpenTelemetry's context misspells the name
        logger.warning(
            "the context of an outer interceptor lacks disable_next_message_compression", exc_info=True
        )


class _Unmapped:
    """The code that outer interceptors see for a call whose handler raised: UNKNOWN, but false.

    Interceptors that map exceptions to a status only do so if no code was set, so it is false. It equals
    UNKNOWN for those that log the status of the call.
    """

    name = grpc.StatusCode.UNKNOWN.name
    value = grpc.StatusCode.UNKNOWN.value

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is self or other is grpc.StatusCode.UNKNOWN

    def __hash__(self) -> int:
        return hash(grpc.StatusCode.UNKNOWN)

    def __repr__(self) -> str:
        return repr(grpc.StatusCode.UNKNOWN)

    def __str__(self) -> str:
        return str(grpc.StatusCode.UNKNOWN)


UNMAPPED = _Unmapped()


class CallerGone(grpc.RpcError):
    """The caller left, so that the request stream is cut or the handler must stop."""
