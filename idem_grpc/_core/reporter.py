"""The observer through which telemetry is attached. By default it does nothing."""

from dataclasses import dataclass

from idem_grpc._core.outcome import Code
from idem_grpc._core.problem import Reason


@dataclass(frozen=True, slots=True)
class Replied:
    """A keyed call was answered.

    method: the method's full name, "/pkg.Service/Method".
    code: the status code of the answer.
    replayed: whether the answer is that of another call's run.
    reason: why the call was refused; None if it was not.
    run: the id of the run that the answer comes from; empty if there is none.
    protected: False if that run began without its claim, while the store was unavailable under
        ``OnOutage.RUN``. Another run of the call is possible then, and the caller does not get the run id.
    """

    method: str
    code: Code
    replayed: bool
    reason: Reason | None
    run: str
    protected: bool = True


class Reporter:
    """Receives events of keyed calls. Override the methods you need; by default they do nothing.

    They are called on the path of the call: they should return quickly and must not raise.
    """

    def replied(self, event: Replied) -> None:
        """Called once for each keyed call that is answered, even if its caller left before the answer."""

    def lease_lost(self, method: str, run: str) -> None:
        """Called when a run outlives its lease or its ``max_run``: another process may run the call again."""
