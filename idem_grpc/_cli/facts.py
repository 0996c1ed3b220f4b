"""What a record says, for people and as JSON. Never the answer itself, unless asked for."""

import base64
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from idem_grpc._core.outcome import Metadata, Outcome
from idem_grpc._core.record import Record, State
from idem_grpc._core.swap import Held

_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns are aligned; the last column is not padded."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def span(seconds: float) -> str:
    """A length of time, in the two units that say the most: "1 h 30 min"."""
    if math.isinf(seconds):
        return "without end"
    if seconds < 60:
        return f"{seconds:.3g} s"
    size, unit, smaller, name = next(units for units in _UNITS if seconds >= units[0])
    whole, rest = int(seconds) // size, int(seconds) % size // smaller
    return f"{whole} {unit}" + (f" {rest} {name}" if rest else "")


def lease_left(held: Held, record: Record) -> float:
    """Seconds until the owner of a run may be taken for dead; negative once it may."""
    return record.lease_left(held.ttl_left)


def is_dead(held: Held, record: Record) -> bool:
    """Whether a run's owner has been silent for longer than its lease."""
    return record.state is State.RUNNING and lease_left(held, record) <= 0


def facts(name: bytes, held: Held, record: Record, *, show_response: bool = False) -> dict[str, Any]:
    """All that is told of a record; times in seconds."""
    told: dict[str, Any] = {
        "key": name.decode(errors="backslashreplace"),
        "state": record.state.name,
        "ttl_seconds": None if math.isinf(held.ttl_left) else round(held.ttl_left, 3),
    }
    if record.state is State.UNREADABLE:
        return told | {"bytes": len(held.value or b"")}
    told |= {
        "kind": "token" if record.binding is not None else "key",
        "attempt": record.attempt,
        "run": record.owner.hex(),
        "request_known": record.fingerprint is not None,
    }
    if record.state is State.RUNNING:
        told |= {
            "lease_seconds": record.lease,
            "silent_seconds": round(max(0.0, record.ttl - held.ttl_left), 3),
            "owner_alive": not is_dead(held, record),
            "on_unclear": record.on_unclear.name,
        }
    if record.outcome is not None:
        by_hand = {"by_hand": True} if record.by_hand else {}
        told["outcome"] = _outcome(record.outcome, show_response) | by_hand
    return told


def _outcome(outcome: Outcome, show_response: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "code": outcome.code.name,
        "messages": len(outcome.messages),
        "bytes": sum(map(len, outcome.messages)),
        "dropped": outcome.messages_dropped,
        "metadata": len(outcome.initial_metadata) + len(outcome.trailing_metadata),
    }
    if show_response:
        told |= {
            "details": outcome.details,
            "initial_metadata": _shown(outcome.initial_metadata),
            "trailing_metadata": _shown(outcome.trailing_metadata),
            "messages_base64": [base64.b64encode(message).decode() for message in outcome.messages],
        }
    return told


def _shown(metadata: Metadata) -> list[tuple[str, str]]:
    return [
        (key, base64.b64encode(value).decode() if isinstance(value, bytes) else value)
        for key, value in metadata
    ]


def as_lines(told: dict[str, Any]) -> list[str]:
    """Facts as aligned lines."""
    rows = [("key", told["key"]), ("state", _state(told)), ("expires in", _ttl(told))]
    if "kind" in told:
        kind = "a token of the TokenService" if told["kind"] == "token" else "a client's own key"
        rows += [("kind", kind), ("attempt", str(told["attempt"])), ("run", told["run"] or "none")]
        rows.append(("request", "known" if told["request_known"] else "not known: any may come"))
    if "on_unclear" in told:
        rows.append(("if it dies", _ON_UNCLEAR[told["on_unclear"]]))
    if "outcome" in told:
        rows += _outcome_rows(told["outcome"])
    return table(rows)


def state_of(told: dict[str, Any]) -> str:
    """The state in a few words."""
    return "RUNNING, lease ran out" if told.get("owner_alive") is False else str(told["state"])


def _state(told: dict[str, Any]) -> str:
    if told["state"] == "UNREADABLE":
        return f"UNREADABLE: {told['bytes']} bytes that this release cannot read, so duplicates are refused"
    if told["state"] != "RUNNING":
        return f"{told['state']}: {_MEANS[told['state']]}"
    silent, lease = span(told["silent_seconds"]), span(told["lease_seconds"])
    return f"{state_of(told)}: its owner last wrote {silent} ago, and has a lease of {lease}"


def _ttl(told: dict[str, Any]) -> str:
    return "never" if told["ttl_seconds"] is None else span(told["ttl_seconds"])


def _outcome_rows(outcome: dict[str, Any]) -> Iterable[tuple[str, str]]:
    size = f"{outcome['messages']}, of {outcome['bytes']} bytes"
    yield "status", outcome["code"]
    yield "given by", "a person, who may correct it with 'resolve'" if "by_hand" in outcome else "a run"
    yield "messages", "too large, not kept" if outcome["dropped"] else size
    yield "metadata", str(outcome["metadata"])
    for name in ("details", "initial_metadata", "trailing_metadata", "messages_base64"):
        if name in outcome:
            told = json.dumps(outcome[name], ensure_ascii=False)  # a terminal obeys what is not printable
            yield name.replace("_", " "), told if told.isprintable() else json.dumps(outcome[name])


_MEANS = {
    "OPEN": "may be claimed",
    "DONE": "every duplicate gets the same answer",
    "UNKNOWN": "nobody knows how it ended; duplicates are refused until that is settled",
}
_ON_UNCLEAR = {"RERUN": "the next duplicate runs it again", "FAIL": "nobody runs it again"}
