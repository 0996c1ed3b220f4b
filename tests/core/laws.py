"""The laws that hold on every path of a walk, with any faults on it."""

from functools import lru_cache
from typing import TYPE_CHECKING

from idem_grpc._core.judge import TRANSITIONS
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.policy import OnOutage
from idem_grpc._core.problem import Problem, Reason
from idem_grpc._core.record import OnUnclear, Record, State
from idem_grpc._core.steps import Ending, Reply

if TYPE_CHECKING:
    from tests.core.history import Node
    from tests.core.walk import At, Move

DECIDED_CODES = (Code.OK, Code.FAILED_PRECONDITION)

NEVER_HERE = (Reason.KEY_REUSED, Reason.TOKEN_UNKNOWN, Reason.TOKEN_MISMATCH, Reason.MISCONFIGURED)
"""All calls of a walk have the same request, and a token that is good for it."""

read = lru_cache(maxsize=None)(Record.from_bytes)
"""A walk reads few values many times."""


class Laws:
    """The laws, for calls that run in ``processes``."""

    def __init__(self, processes: tuple[int, ...]) -> None:
        self._processes = processes

    def step(self, before: "At", move: "Move") -> None:
        """Check one step of a path."""
        after = move.after
        if move.writer is not None and before.store.value != after.store.value:
            self._store(before, after, before.nodes[move.writer].call.owner)
        for number in after.started - before.started:
            self._starts(after, number, after.nodes[number])
        for number, (old, new) in enumerate(zip(before.nodes, after.nodes, strict=True)):
            if new is old:
                continue
            if len(new.replies) > len(old.replies):
                self._replies(after, number, new)
            assert len(new.replies) == 1 or new.step is not None, f"{number} ends without an answer"
            if number in after.started:
                for swap in new.swaps_since_execute:
                    claims = read(swap.new).state is State.RUNNING
                    assert not claims, f"{number} claims after Execute"

    def quiet(self, at: "At") -> None:
        """Check what is left when all flows are over. Swaps in flight may still land."""
        record = read(at.store.value)
        if record.state is State.RUNNING:
            owner = next(n for n, node in enumerate(at.nodes) if node.call.owner == record.owner)
            assert self._processes[owner] in at.dead, f"RUNNING of {owner}, which lives, is left behind"
        if record.state is State.UNKNOWN:
            owner = next(n for n, node in enumerate(at.nodes) if node.call.owner == record.owner)
            assert owner in at.started or self._processes[owner] in at.dead, (
                f"UNKNOWN of {owner}, which never ran"
            )
        if not at.dead and not at.wiped and any(is_decided(node) for node in at.nodes):
            assert record.state is State.DONE, "an outcome was decided, and is not kept"

    def _store(self, before: "At", after: "At", writer: bytes) -> None:
        old, new = read(before.store.value), read(after.store.value)
        edge = f"{old.state.name} -> {new.state.name}"
        assert new.state in TRANSITIONS[old.state], f"{edge} is not in TRANSITIONS"
        if old.state is State.RUNNING and old.owner != writer:
            has_lapsed = before.store.ttl_left <= old.ttl - old.lease
            assert has_lapsed, f"{edge} overtakes an owner whose lease has not run out"
        if old.state is State.UNKNOWN:
            assert old.owner == writer, f"{edge} by another than its owner"
        if new.state in (State.RUNNING, State.OPEN) and old.state is not State.ABSENT:
            unused = new.state is State.OPEN and new.attempt == 0 and writer == old.owner
            grown = new.attempt - old.attempt in (0, 1)
            assert grown or unused, f"{edge}: attempt {old.attempt} -> {new.attempt}"
            assert new.state is State.OPEN or new.attempt > old.attempt, f"{edge}: the attempt does not grow"

    def _starts(self, at: "At", number: int, node: "Node") -> None:
        claim = node.claim
        assert claim is not None
        if node.unacknowledged:
            assert node.call.rules.on_outage is OnOutage.RUN, f"{number} runs without its claim"
            return
        record = read(at.store.value)
        if at.store.value != claim.swap.new:
            assert at.wiped, f"{number} runs, and the store holds {record}"
        if node.waited and read(claim.swap.expected).state is not State.UNKNOWN:
            assert claim.swap.max_left is not None, f"{number} waited for a run, and repeats it"
        for other, run in enumerate(at.nodes):
            if other == number or other not in at.started or run.unacknowledged or at.wiped:
                continue
            fails = OnUnclear.FAIL in (run.call.rules.on_unclear, node.call.rules.on_unclear)
            ending = run.ended.ending if run.ended is not None else None
            if ending in (None, Ending.DECIDED):
                assert not fails, f"FAIL: {number} runs, and {other} ran before"
                assert other in at.lapsed, f"{number} runs, and {other} ran before with its lease alive"
            elif ending is Ending.UNCLEAR:
                assert run.call.rules.on_unclear is OnUnclear.RERUN, f"{number} runs, {other} ended unclear"

    def _replies(self, at: "At", number: int, node: "Node") -> None:
        assert len(node.replies) == 1, f"{number} answers twice"
        reply = node.replies[0]
        if node.unacknowledged and reply.owner == node.call.owner and isinstance(reply.answer, Outcome):
            assert not reply.protected, f"{number} ran without its claim, and says that it was protected"
        else:
            assert reply.protected or _runs_unseen(at, reply), f"{number} says that a run was not protected"
        if isinstance(reply.answer, Problem):
            self._refuses(at, number, node, reply.answer.reason)
        elif reply.answer.code is Code.RESOURCE_EXHAUSTED:
            assert number not in at.started, f"{number} ran, and is refused for too many keys"
        elif reply.answer.code in DECIDED_CODES and not at.wiped and not _runs_unseen(at, reply):
            kept = read(at.store.value)
            is_kept = kept.state is State.DONE and kept.outcome == reply.answer
            assert is_kept, f"{number} answers with what is not kept"
            for other in at.nodes:
                if other.replies and not _runs_unseen(at, other.replies[0]):
                    given = _decided_answer(other.replies[0])
                    assert given in (None, reply.answer), f"{number} answers {reply.answer}, not {given}"

    def _refuses(self, at: "At", number: int, node: "Node", reason: Reason) -> None:
        assert reason not in NEVER_HERE or at.wiped, f"{number} is refused for {reason}"
        if reason is Reason.STORE_UNAVAILABLE:
            assert number not in at.started, f"{number} ran, and says that nothing was run"
        if reason is Reason.OUTCOME_PENDING:
            assert any(is_decided(run) for run in at.nodes), f"{number} reports a run, and no call ran"
        if reason is Reason.OUTCOME_UNKNOWN:
            assert node.replies[0].owner != node.call.owner, f"{number} is refused for its own claim"
            rules = [call.call.rules.on_unclear for call in at.nodes]
            assert OnUnclear.FAIL in rules, f"{number} gets OUTCOME_UNKNOWN where runs are repeated"


def _runs_unseen(at: "At", reply: Reply) -> bool:
    """Whether a reply is of a run that began without its claim, as OnOutage.RUN allows."""
    return any(run.unacknowledged and run.call.owner == reply.owner for run in at.nodes)


def is_decided(node: "Node") -> bool:
    return node.ended is not None and node.ended.ending is Ending.DECIDED


def _decided_answer(reply: Reply) -> Outcome | None:
    is_outcome = isinstance(reply.answer, Outcome) and reply.answer.code in DECIDED_CODES
    return reply.answer if is_outcome and isinstance(reply.answer, Outcome) else None
