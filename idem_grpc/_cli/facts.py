"""Descriptions of records, as text and as JSON. They include the response only on request."""

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
    """Format rows as lines with aligned columns; the last column is not padded."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def duration(seconds: float) -> str:
    """Format seconds in their two largest units, as in "1 h 30 min"."""
    if math.isinf(seconds):
        return "without end"
    if seconds < 60:
        return f"{seconds:.3g} s"
    size, unit, smaller, name = next(units for units in _UNITS if seconds >= units[0])
    whole, rest = int(seconds) // size, int(seconds) % size // smaller
    return f"{whole} {unit}" + (f" {rest} {name}" if rest else "")


def is_dead(held: Held, record: Record) -> bool:
    """Return whether the record is of a run whose lease has expired."""
    return record.state is State.RUNNING and record.lease_left(held.ttl_left) <= 0


def describe(name: bytes, held: Held, record: Record, *, show_response: bool = False) -> dict[str, Any]:
    """Describe a record as a JSON object. Times are in seconds.

    show_response: include the response's messages, metadata and details, which may be confidential.
    """
    info: dict[str, Any] = {
        "key": name.decode(errors="backslashreplace"),
        "state": record.state.name,
        "ttl_seconds": None if math.isinf(held.ttl_left) else round(held.ttl_left, 3),
    }
    if record.state is State.UNREADABLE:
        return info | {"bytes": len(held.value or b"")}
    info |= {
        "kind": "token" if record.binding is not None else "key",
        "attempt": record.attempt,
        "run": record.owner.hex(),
        "request_known": record.fingerprint is not None,
    }
    if record.state is State.RUNNING:
        info |= {
            "lease_seconds": record.lease,
            "silent_seconds": round(max(0.0, record.ttl - held.ttl_left), 3),
            "owner_alive": not is_dead(held, record),
            "on_unclear": record.on_unclear.name,
        }
    if record.outcome is not None:
        by_hand = {"by_hand": True} if record.by_hand else {}
        info["outcome"] = _outcome(record.outcome, show_response) | by_hand
    return info


def _outcome(outcome: Outcome, show_response: bool) -> dict[str, Any]:
    info: dict[str, Any] = {
        "code": outcome.code.name,
        "messages": len(outcome.messages),
        "bytes": sum(map(len, outcome.messages)),
        "dropped": outcome.messages_dropped,
        "metadata": len(outcome.initial_metadata) + len(outcome.trailing_metadata),
    }
    if show_response:
        info |= {
            "details": outcome.details,
            "initial_metadata": _as_json(outcome.initial_metadata),
            "trailing_metadata": _as_json(outcome.trailing_metadata),
            "messages_base64": [base64.b64encode(message).decode() for message in outcome.messages],
        }
    return info


def _as_json(metadata: Metadata) -> list[tuple[str, str]]:
    return [
        (key, base64.b64encode(value).decode() if isinstance(value, bytes) else value)
        for key, value in metadata
    ]


def as_lines(info: dict[str, Any]) -> list[str]:
    """Format the result of ``describe`` as aligned lines."""
    rows = [("key", info["key"]), ("state", _state(info)), ("expires in", _ttl(info))]
    if "kind" in info:
        kind = "a token of the TokenService" if info["kind"] == "token" else "a client's own key"
        rows += [
            ("kind", kind),
            ("attempt", str(info["attempt"])),
            ("run", info["run"] or "none"),
        ]
        rows.append(("request", "known" if info["request_known"] else "not known: any request is accepted"))
    if "on_unclear" in info:
        rows.append(("if it dies", _ON_UNCLEAR[info["on_unclear"]]))
    if "outcome" in info:
        rows += _outcome_rows(info["outcome"])
    return table(rows)


def state_of(info: dict[str, Any]) -> str:
    """Return the state in a few words."""
    return "RUNNING, lease expired" if info.get("owner_alive") is False else str(info["state"])


def _state(info: dict[str, Any]) -> str:
    if info["state"] == "UNREADABLE":
        return f"UNREADABLE: {info['bytes']} bytes that this release cannot read, so duplicates are refused"
    if info["state"] != "RUNNING":
        return f"{info['state']}: {_MEANS[info['state']]}"
    silent, lease = duration(info["silent_seconds"]), duration(info["lease_seconds"])
    return f"{state_of(info)}: its owner last wrote {silent} ago, and has a lease of {lease}"


def _ttl(info: dict[str, Any]) -> str:
    return "never" if info["ttl_seconds"] is None else duration(info["ttl_seconds"])


def _outcome_rows(outcome: dict[str, Any]) -> Iterable[tuple[str, str]]:
    size = f"{outcome['messages']}, of {outcome['bytes']} bytes"
    yield "status", outcome["code"]
    yield "given by", "a person; 'resolve' can correct it" if "by_hand" in outcome else "a run"
    yield "messages", "too large, not kept" if outcome["dropped"] else size
    yield "metadata", str(outcome["metadata"])
    for name in ("details", "initial_metadata", "trailing_metadata", "messages_base64"):
        if name in outcome:
            # Escape unprintable characters, which could control the terminal.
            text = json.dumps(outcome[name], ensure_ascii=False)
            yield name.replace("_", " "), text if text.isprintable() else json.dumps(outcome[name])


_MEANS = {
    "OPEN": "may be claimed",
    "DONE": "every duplicate gets the same answer",
    "UNKNOWN": "the outcome is unclear; duplicates are refused until it is resolved",
}
_ON_UNCLEAR = {"RERUN": "the next duplicate runs it again", "FAIL": "no duplicate runs it again"}
