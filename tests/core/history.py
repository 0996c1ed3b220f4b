"""A flow at one point of its life. A generator cannot be copied, so a flow is represented by
the history of its events, and each new history is replayed once from the start."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from idem_grpc._core.judge import Call
from idem_grpc._core.steps import (
    Ended,
    Event,
    Execute,
    Outage,
    Pause,
    Reply,
    Step,
    Steps,
    TooLate,
    Wait,
    Waited,
)
from idem_grpc._core.swap import Swap

Flow = Callable[[Call], Steps]


@dataclass(eq=False)
class Node:
    """The state of a flow after a history of events; equal histories are one node.

    ``step`` is what it asks for, None at its end. Replies and pauses ask for nothing,
    and are passed at once; ``paused`` says whether a pause was among them.
    """

    run: Flow
    call: Call
    events: tuple[Event, ...] = ()
    children: dict[Event, "Node"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replies: tuple[Reply, ...] = ()
        self.claim: Execute | None = None
        self.ended: Ended | None = None
        self.step: Step | None = None
        self.swaps_since_execute: list[Swap] = []
        self._replay()

    def _replay(self) -> None:
        steps = self.run(self.call)
        pending = iter(self.events)
        event: Event = None
        self.paused = self.waited = False
        try:
            while True:
                step = steps.send(event)
                event = None
                if isinstance(step, Reply):
                    self.replies += (step,)
                elif isinstance(step, Pause):
                    self.paused = True
                else:
                    if isinstance(step, Execute):
                        self.claim = step
                        self.swaps_since_execute.clear()
                    elif self.claim is not None and isinstance(step, Swap):
                        self.swaps_since_execute.append(step)
                    event = next(pending, None)
                    if event is None:
                        self.step = step
                        return
                    self.paused = False
                    if isinstance(step, Wait):
                        self.waited = True
                    if isinstance(event, TooLate):
                        self.claim = None
                    if isinstance(event, Ended):
                        self.ended = event
        except StopIteration:
            return

    def then(self, event: Event) -> "Node":
        child = self.children.get(event)
        if child is None:
            child = self.children[event] = Node(self.run, self.call, (*self.events, event))
        return child

    @cached_property
    def unacknowledged(self) -> bool:
        """Whether the handler runs, or ran, although the store did not say that the claim took effect."""
        before = [event for event in self.events if not isinstance(event, Ended)]
        at = self.events.index(self.ended) if self.ended is not None else len(before)
        return self.claim is not None and isinstance(self.events[at - 1], Outage)

    @property
    def last_seen(self) -> Event:
        return next((event for event in reversed(self.events) if not isinstance(event, Waited)), None)
