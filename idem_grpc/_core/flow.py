"""The course of a keyed call, from its first swap to its last.

``flow`` is a generator without I/O or gRPC: it yields a Step for its driver to perform, and is sent
the Event that results. The sync and the asyncio server are two small drivers of it. A test walks it
through every interleaving, crash and lost reply.

Invariants:

- After Execute a flow never claims again.
- An outcome is sent as a reply only after the store has acknowledged its DONE record. The exception is
  a run that began without a confirmed claim (``OnOutage.RUN``).
- RUNNING is left behind only if the process dies. After its Reply a flow goes on, with no steps but Swap
  and Pause, until the store has its last record. It also ends if the store reports misuse: its
  driver decides how often such a mistake is retried.
"""

import logging
import math
from collections.abc import Generator, Iterator
from dataclasses import replace

from idem_grpc._core.judge import (
    UNKNOWN_TTL,
    Call,
    Claim,
    GiveUp,
    Overwrite,
    Reject,
    Replay,
    Verdict,
    WaitFor,
    judge,
    judge_late,
    left_unknown_by,
)
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.policy import OnOutage
from idem_grpc._core.problem import Problem, Reason, status_outcome
from idem_grpc._core.rate import NotCounted, counted
from idem_grpc._core.record import Binding, OnUnclear, Record, State
from idem_grpc._core.steps import (
    Compare,
    Compared,
    Ended,
    Ending,
    Event,
    Execute,
    Full,
    Outage,
    Pause,
    Reply,
    Step,
    Steps,
    TooLate,
    Wait,
    Waited,
)
from idem_grpc._core.swap import Held, Swap, Swapped, renewal

FIRST_POLL = 0.05
LONGEST_POLL = 1.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
SHORTEST_TTL = 0.001
MOST_STARTS = 3
"""How often a call tries to start its handler in time before it gives its claim back."""
FENCE_TTL = 60.0
"""Seconds for which the record of a key that was given back unused is kept, as a fence. A claim that was
sent before arrives earlier than that.
"""

logger = logging.getLogger("idem_grpc")


def flow(call: Call) -> Steps:
    """Yield the steps of one keyed call."""
    first = call.first_claim()
    claim: Claim | None = first
    seen = yield first.swap
    if isinstance(seen, Swapped):
        first.ttl_left = seen.ttl_left
    else:
        claim = yield from _arrive(call, first, seen)
    if claim is not None and call.rate_key and (yield from _exceeds_claim_rate(call, claim)):
        return
    starts = 0
    while claim is not None:
        ended = yield Execute(claim.record, claim.swap, claim.acknowledged)
        if isinstance(ended, TooLate):
            starts += 1
            claim = yield from _renew(call, claim, is_last=starts == MOST_STARTS)
            continue
        assert isinstance(ended, Ended)
        finish = _keep if ended.ending is Ending.DECIDED else _release
        rest = finish(call, claim, ended)
        del first, claim, ended  # the rest may wait long for the store, and holds what it needs
        yield from rest
        return


def replay_at_once(record: Record, binding: Binding | None, raw: bytes) -> Reply | None:
    """Return the reply to a call whose key has the DONE ``record``; None if it takes the flow to find it.

    ``binding`` is the call's own, and ``raw`` the digest of its request's bytes. If the bytes are those that
    were answered, neither request has to be parsed. The reply equals that of the flow to this record.
    """
    outcome, answered = record.outcome, record.fingerprint
    if outcome is None or answered is None or answered.raw != raw:
        return None
    if record.binding != binding or outcome.messages_dropped:
        return None
    return Reply(outcome, record.owner, replayed=True)


def _exceeds_claim_rate(call: Call, claim: Claim) -> Generator[Step, Event, bool]:
    """Count a new key. Over the rate, give the key back unused, refuse the call and return True.

    A key is counted after it was claimed, so duplicates are not counted. If it cannot be counted, the
    call proceeds.
    """
    rate = call.rules.claim_rate
    assert rate is not None, "there is something to count for"
    if claim.record.attempt > 1 or not claim.acknowledged:
        return False
    try:
        left = yield from counted(call.rate_key, 1, rate)
    except NotCounted as error:
        logger.warning("claim_rate is not enforced for a new key: %s", error)
        return False
    if not left:
        return False
    # Not deleted: the claim may have been sent twice, and this record fences off the second copy.
    unused = Record(state=State.OPEN, owner=call.owner)
    seen = yield Swap(call.store_key, claim.swap.new, unused.to_bytes(), FENCE_TTL)
    sentence = f"a caller may use at most {rate[0]} new keys in {rate[1]:g} s: nothing was run"
    refusal = status_outcome(Code.RESOURCE_EXHAUSTED, sentence, delay_ms=round(left * 1000))
    yield Reply(refusal, is_shared=False)
    if not isinstance(seen, Swapped):
        yield from _give_back(call, claim.swap, unused, FENCE_TTL)
    return True


def _renew(call: Call, claim: Claim, *, is_last: bool) -> Generator[Step, Event, Claim | None]:
    """Renew a claim whose handler was not started in time: another call may have taken it over.

    ``is_last``: this was the last try. The store is too slow for the lease, and is treated as unavailable.
    """
    seen = Outage() if is_last else (yield renewal(claim.swap))
    if isinstance(seen, Swapped):
        return claim
    if isinstance(seen, Outage):
        return (yield from _without_store(call, claim, seen, landed=True))
    return (yield from _arrive(call, claim, seen, waited=True))


def _arrive(
    call: Call, claim: Claim, seen: Event, *, waited: bool = False
) -> Generator[Step, Event, Claim | None]:
    """Claim the key and return the claim, or reply with what prevents it and return None.

    ``seen`` is the answer to ``claim``, the first claim or the last that was tried.
    """
    verdict: Verdict = claim
    polls: Iterator[float] | None = None
    while True:
        if isinstance(seen, Swapped):
            claim.ttl_left = seen.ttl_left
            return claim
        if isinstance(seen, Outage):
            return (yield from _without_store(call, verdict, seen))
        if isinstance(seen, Full):
            yield Reply(Problem(Reason.OVERLOADED))
            return None
        assert isinstance(seen, Held)
        verdict = judge(call, seen, waited=waited)
        if isinstance(verdict, (Claim, GiveUp)) and (takeover := verdict.takeover) is not None:
            event = yield takeover  # its lease has run out, but its owner may be alive
            assert isinstance(event, Waited)
            if (yield from _reply_after_wait(call, event, takeover.owner)):
                return None
            if event.hold:
                verdict = WaitFor(takeover.owner, event.hold)
        match verdict:
            case Claim():
                claim = verdict
                seen = yield claim.swap
            case Replay(outcome, owner, requests):
                if call.fingerprint is not None:  # the judge has compared the requests
                    yield Reply(outcome, owner, replayed=True)
                else:
                    yield from _replay(call, Reply(outcome, owner, requests=requests))
                return None
            case Reject():
                yield Reply(verdict.problem, verdict.owner)
                return None
            case WaitFor():
                polls = polls or _backoff(FIRST_POLL, 1.5, LONGEST_POLL)
                event = yield Wait(verdict.owner, max(0.0, min(next(polls), verdict.lease_left)))
                assert isinstance(event, Waited)
                if (yield from _reply_after_wait(call, event, verdict.owner)):
                    return None
                waited = True
                seen = yield renewal(claim.swap)
            case GiveUp():
                seen = yield verdict.swap
                if isinstance(seen, Swapped):
                    seen = Held(verdict.swap.new, verdict.swap.ttl)
            case _:
                raise AssertionError(f"{verdict} is not a verdict on an arrival")


def _reply_after_wait(call: Call, event: Waited, owner: bytes) -> Generator[Step, Event, bool]:
    """Reply with the result of the wait for the run of ``owner``. Returns False if the wait goes on."""
    if event.reply is not None and event.reply.is_shared:
        yield from _replay(call, event.reply)
    elif event.reply is not None or not event.more:
        yield Reply(Problem(Reason.IN_PROGRESS, is_free=event.reply is not None), owner)
    else:
        return False
    return True


def _replay(call: Call, reply: Reply) -> Steps:
    """Reply with the answer of another call's run, or refuse the call if its request is a different one."""
    answer, requests = reply.answer, reply.requests
    if isinstance(answer, Outcome) and answer.messages_dropped:
        answer = Problem(Reason.RESPONSE_NOT_KEPT)
    elif isinstance(answer, Outcome) and requests is not None:
        same = call.fingerprint is not None and requests.matches(call.fingerprint)
        if call.fingerprint is None:
            event = yield Compare(answer, requests, reply.run)
            assert isinstance(event, Compared)
            same = event.same
        if not same:
            answer = Problem(Reason.KEY_REUSED)
    yield Reply(answer, reply.owner, replayed=isinstance(answer, Outcome), protected=reply.protected)


def _without_store(
    call: Call, verdict: Verdict, outage: Outage, *, landed: bool = False
) -> Generator[Step, Event, Claim | None]:
    """Refuse a call whose claim the store did not confirm, or run it under ``OnOutage.RUN``.

    ``landed``: the claim is known to have taken effect.
    """
    if isinstance(verdict, Claim) and call.rules.on_outage is OnOutage.RUN and not outage.misused:
        verdict.acknowledged = False
        return verdict
    if outage.misused:
        yield Reply(Problem(Reason.MISCONFIGURED))
    elif isinstance(verdict, WaitFor):
        yield Reply(Problem(Reason.IN_PROGRESS), verdict.owner)
    else:
        yield Reply(Problem(Reason.STORE_UNAVAILABLE))
    if isinstance(verdict, Claim) and (landed or (outage.sent and not outage.misused)):
        opened = replace(verdict.record, state=State.OPEN)
        yield from _give_back(call, verdict.swap, opened, call.rules.retention)
    return None


def _give_back(call: Call, claim: Swap, left: Record, ttl: float) -> Steps:
    """Undo a claim that may have taken effect, or may still do so.

    Writing ``left``, rather than restoring the previous record, fences off a claim that
    is still on its way to the store. Such a claim may overtake the fence, hence the loop.
    """
    undo = Swap(claim.key, claim.new, left.to_bytes(), ttl)
    while True:
        seen = yield from _swap_until_answered(undo)
        if not isinstance(seen, Held):
            return
        if seen.value == undo.expected:  # its owner renewed: once it dies, the claim can still succeed
            yield Pause(LONGEST_PAUSE)
        elif seen.value == claim.new or left_unknown_by(call, seen):  # UNKNOWN or not, nothing ran
            undo = replace(undo, expected=seen.value, max_left=None)
        elif seen.value == claim.expected:
            undo = replace(undo, expected=claim.expected, max_left=claim.max_left)
        else:
            return


def _keep(call: Call, claim: Claim, ended: Ended) -> Steps:
    """Store the outcome as the answer to every duplicate, and then reply with it."""
    kept = ended.outcome.limited_to(call.rules.max_response_bytes)
    fingerprint = ended.requests or claim.record.fingerprint
    keep = Swap(
        call.store_key, claim.swap.new, claim.record.done(kept, fingerprint).to_bytes(), call.rules.retention
    )
    acknowledged = claim.acknowledged
    mine = Reply(ended.outcome, call.owner, requests=fingerprint, protected=acknowledged)
    del claim, ended, kept
    seen = yield keep
    if isinstance(seen, Swapped):
        yield mine
        return
    replied = False
    pauses = _backoff(FIRST_PAUSE, 2, LONGEST_PAUSE)
    while True:
        match seen:
            case Swapped():
                reply, is_over = mine, True
            case Outage():
                pending = Reply(Problem(Reason.OUTCOME_PENDING), call.owner)
                reply, is_over = pending if acknowledged else mine, seen.misused
            case Held():
                match judge_late(call, seen, fingerprint):
                    case Overwrite(expected, max_left):
                        keep = replace(keep, expected=expected, max_left=max_left)
                        seen = yield keep
                        continue
                    case GiveUp(swap):
                        yield swap
                        seen = yield keep
                        continue
                    case WaitFor(owner):
                        reply, is_over = Reply(Problem(Reason.IN_PROGRESS), owner), False
                    case Replay(theirs, owner, requests):
                        reply, is_over = Reply(theirs, owner, replayed=True, requests=requests), True
                    case Reject(problem, owner):
                        reply, is_over = Reply(problem, owner), True
        if not replied:
            yield reply
            replied = True
        mine = reply = _REPLIED
        if is_over:
            return
        yield Pause(next(pauses))
        seen = yield keep


_REPLIED = Reply(Problem(Reason.OUTCOME_PENDING))
"""Replaces a reply that was sent, so that an outcome waiting for the store is held only once, as bytes."""


def _release(call: Call, claim: Claim, ended: Ended) -> Steps:
    """Give the key back, or record that its end is unclear, and reply with the handler's own failure."""
    left, ttl = _record_after(call, claim, ended.ending)
    release = Swap(call.store_key, claim.swap.new, left.to_bytes(), ttl)
    seen = yield release
    fingerprint = ended.requests or claim.record.fingerprint
    yield Reply(
        ended.outcome,
        call.owner,
        requests=fingerprint,
        is_shared=not ended.caller_left,
        protected=claim.acknowledged,
    )
    claimed, acknowledged, is_clear = claim.swap, claim.acknowledged, ended.ending is not Ending.UNCLEAR
    del claim, ended
    if not acknowledged and not isinstance(seen, Swapped):
        yield from _give_back(call, claimed, left, ttl)
        return
    if isinstance(seen, Outage):
        yield Pause(FIRST_PAUSE)
        seen = yield from _swap_until_answered(release)
    if isinstance(seen, Held) and is_clear and left_unknown_by(call, seen):
        yield from _swap_until_answered(replace(release, expected=seen.value))


def _record_after(call: Call, claim: Claim, ending: Ending) -> tuple[Record, float]:
    """Return the record that an attempt without an outcome to keep leaves, and its time to live in seconds.

    The fingerprint is dropped, so that the caller can fix the request, only if no earlier attempt at
    the request may have had an effect.
    """
    opened = replace(claim.record, state=State.OPEN)
    if ending is Ending.FIXABLE and claim.first_of_request:
        return replace(opened, fingerprint=None), _unused_ttl(call, claim)
    if ending is not Ending.UNCLEAR:
        return opened, _unused_ttl(call, claim)
    if call.rules.on_unclear is OnUnclear.FAIL:
        return replace(claim.record, state=State.UNKNOWN), UNKNOWN_TTL
    return opened, call.rules.retention


def _unused_ttl(call: Call, claim: Claim) -> float:
    """Return the time to live, in seconds, of a key that is given back.

    A token keeps the time that it had left when it was claimed.
    """
    if call.binding is None or not (claim.was_open and claim.acknowledged):
        return call.rules.retention
    # Stores reject a time to live of zero or infinity, but may report one as left.
    return max(claim.ttl_left, SHORTEST_TTL) if math.isfinite(claim.ttl_left) else call.rules.retention


def _swap_until_answered(swap: Swap) -> Generator[Step, Event, Swapped | Held | Outage]:
    """Send a swap until the store answers it or reports misuse."""
    for pause in _backoff(FIRST_PAUSE, 2, LONGEST_PAUSE):
        seen = yield swap
        if isinstance(seen, (Swapped, Held)) or (isinstance(seen, Outage) and seen.misused):
            return seen
        yield Pause(pause)
    raise AssertionError("pauses never end")


def _backoff(first: float, factor: float, longest: float) -> Iterator[float]:
    value = first
    while True:
        yield value
        value = min(longest, value * factor)
