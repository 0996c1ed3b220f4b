"""Every order in which the flows of a few calls can take their steps.

A walk drives real flows against a model of the store: one value, what is left of its
life, and the rule of ``may_swap``. Orders of steps that lead to the same histories, store
and faults left are one state, which is visited once.

A lost reply leaves its swap in flight: it may land at once, at any later moment, or never.
A client library may also send a swap again by itself when its reply was lost: then the swap took
effect at one moment, and its answer is that of a later one.
When a process dies, its flows end. Asking the store again is a step only if its answer can be
another one, so that waiting is not an endless path.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from idem_grpc_pb.v1 import token_pb2

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.flow import flow
from idem_grpc._core.judge import Call
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.policy import KeyRule, OnOutage, Policy, Rules
from idem_grpc._core.record import Binding, OnUnclear, State
from idem_grpc._core.steps import (
    Compare,
    Compared,
    Ended,
    Ending,
    Event,
    Execute,
    Outage,
    TakeOver,
    TooLate,
    Wait,
    Waited,
)
from idem_grpc._core.swap import Held, Swap, Swapped, may_swap
from tests.core.history import Flow, Node
from tests.core.laws import Laws, read

LEASE = 10.0
RETENTION = 40.0
KEY = b"key"
RATE_KEY = b"rate"
FULL = token_pb2.IssueCount(count=1).SerializeToString()
REQUEST = Fingerprint(b"raw", b"canonical")
TOO_DEEP = 200
"""Longer than any path of a flow that ends: with its faults used up, a walk must stop."""


class Faults(NamedTuple):
    """How many times each fault may still happen on a path, and how many faults in all."""

    lost: int = 0
    resent: int = 0
    late: int = 0
    lapses: int = 0
    crashes: int = 0
    failures: int = 0
    cancels: int = 0
    wipes: int = 0
    outages: int = 0
    all: int = 9

    def without(self, kind: str) -> "Faults | None":
        left: int = getattr(self, kind)
        return self._replace(**{kind: left - 1, "all": self.all - 1}) if left and self.all else None


@dataclass(frozen=True)
class Scenario:
    """Calls with the same key and request. ``processes`` and ``on_unclear`` have one item per call."""

    processes: tuple[int, ...]
    on_unclear: tuple[OnUnclear, ...]
    faults: Faults
    token: bool = False
    stream: bool = False
    on_outage: OnOutage = OnOutage.REFUSE
    failures: tuple[Ending, ...] = (Ending.UNCLEAR,)
    decided: tuple[Code, ...] = (Code.OK, Code.OK, Code.OK)
    rate: bool = False

    def calls(self) -> tuple[Call, ...]:
        return tuple(self._call(number) for number in range(len(self.processes)))

    def _call(self, number: int) -> Call:
        policy = Policy(
            key=KeyRule.TOKEN if self.token else KeyRule.REQUIRED,
            retention=RETENTION,
            lease=LEASE,
            max_run=RETENTION,
            on_unclear=self.on_unclear[number],
            on_outage=self.on_outage,
            claim_rate=(1, RETENTION) if self.rate else None,
        )
        binding = Binding(b"operation", b"scope") if self.token else None
        owner = b"owner-%d" % number
        shown = None if self.stream else REQUEST
        rules = Rules.of("/a.B/C", [policy])
        return Call(KEY, owner, shown, rules, binding, RATE_KEY if self.rate else b"")


class At(NamedTuple):
    """One state of the whole: flows, store, swaps in flight, faults left, and what happened before.

    ``lapsed`` has the calls whose lease ran out at some time, ``dead`` the processes that crashed,
    ``started`` the calls whose handler has begun. ``settling``: the store was away, all processes
    know it, and none takes a run over before the living have renewed.
    """

    nodes: tuple[Node, ...]
    store: Held
    in_flight: tuple[tuple[int, Swap], ...]
    faults: Faults
    dead: frozenset[int] = frozenset()
    lapsed: frozenset[int] = frozenset()
    wiped: bool = False
    started: frozenset[int] = frozenset()
    settling: bool = False


class Move(NamedTuple):
    """Something that can happen next. ``writer`` is the call whose swap it is, if it is a swap."""

    text: str
    after: At
    writer: int | None = None


class Tally(NamedTuple):
    states: int
    paths: int


class Walk:
    """All paths of one scenario. ``run`` raises AssertionError, with the path, where a law is broken."""

    def __init__(self, scenario: Scenario, run: Flow = flow) -> None:
        self.scenario = scenario
        self.calls = scenario.calls()
        self._laws = Laws(scenario.processes)
        self._paths: dict[At, int] = {}
        self._trail: list[str] = []
        self._run = run

    def run(self) -> Tally:
        store = Held(None, 0.0)
        if self.scenario.token:
            store = Held(self.calls[0].first_claim().swap.expected, RETENTION)
        nodes = tuple(Node(self._run, call) for call in self.calls)
        try:
            paths = self._go(At(nodes, store, (), self.scenario.faults))
        except AssertionError as broken:
            raise AssertionError(f"{broken}\n  " + "\n  ".join(self._trail)) from None
        return Tally(len(self._paths), paths)

    def _go(self, at: At) -> int:
        """The number of paths from here on."""
        known = self._paths.get(at)
        if known is not None:
            return known
        assert len(self._trail) < TOO_DEEP, "this path has no end"
        paths = 0
        for move in self._moves(at):
            self._trail.append(move.text)
            self._laws.step(at, move)
            paths += self._go(move.after)
            self._trail.pop()
        self._paths[at] = paths or 1
        return paths or 1

    def _moves(self, at: At) -> Iterator[Move]:
        is_moving = False
        for number, node in enumerate(at.nodes):
            if self.scenario.processes[number] not in at.dead and node.step is not None:
                for move in self._moves_of(at, number, node):
                    is_moving = True
                    yield move
        if not is_moving:
            if self._all_over(at):
                self._laws.quiet(at)
            else:
                assert at.store.value is not None, "a flow waits, and nothing can happen any more"
                yield Move("time goes by", self._later(at))
        yield from self._faults(at)

    def _all_over(self, at: At) -> bool:
        return all(
            node.step is None or process in at.dead
            for node, process in zip(at.nodes, self.scenario.processes, strict=True)
        )

    def _moves_of(self, at: At, number: int, node: Node) -> Iterator[Move]:
        match node.step:
            case Swap(key=key) if key == RATE_KEY:
                yield Move(f"{number} is one too many", self._sent(at, number, Held(FULL, 1.0)))
                counted = self._sent(at, number, Swapped(0.0))
                if not self._has_lease(at, number):
                    counted = counted._replace(started=at.started)
                yield Move(f"{number} is counted", counted)
            case Swap() as swap:
                if not (node.paused and node.last_seen == at.store):
                    reply, store = swapped(swap, at.store)
                    text = f"{number} {shown(swap)}: {shown(reply)}"
                    after = self._sent(at, number, reply, store=store)
                    yield Move(text, after, number)
                    faults = at.faults.without("late")
                    if faults is not None and number in after.started - at.started:
                        late = self._later(after._replace(faults=faults, started=at.started))
                        yield Move(f"{text}, and is late", late, number)
                if (faults := at.faults.without("resent")) is not None and store_changes(swap, at.store):
                    _, store = swapped(swap, at.store)
                    after = at._replace(faults=faults, store=store)
                    yield Move(f"{number} {shown(swap)}: done, and will be sent again", after, number)
                if (faults := at.faults.without("lost")) is not None:
                    flying = at.in_flight if swap.expected == swap.new else (*at.in_flight, (number, swap))
                    after = at._replace(faults=faults, in_flight=flying)
                    yield Move(f"{number} {shown(swap)}: lost", self._sent(after, number, Outage()))
            case TakeOver(owner):
                local = self._living_with(at, number, owner)
                if at.settling:
                    held = Waited(hold=LEASE / 2)
                    yield Move(f"{number} may not take over yet", self._sent(at, number, held))
                elif local:
                    yield Move(f"{number} waits: time is up", self._sent(at, number, Waited(more=False)))
                else:
                    yield Move(f"{number} may take over", self._sent(at, number, Waited()))
                for other in local:
                    if other.replies:
                        heard = Waited(other.replies[0])
                        yield Move(f"{number} waits: gets the reply", self._sent(at, number, heard))
            case Wait(owner):
                local = self._living_with(at, number, owner)
                yield Move(f"{number} waits: time is up", self._sent(at, number, Waited(more=False)))
                if node.last_seen != at.store:
                    yield Move(f"{number} waits: poll is due", self._sent(at, number, Waited()))
                for other in local:
                    if other.replies:
                        heard = Waited(other.replies[0])
                        yield Move(f"{number} waits: gets the reply", self._sent(at, number, heard))
            case Compare():
                yield Move(f"{number} compares", self._sent(at, number, Compared(same=True)))
            case Execute():
                if number in at.started:
                    yield from self._endings(at, number, node)
                elif not node.step.acknowledged:  # it has no lease to start under
                    yield Move(f"{number} starts late", at._replace(started=at.started | {number}))
                else:
                    yield Move(f"{number} is too late to start", self._sent(at, number, TooLate()))
        yield from self._renewal(at, number, node)

    def _has_lease(self, at: At, number: int) -> bool:
        record = read(at.store.value)
        has_time = at.store.ttl_left > record.ttl - record.lease
        return record.state is State.RUNNING and record.owner == self.calls[number].owner and has_time

    def _living_with(self, at: At, number: int, owner: bytes) -> list[Node]:
        """The flow of ``owner``, if it is in the process of ``number`` and not over."""
        here = self.scenario.processes[number]
        return [
            other
            for other, process in zip(at.nodes, self.scenario.processes, strict=True)
            if process == here and other.call.owner == owner and other.step is not None
        ]

    def _endings(self, at: At, number: int, node: Node) -> Iterator[Move]:
        owner = node.call.owner
        outcome = Outcome(self.scenario.decided[number], messages=(owner,))
        done = Ended(outcome, Ending.DECIDED, REQUEST if self.scenario.stream else None)
        yield Move(f"{number} ends decided", self._sent(at, number, done))
        if (faults := at.faults.without("failures")) is not None:
            for ending in self.scenario.failures:
                failed = Ended(Outcome(Code.UNKNOWN, owner.decode()), ending)
                after = self._sent(at._replace(faults=faults), number, failed)
                yield Move(f"{number} ends {ending.name}", after)
        if (faults := at.faults.without("cancels")) is not None:
            # A call that is gone by now is not run, and its claim must be given back.
            gone = Ended(Outcome(Code.CANCELLED), Ending.NOT_NOW)
            yield Move(f"{number} is cancelled", self._sent(at._replace(faults=faults), number, gone))

    def _renewal(self, at: At, number: int, node: Node) -> Iterator[Move]:
        """Renewals stop some time after the handler; to renew a fresh record changes nothing."""
        if node.claim is not None:
            swap = node.claim.swap
            if at.store.value == swap.new and at.store.ttl_left < swap.ttl:
                yield Move(f"{number} renews", at._replace(store=Held(swap.new, swap.ttl)), number)

    def _faults(self, at: At) -> Iterator[Move]:
        for place, (number, swap) in enumerate(at.in_flight):
            _, store = swapped(swap, at.store)
            if store != at.store:
                left = at.in_flight[:place] + at.in_flight[place + 1 :]
                yield Move(f"{number} late {shown(swap)}", at._replace(store=store, in_flight=left), number)
        record = read(at.store.value)
        if record.state is State.RUNNING and at.store.ttl_left > record.ttl - record.lease:
            faults = at.faults.without("lapses")
            if faults is not None:
                yield Move("a lease runs out", self._later(at._replace(faults=faults)))
            faults = at.faults.without("outages")
            if faults is not None:
                yield Move("the store is away", self._away(at._replace(faults=faults)))
        if at.settling and not self._must_renew(at):
            yield Move("owners had time to renew", self._settled(at))
        if (faults := at.faults.without("crashes")) is not None:
            for process in {*self.scenario.processes} - at.dead:
                yield Move(f"process {process} dies", at._replace(faults=faults, dead=at.dead | {process}))
        if at.store.value is not None and (faults := at.faults.without("wipes")) is not None:
            after = at._replace(faults=faults, store=Held(None, 0.0), wiped=True)
            yield Move("the store is wiped", after)

    def _sent(self, at: At, number: int, event: Event, *, store: Held | None = None) -> At:
        nodes = list(at.nodes)
        nodes[number] = nodes[number].then(event)
        started = at.started
        if isinstance(nodes[number].step, Execute):
            started |= {number}
        return at._replace(nodes=tuple(nodes), store=at.store if store is None else store, started=started)

    def _later(self, at: At) -> At:
        left = at.store.ttl_left - LEASE
        record = read(at.store.value)
        lapsed = at.lapsed
        if record.state is State.RUNNING:
            lapsed |= {n for n, call in enumerate(self.calls) if call.owner == record.owner}
        return self._aged(at._replace(lapsed=lapsed), left)

    def _away(self, at: At) -> At:
        """The store is away for longer than a lease, and all processes see that."""
        return self._aged(at._replace(settling=True), at.store.ttl_left - LEASE)

    def _settled(self, at: At) -> At:
        """Owners that have not renewed by now are taken for dead."""
        record = read(at.store.value)
        lapsed = at.lapsed
        if record.state is State.RUNNING and at.store.ttl_left <= record.ttl - record.lease:
            lapsed |= {n for n, call in enumerate(self.calls) if call.owner == record.owner}
        return at._replace(settling=False, lapsed=lapsed)

    def _aged(self, at: At, left: float) -> At:
        store = replace(at.store, ttl_left=left) if left > 0 else Held(None, 0.0)
        return at._replace(store=store)

    def _must_renew(self, at: At) -> bool:
        """Whether the run on record lives, and its lease has run out."""
        record = read(at.store.value)
        if record.state is not State.RUNNING or at.store.ttl_left > record.ttl - record.lease:
            return False
        owner = next(n for n, call in enumerate(self.calls) if call.owner == record.owner)
        node = at.nodes[owner]
        lives = self.scenario.processes[owner] not in at.dead and node.step is not None
        return lives and node.claim is not None and at.store.value == node.claim.swap.new


def swapped(swap: Swap, held: Held) -> tuple[Swapped | Held, Held]:
    """What the store answers, and what it holds afterwards."""
    if not may_swap(swap, held.value, held.ttl_left):
        return held, held
    after = Held(None, 0.0) if swap.new is None else Held(swap.new, swap.ttl)
    return Swapped(held.ttl_left), after


def store_changes(swap: Swap, held: Held) -> bool:
    """Whether ``swap`` would write something else than the store holds."""
    return swapped(swap, held)[1] != held


def shown(what: Swap | Swapped | Held) -> str:
    """Describe a step for a reader of a path."""
    match what:
        case Swap():
            return f"{_state(what.expected)} -> {_state(what.new)}"
        case Held():
            return f"held {_state(what.value)}, {what.ttl_left:g} s left"
        case Swapped():
            return "swapped"


@cache
def _state(value: bytes | None) -> str:
    record = read(value)
    return f"{record.state.name}({record.attempt}, {record.owner.decode()})"
