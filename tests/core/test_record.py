"""Records and outcomes are restored from their bytes, and malformed bytes are safe to read."""

import re
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from idem_grpc_pb.v1 import record_pb2

from idem_grpc._core import record as record_module
from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.outcome import Code, Outcome, Turn
from idem_grpc._core.record import Binding, OnUnclear, Record, State
from tests.support.hostile import CHANGES

small = st.binary(max_size=8)
digests = st.binary(min_size=1, max_size=20)
counts = st.integers(0, 2**32 - 2)
fingerprints = st.builds(Fingerprint, digests, small, counts, counts, st.booleans())
text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8)
metadata = st.lists(
    st.tuples(st.sampled_from(["a", "b-c"]), text) | st.tuples(st.sampled_from(["a-bin"]), small), max_size=4
).map(tuple)


@st.composite
def outcomes(draw):
    """As servers write them: dropped messages are absent, and all responses have a turn if any has."""
    messages, turns = draw(st.lists(small, max_size=3).map(tuple)), list[Turn]()
    is_dropped = not messages and draw(st.booleans())
    if messages and draw(st.booleans()):
        first = draw(st.integers(0, len(messages)))
        turns = [Turn(draw(fingerprints), count) for count in (first, len(messages) - first)]
    code, details = draw(st.sampled_from(Code)), draw(st.text(max_size=8))
    return Outcome(code, details, draw(metadata), draw(metadata), messages, is_dropped, tuple(turns))


milliseconds = st.integers(1, 10**11).map(lambda count: count / 1000)
common = {
    "attempt": counts,
    "owner": small,
    "fingerprint": st.none() | fingerprints,
    "binding": st.none() | st.builds(Binding, digests, digests),
}
records = st.one_of(
    st.builds(Record, state=st.sampled_from([State.OPEN, State.UNKNOWN]), **common),
    st.builds(Record, state=st.just(State.DONE), outcome=outcomes(), **common),
    st.builds(
        Record,
        state=st.just(State.RUNNING),
        lease=milliseconds,
        ttl=milliseconds,
        on_unclear=st.sampled_from(OnUnclear),
        **{**common, "attempt": st.integers(1, 2**32 - 2), "owner": digests},
    ).map(lambda record: replace(record, lease=min(record.lease, record.ttl))),
)
LATER = record_pb2.Record(state=record_pb2.STATE_OPEN).SerializeToString()


def as_protobuf(record: Record) -> bytes:
    """The record as protobuf serializes it."""
    message = record_pb2.Record(state=record.state.value, attempt=record.attempt, owner=record.owner)
    if record.fingerprint is not None:
        message.fingerprint.CopyFrom(record.fingerprint.to_message())
    if record.state is State.RUNNING:
        message.lease.FromMilliseconds(round(record.lease * 1000))
        message.ttl.FromMilliseconds(round(record.ttl * 1000))
        message.on_unclear = record.on_unclear.value
    if record.outcome is not None:
        message.outcome.CopyFrom(record.outcome.to_message())
    if record.by_hand:
        message.by_hand = True
    if record.binding is not None:
        message.binding.operation = record.binding.operation
        message.binding.scope = record.binding.scope
    return message.SerializeToString(deterministic=True)


SIZES = st.sampled_from([0, 1, 100, 127, 128, 129, 16_380, 16_383, 16_384, 16_390, 2_097_152])
exactly = partial(st.binary, min_size=16, max_size=16)
plain = st.builds(
    lambda attempt, owner, raw, canonical, size: Record(
        state=State.DONE,
        attempt=attempt,
        owner=owner,
        fingerprint=Fingerprint(raw, canonical),
        outcome=Outcome(messages=(b"m" * size,)),
    ),
    *(st.integers(1, 200), st.binary(min_size=8, max_size=8), exactly(), exactly(), SIZES),
)
"""Answers as most are. Those are read without protobuf."""


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw of all makes tables of characters
@given(records | plain, st.booleans())
def test_a_record_is_written_as_protobuf_writes_it(record, by_hand):
    record = replace(record, by_hand=by_hand and record.state is State.DONE)
    assert record.to_bytes() == as_protobuf(record)


@given(plain)
def test_a_plain_answer_is_restored(record):
    assert Record.from_bytes(record.to_bytes()) == record


def by_protobuf(value: bytes) -> Record:
    """A record as it is read with protobuf's own parser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_module, "_PLAIN_DONE", re.compile(b"(?!)"))  # which matches nothing
        return Record.from_bytes(value)


@given(plain.map(Record.to_bytes), st.data())
def test_a_changed_plain_answer_is_read_as_protobuf_reads_it(value, data):
    at = data.draw(st.integers(0, min(len(value), 70)), label="where")
    change = data.draw(st.sampled_from(["cut", "other", "more", "appended"]), label="change")
    byte = data.draw(st.binary(min_size=1, max_size=3), label="bytes")
    changed = {
        "cut": value[:at],
        "other": value[:at] + byte + value[at + len(byte) :],
        "more": value[:at] + byte + value[at:],
        "appended": value + byte,
    }[change]
    assert Record.from_bytes(changed) == by_protobuf(changed)


@given(records)
def test_a_record_is_restored(record):
    value = record.to_bytes()
    assert value
    assert Record.from_bytes(value) == record
    assert Record.from_bytes(value).to_bytes() == value


@given(st.binary())
def test_no_bytes_raise(value):
    assert Record.from_bytes(value).state is not State.ABSENT


@given(records, st.integers(0, 200), st.binary(max_size=3))
def test_damaged_records_do_not_raise(record, at, with_what):
    value = record.to_bytes()
    Record.from_bytes(value[: at % len(value)] + with_what + value[at % len(value) + 1 :])


def test_no_bytes_are_an_absent_record():
    assert Record.from_bytes(None) == Record(state=State.ABSENT)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"an operator's note",
        record_pb2.Record(attempt=1).SerializeToString(),
        record_pb2.Record(state=record_pb2.STATE_DONE).SerializeToString(),
        LATER + b"\x08\x63",  # a state of a later version
        replace(Record(state=State.DONE), outcome=Outcome()).to_bytes()
        + b"\x42\x02\x08\x63",  # a code of one
        Record(state=State.RUNNING, attempt=1, owner=b"owner", lease=1.0, ttl=4.0).to_bytes()
        + b"\x38\x63",  # an on_unclear of one
    ],
)
def test_bytes_that_are_no_record_are_unreadable(value):
    assert Record.from_bytes(value) == Record(state=State.UNREADABLE)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_invalid_records_are_unreadable(change):
    outcome = Outcome(messages=(b"1", b"2"), turns=(Turn(Fingerprint(b"raw"), 2),))
    done = Record(
        state=State.DONE, attempt=1, owner=b"owner", fingerprint=Fingerprint(b"raw"), outcome=outcome
    )
    message = record_pb2.Record.FromString(done.to_bytes())
    change(message)
    assert Record.from_bytes(message.SerializeToString()) == Record(state=State.UNREADABLE)


def test_unknown_fields_are_ignored():
    assert Record.from_bytes(LATER + b"\xf8\x07\x01") == Record(state=State.OPEN)


def test_an_unset_on_unclear_is_rerun():
    running = Record(state=State.RUNNING, attempt=1, owner=b"owner", lease=30.0, ttl=3600.0)
    value = record_pb2.Record.FromString(running.to_bytes())
    value.ClearField("on_unclear")
    assert Record.from_bytes(value.SerializeToString()) == running


def test_an_answer_may_be_an_empty_message_or_none():
    for messages in ((), (b"",), (b"", b"")):
        done = Record(state=State.DONE, outcome=Outcome(messages=messages))
        outcome = Record.from_bytes(done.to_bytes()).outcome
        assert outcome is not None
        assert outcome.messages == messages


def test_a_tombstone_keeps_all_but_the_messages():
    turn = Turn(Fingerprint(b"raw"), 1)
    outcome = Outcome(
        Code.OK, "details", (("a", "1"),), (("b-bin", b"\xff"),), (b"12", b"345"), turns=(turn,)
    )
    assert outcome.limited_to(5) is outcome
    assert outcome.limited_to(4) == replace(outcome, messages=(), turns=(), messages_dropped=True)


def test_an_empty_message_fits_a_limit_of_zero():
    assert Outcome(messages=(b"",)).limited_to(0) == Outcome(messages=(b"",))


def test_trailer_returns_the_last_value_of_a_name():
    outcome = Outcome(trailing_metadata=(("a", "1"), ("a", "2")))
    assert outcome.trailer("a") == "2"
    assert outcome.trailer("b") is None


def test_fingerprints_match_by_either_digest_and_an_empty_one_matches_nothing():
    assert Fingerprint(b"1", b"2").matches(Fingerprint(b"1", b"3"))
    assert Fingerprint(b"1", b"2").matches(Fingerprint(b"4", b"2"))
    assert not Fingerprint(b"1", b"2").matches(Fingerprint(b"2", b"1"))
    assert not Fingerprint(b"1").matches(Fingerprint(b"2"))
