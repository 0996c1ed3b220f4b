"""Calls, and the records that they find in the store, for the tests of the judge and of the flow."""

from dataclasses import replace

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.judge import Call
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.policy import KeyRule, Policy, Rules
from idem_grpc._core.record import Binding, OnUnclear, Record, State
from idem_grpc._core.swap import Held

LEASE, RETENTION = 30.0, 120.0
ALIVE, DEAD = RETENTION - 29, RETENTION - LEASE
"""What a RUNNING record has left of its retention while its lease holds, and when it has run out."""

BINDING = Binding(b"operation", b"scope")
REQUEST, OTHER_REQUEST = Fingerprint(b"raw", b"canonical"), Fingerprint(b"other", b"other")
ANSWER = Outcome(Code.OK, messages=(b"answer",))


def call(
    *, key: KeyRule = KeyRule.REQUIRED, on_unclear: OnUnclear = OnUnclear.RERUN, owner: bytes = b"me"
) -> Call:
    policy = Policy(key=key, lease=LEASE, retention=RETENTION, on_unclear=on_unclear)
    binding = BINDING if key is KeyRule.TOKEN else None
    return Call(b"key", owner, REQUEST, Rules.of("/a.B/C", [policy]), binding)


ME = call()
TOKEN = call(key=KeyRule.TOKEN)
STRICT = call(on_unclear=OnUnclear.FAIL)

OPEN = Record(state=State.OPEN, attempt=1, owner=b"other", fingerprint=REQUEST)
RUNNING = replace(OPEN, state=State.RUNNING, lease=LEASE, ttl=RETENTION)
DONE = replace(OPEN, state=State.DONE, outcome=ANSWER)
DROPPED = replace(DONE, outcome=Outcome(messages_dropped=True))
UNKNOWN = replace(OPEN, state=State.UNKNOWN)


def held(record: Record | None, left: float = ALIVE) -> Held:
    """What the store holds if a record has ``left`` seconds to live."""
    return Held(None, 0.0) if record is None else Held(record.to_bytes(), left)


def mine(record: Record) -> Record:
    """The same record, written by this call."""
    return replace(record, owner=b"me")
