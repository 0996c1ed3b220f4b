"""What a handler says of its answer, recorded until the store knows of it.

The real context follows the store, for an answer must not go out before it is kept; and
once the caller is gone, the handler must be able to finish as if it were not.
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
from idem_grpc._server.admission import NOT_PARSED, Facts
from idem_grpc._server.call import ServedCall
from idem_grpc._server.handlers import NotSerialized, serialized
from idem_grpc._server.metadata import code_of, pairs, shown, text
from idem_grpc._server.replies import GRPC_CODES
from idem_grpc._server.streams import Incoming, Outgoing

logger = logging.getLogger("idem_grpc")

T = TypeVar("T")


class Recording:
    """What a handler said of its answer, and what it may know of its caller.

    in_aio: whether the rules of grpc.aio hold: numbers are codes, and the first abort ends the call.
        In grpc they are not, and the last one does.
    """

    def __init__(self, call: ServedCall, *, in_aio: bool) -> None:
        method = call.method
        self.incoming = Incoming(method) if method.streams_requests else None
        self._outgoing: Outgoing | None = None
        if method.streams_responses:
            self._outgoing = Outgoing(call.rules.max_response_bytes, self.incoming)
        self.call = call
        self.context = call.context
        self.in_aio = in_aio
        self._facts: Facts | None = None
        self._handed_out: weakref.ref[Any] | None = None
        self.code: Any = None
        self.details: str | None = None
        self.initial_metadata: Metadata = ()
        self.trailing_metadata: Metadata | None = None
        self.aborted = False
        self.callbacks: list[Callable[[], None]] = []
        self.compression: grpc.Compression | None = None
        self.next_is_plain = False
        self._status = Code.OK
        self._final: tuple[Code, str, Metadata] | None = None
        self._failure: Exception | None = None
        self._caller_left = False

    # What the handler says.

    def set_code(self, code: Any) -> None:
        self.code = code
        self._status = code_of(code, self.in_aio)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        self.raise_if_over()
        if self.initial_metadata:
            raise ValueError("Initial metadata no longer allowed!")
        self.initial_metadata = pairs(initial_metadata)

    def abort(self, code: Any, details: str | bytes, trailing_metadata: Any) -> None:
        """Note how the handler ends its call. The caller of this raises, as grpc does."""
        if self._final is not None:
            raise grpc.aio.UsageError("Abort already called!")
        trailing = pairs(trailing_metadata)
        status = code_of(code, self.in_aio)
        if status is Code.OK:
            logger.error("abort() called with StatusCode.OK; returning UNKNOWN")
            code, status, details = grpc.StatusCode.UNKNOWN, Code.UNKNOWN, ""
        self.code, self._status = code, status
        self.details, self.trailing_metadata = text(details), trailing
        self.aborted = True
        if self.in_aio:
            self._final = status, self.details, trailing

    def cancel(self) -> None:
        """As the real context's ``cancel``: the caller sees that, whatever the handler says next."""
        self.aborted = True
        self._final = Code.CANCELLED, "Cancelled by the server", self.trailing_metadata or ()

    def not_run(self, why: str) -> None:
        """Note that the handler was not called: a retry calls it."""
        self.abort(grpc.StatusCode.UNAVAILABLE, f"the handler was not run: {why}", ())
        self.call.release()

    def raise_if_over(self) -> None:
        """Raise AbortError where an abort has ended the call, and a handler goes on."""
        if self.in_aio and self.aborted:
            raise grpc.aio.AbortError("Locally aborted.")

    def sends(self, message: bytes) -> None:
        """Note a response of a stream. Raises CallerGone where a handler must stop for that."""
        self.raise_if_over()
        if self.sees_caller_gone():
            raise CallerGone("the caller went away")
        assert self._outgoing is not None
        self._outgoing.add(message)

    # What it may know of its caller.

    def fact(self, name: str) -> Any:
        """What grpc knows of the caller, by the name of the context's method."""
        if self._facts is None:
            self._facts = self.call.facts_of(self.context)
        return self._facts.get(name)

    def handed_out(self, context: T) -> T:
        """Note the context that the handler gets, which is returned."""
        self._handed_out = weakref.ref(context)
        return context

    @property
    def is_held(self) -> bool:
        """Whether the handler, or somebody whom it gave its context to, can still ask it."""
        return self._handed_out is not None and self._handed_out() is not None

    def is_gone(self) -> bool:
        """Whether the caller is."""
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
        """Tell a handler that must stop. Returns whether this one must."""
        if stops := self.call.rules.on_cancel is OnCancel.CANCEL:
            self.run_callbacks()
        return stops

    def run_callbacks(self) -> None:
        """Call what the handler wants called at the end of its RPC: for it, that is the end of its run."""
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            try:
                callback()
            except BaseException:  # nor does grpc.aio let any through
                logger.exception("Exception in a callback at the end of %s", self.call.method.path)

    # What becomes of it.

    def compress(self) -> None:
        """Have the real context compress the answer as the handler wanted it."""
        if self.compression is not None:
            self.context.set_compression(self.compression)

    def take_plain(self) -> bool:
        """Whether the handler wants its next message not to be compressed: asked once for each."""
        plain, self.next_is_plain = self.next_is_plain, False
        return plain

    def returned(self, response: Any = None) -> Ended:
        """The end of a handler that returned. ``response`` is what it returned, if it does not stream.

        Raises NotSerialized where it cannot be sent.
        """
        method = self.call.method
        if self._final is not None or self._status is not Code.OK or method.streams_responses:
            return self._ended()
        return self._ended((serialized(method.serialize, response),))

    def raised(self, error: BaseException, doing: str = "calling application") -> Ended:
        """The end of a handler that raised; an abort is raised too, and is no accident."""
        if self.aborted:
            self._status = self._status or Code.UNKNOWN
            return self._ended()
        if self._is_malformed:
            pass  # which is logged already, and decides how the call ends
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
        """The end by an exception, of which a duplicate gets the status that grpc gives it."""
        if self.in_aio:
            details = text(f"Unexpected {type(error)}: {shown(error)}")
        elif self.details is None:
            details = text(f"Exception {doing}: {shown(error)}")
        else:
            details = self.details
        self._final = self._status or Code.UNKNOWN, details, self.trailing_metadata or ()
        ended = self._ended(usual=Ending.UNCLEAR)
        if isinstance(error, Exception):
            self._failure = error
        else:  # of a thread, which nothing may end
            logger.error("Exception %s: %s", doing, shown(error), exc_info=error)
        if ended.ending is Ending.DECIDED:  # and then its status is the answer, to its own caller too
            self.log_failure()
        return ended

    def raise_failure(self) -> None:
        """Raise the exception by which the handler ended, if it did, as it is raised without us.

        Interceptors outside may look at it, and may map it to a status, which its caller gets.
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
            del failure  # which has this frame, and would keep it

    def log_failure(self) -> None:
        """Log the exception by which the handler ended, if it did: nobody is there to raise it to."""
        failure, self._failure = self._failure, None
        if failure is not None:
            logger.error(
                "%s: Exception calling application: %s",
                self.call.method.path,
                shown(failure),
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
        if self._outgoing is not None:
            outcome = self._outgoing.outcome(outcome)
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
    def is_plain(self) -> bool:
        """Whether nothing has to be sent or raised for it but its answer, as for most."""
        return self.compression is None and not self.next_is_plain and self._failure is None


def disable_compression(context: Any) -> None:
    """Have the next message sent as it is, where the context lets us."""
    try:
        context.disable_next_message_compression()
    except AttributeError:  # OpenTelemetry's misspells the name of what it wraps
        logger.warning("a context outside does not pass on disable_next_message_compression", exc_info=True)


class _Unmapped:
    """The code of a call whose handler raised, for interceptors outside: UNKNOWN, as it is without us.

    Those that map an exception to a status do so where no code was set. This one is false, as
    no code is, and equals UNKNOWN for those that note how the call ended.
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
    """The caller went away: its request stream is cut, or its handler must stop."""
