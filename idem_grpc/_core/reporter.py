"""Where telemetry hangs: a narrow observer, which does nothing unless told to."""

from dataclasses import dataclass

from idem_grpc._core.outcome import Code
from idem_grpc._core.problem import Reason


@dataclass(frozen=True, slots=True)
class Replied:
    """A keyed call was answered with ``code``.

    ``replayed``: the answer is that of another call's run. ``reason`` is set when the
    call was refused. ``run`` is the id of the run that the answer is of, or empty. ``protected``
    is False if that run began without its claim, while the store was away under ``OnOutage.RUN``:
    another may have run the call too, and the caller is told no run id.
    """

    method: str
    code: Code
    replayed: bool
    reason: Reason | None
    run: str
    protected: bool = True


class Reporter:
    """Override what you want to count. Called on the call's own path: be quick, do not raise."""

    def replied(self, event: Replied) -> None:
        """A keyed call was answered. Called once for each, also if its caller left before the answer."""

    def lease_lost(self, method: str, run: str) -> None:
        """A run outlived its lease or its ``max_run``: another process may run the call again."""
