"""Properties of all messages, and agreement with an oracle that works in another way."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idem_grpc import updates
from tests.updates.kinds import KINDS, masks_of, messages
from tests.updates.oracle import differing, merged, plain, populated

OWN = ("update_time", "etag")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.DESCRIPTOR.name)
many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def bytes_of(message: Any) -> bytes:
    serialized: bytes = message.SerializePartialToString(deterministic=True)
    return serialized


def copy_of(message: Any) -> Any:
    return type(message).FromString(message.SerializePartialToString())


def mask_for(paths: list[str]) -> FieldMask | None:
    return FieldMask(paths=paths) if paths else None


@st.composite
def pairs(draw, kind):
    """Two messages: one made from the other by an update, or two independent ones."""
    one = draw(messages(kind))
    other = draw(messages(kind))
    if draw(st.booleans()):
        mixed = copy_of(one)
        mixed.MergeFrom(other)
        other = mixed
    return one, other


@st.composite
def masks(draw, kind):
    """Paths, no paths (an absent mask), or everything."""
    return draw(st.just([]) | st.just(["*"]) | masks_of(kind))


def without_own(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name not in OWN}


@every_kind
@given(data=st.data())
@many
def test_a_message_does_not_differ_from_itself(kind, data):
    one = data.draw(messages(kind))
    for same in (one, copy_of(one)):
        assert updates.changed(one, same).paths == []
        assert not updates.apply(one, same, FieldMask(paths=["*"]), etag=None).changed


@every_kind
@given(data=st.data())
@many
def test_merging_what_changed_makes_them_the_same(kind, data):
    one, other = data.draw(pairs(kind))
    mask = updates.changed(one, other, ignore=())
    if not mask.paths:
        assert plain(one) == plain(other)
        return
    # Both switched off, since they are to be merged like all others.
    update = updates.apply(one, other, mask, touch=None, etag=None)
    assert plain(update.message) == plain(other)
    assert update.changed.mask == mask


@every_kind
@given(data=st.data())
@many
def test_changed_agrees_with_the_oracle(kind, data):
    one, other = data.draw(pairs(kind))
    paths = data.draw(st.just([]) | masks_of(kind))
    before = bytes_of(one), bytes_of(other)
    ignore = data.draw(st.sampled_from([(), ("update_time",), ("update_time", "etag", "name", "no_such")]))
    expected = differing(one, other, paths, ignore)
    assert updates.changed(one, other, mask_for(paths), ignore).paths == expected
    assert updates.changed(other, one, mask_for(paths), ignore).paths == expected
    assert (bytes_of(one), bytes_of(other)) == before


@every_kind
@given(data=st.data())
@many
def test_apply_agrees_with_the_oracle(kind, data):
    stored, patch = data.draw(pairs(kind))
    patch.ClearField("etag")
    paths = data.draw(masks(kind))
    before = bytes_of(stored), bytes_of(patch)
    one, other = plain(stored), plain(patch)
    descriptor = kind.DESCRIPTOR
    expected = merged(descriptor, one, other, paths) if paths else populated(descriptor, one, other)
    update = updates.apply(stored, patch, mask_for(paths), now=NOW)
    assert without_own(plain(update.message)) == without_own(expected)
    assert bool(update.changed) is (without_own(expected) != without_own(one))
    assert update.changed.paths == differing(stored, update.message, [], OWN)
    assert (bytes_of(stored), bytes_of(patch)) == before


@every_kind
@given(data=st.data())
@many
def test_the_same_update_again_changes_nothing(kind, data):
    stored, patch = data.draw(pairs(kind))
    patch.ClearField("etag")
    mask = mask_for(data.draw(masks(kind)))
    first = updates.apply(stored, patch, mask, now=NOW)
    again = updates.apply(first.message, patch, mask, now=LATER)
    assert not again.changed
    assert again.changed.paths == []
    assert bytes_of(again.message) == bytes_of(first.message)
    if not first.changed:
        assert bytes_of(first.message) == bytes_of(stored)
    else:
        assert first.message.update_time.ToDatetime(UTC) == NOW
        assert first.message.etag not in {"", stored.etag}
    for message in (first.message, again.message):
        assert message is not stored
        assert message is not patch


@every_kind
@given(data=st.data())
@many
def test_a_full_replacement_is_the_message_that_was_sent(kind, data):
    stored, patch = data.draw(pairs(kind))
    patch.ClearField("etag")
    update = updates.apply(stored, patch, FieldMask(paths=["*"]))
    assert without_own(plain(update.message)) == without_own(plain(patch))
