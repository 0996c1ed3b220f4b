"""What grpc's calls look like from outside, and one that looks like them."""

import weakref
from collections.abc import Callable
from typing import Any

import grpc


def is_background(call: Any) -> bool:
    """Whether a continuation gave a call on its way, as ``.future()`` makes, and not one that is over.

    grpc tells an interceptor not which of the two its caller asked for. The one public sign
    is that a future's call can be iterated over, and a blocking one's cannot.
    """
    return hasattr(call, "__next__") and not is_local_failure(call)


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


def when_over(call: Any, tell: Callable[[Any], object]) -> None:
    """Call ``tell`` with a call of grpc's once it is over; never, if nobody holds it until then."""
    held = weakref.ref(call)  # which grpc cancels as it is let go of, so nothing else may hold it

    def over() -> None:
        if (this := held()) is not None:
            tell(this)

    if not (is_background(call) and call.add_callback(over)):
        tell(call)


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
