"""A flow that a test drives by hand, one event at a time."""

from idem_grpc._core.flow import flow
from idem_grpc._core.judge import Call
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.record import Record
from idem_grpc._core.steps import Ended, Ending, Event, Execute, Step
from idem_grpc._core.swap import Swap, Swapped
from tests.core.calls import ANSWER, ME

FAILURE = Outcome(Code.UNKNOWN, "the handler's own")
UNCLEAR = Ended(FAILURE, Ending.UNCLEAR)
DECIDED = Ended(ANSWER, Ending.DECIDED)


class Driven:
    """A flow. ``step`` is what it asks for; None when it is over."""

    def __init__(self, call: Call = ME) -> None:
        self._steps = flow(call)
        self.step: Step | None = None
        self.then(None)

    def then(self, *events: Event) -> "Driven":
        """Answer the steps one by one."""
        for event in events:
            try:
                self.step = self._steps.send(event)
            except StopIteration:
                self.step = None
        return self

    def swap(self) -> Swap:
        assert isinstance(self.step, Swap)
        return self.step

    def record(self) -> Record:
        """The record that the flow asks to write."""
        return Record.from_bytes(self.swap().new)


def running(call: Call = ME) -> Driven:
    """A flow whose handler runs."""
    flow = Driven(call).then(Swapped(0.0))
    assert isinstance(flow.step, Execute)
    return flow
