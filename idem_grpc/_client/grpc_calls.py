"""What grpc's calls look like from outside, and one that looks like them.

Other interceptors may put something else in the place of a call, with as few of its methods as they like.
"""

import weakref
from collections.abc import Callable
from typing import Any

import grpc


def is_background(call: Any) -> bool:
    """Whether a continuation gave a call on its way, as ``.future()`` makes.

    grpc does not tell an interceptor which of the two its caller asked for. A blocking call
    gives a response in hand, or an RpcError that cannot be iterated over, as a future's can.
    """
    if is_local_failure(call):
        return False
    if hasattr(call, "__next__"):
        return True
    is_future = hasattr(call, "add_done_callback") and hasattr(call, "exception")
    return is_future and not isinstance(call, grpc.RpcError) and not (call.done() and error_of(call) is None)


def is_local_failure(call: Any) -> bool:
    """Whether it stands for an exception on this side that is not an RpcError: nothing was sent."""
    if not (isinstance(call, grpc.Future) and call.done()):
        return False
    try:
        error = call.exception()
    except grpc.FutureCancelledError:
        return False
    return error is not None and not isinstance(error, grpc.RpcError)


def is_call(call: Any) -> bool:
    """Whether it has what all of grpc's calls have; other interceptors may put a generator in its place."""
    return all(hasattr(call, name) for name in ("add_callback", "code", "trailing_metadata", "cancel"))


def error_of(call: Any) -> BaseException | None:
    """What a call that is over failed with; None if it succeeded."""
    try:
        error: BaseException | None = call.exception()
    except grpc.FutureCancelledError as cancelled:
        return cancelled
    except (AttributeError, NotImplementedError):
        return call if isinstance(call, BaseException) else None
    return error


def code_of(call: Any) -> grpc.StatusCode:
    """The status of a call that is over; UNKNOWN if its error does not tell."""
    error = error_of(call)
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, grpc.FutureCancelledError):
        return grpc.StatusCode.CANCELLED
    return answer_of(error, "code") or grpc.StatusCode.UNKNOWN


def metadata_of(call: Any) -> Any:
    """The trailing metadata of a call that is over, or of its error."""
    return answer_of(call, "trailing_metadata") or answer_of(error_of(call), "trailing_metadata") or ()


def answer_of(call: Any, method: str) -> Any:
    """What a method of a call returns; None if it has no such method."""
    try:
        return getattr(call, method)()
    except (AttributeError, NotImplementedError):
        return None


def when_over(call: Any, tell: Callable[[grpc.StatusCode, Any], object]) -> None:
    """Call ``tell`` with the status and trailing metadata of a call once it is over.

    Never, if nobody holds it until then.
    """
    held = weakref.ref(call)  # which grpc cancels as it is let go of, so nothing else may hold it

    def over(_: Any = None) -> None:
        if (this := held()) is not None:
            tell(code_of(this), metadata_of(this))

    if not is_background(call):
        over()
    elif not hasattr(call, "add_callback"):
        call.add_done_callback(over)
    elif not call.add_callback(over):
        over()


class CancelledCall(grpc.RpcError, grpc.Call):
    """How a call ends that is cancelled while no attempt is under way."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.code()}, {self.details()}>"

    __str__ = __repr__

    def debug_error_string(self) -> str:
        """As grpc's own errors have it, which is no part of grpc.Call."""
        return ""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return "Locally cancelled by application!"  # grpc's words

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
