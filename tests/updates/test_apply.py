"""The effect of an update on a resource, case by case."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from tests_pb.v1.updates_pb2 import Node, Place, Plain, Resource
from tests_pb.v1.updates_proto2_pb2 import Legacy, color

from idem_grpc._core.outcome import Code
from idem_grpc.updates import UpdateRefused, apply
from tests.updates.kinds import Modern

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
UNKNOWN = b"\xc0\x3e\x01"  # field 1000, a varint


def merged(stored, patch, *mask):
    """The updated message, without the update time and the etag."""
    update = apply(stored, patch, FieldMask(paths=mask) if mask else None)
    update.message.ClearField("update_time")
    update.message.ClearField("etag")
    return update.message


@pytest.mark.parametrize(
    ("stored", "patch", "mask", "expected"),
    [
        # No mask: what is populated.
        (Resource(name="a", count=1), Resource(name="b"), [], Resource(name="b", count=1)),
        (Resource(age=1), Resource(age=0), [], Resource(age=0)),
        (Resource(tags=["a"]), Resource(tags=["b"]), [], Resource(tags=["b"])),
        (Resource(labels={"a": "1"}), Resource(labels={"b": "2"}), [], Resource(labels={"b": "2"})),
        (
            Resource(place=Place(street="a", city="a")),
            Resource(place=Place(city="b")),
            [],
            Resource(place=Place(street="a", city="b")),
        ),
        (Resource(place=Place(city="a")), Resource(place=Place()), [], Resource(place=Place(city="a"))),
        (Resource(email="a"), Resource(via=Node()), [], Resource(via=Node())),
        (
            Resource(patience=Duration(seconds=1, nanos=5)),
            Resource(patience=Duration(seconds=2)),
            [],
            Resource(patience=Duration(seconds=2)),
        ),
        # A mask: what it names, be it unset.
        (Resource(name="a", count=1), Resource(name="b", count=2), ["name"], Resource(name="b", count=1)),
        (Resource(name="a", age=1), Resource(), ["name", "age"], Resource()),
        (
            Resource(place=Place(street="a", city="a")),
            Resource(place=Place(city="b")),
            ["place"],
            Resource(place=Place(city="b")),
        ),
        (
            Resource(place=Place(street="a", city="a")),
            Resource(place=Place(city="b")),
            ["place.street"],
            Resource(place=Place(city="a")),
        ),
        # The message above is absent on one side, or on both.
        (Resource(place=Place(city="a")), Resource(), ["place.city"], Resource(place=Place())),
        (Resource(), Resource(place=Place(city="b")), ["place.city"], Resource(place=Place(city="b"))),
        (Resource(), Resource(place=Place(city="b")), ["place.street"], Resource()),
        (Resource(), Resource(), ["place.city", "tree.next.value"], Resource()),
        (
            Resource(tree=Node(next=Node(value="a"))),
            Resource(tree=Node()),
            ["tree.next.value", "tree.value"],
            Resource(tree=Node(next=Node())),
        ),
        # An empty message is one all the same.
        (Resource(place=Place(city="a")), Resource(place=Place()), ["place"], Resource(place=Place())),
        # Oneofs.
        (Resource(email="a"), Resource(phone=1), ["phone"], Resource(phone=1)),
        (Resource(email="a"), Resource(phone=1), ["email"], Resource()),
        (Resource(email="a"), Resource(phone=1), ["phone", "email"], Resource(phone=1)),
        (Resource(phone=1), Resource(email="a"), ["phone"], Resource()),
        (Resource(email="a"), Resource(), ["phone"], Resource(email="a")),
        (Resource(email="a"), Resource(visit=Place(city="b")), ["visit.street"], Resource(email="a")),
        (
            Resource(email="a"),
            Resource(visit=Place(city="b")),
            ["visit.city"],
            Resource(visit=Place(city="b")),
        ),
        # Everything.
        (Resource(name="a", count=1), Resource(count=2), ["*"], Resource(count=2)),
        (Resource(name="a", count=1), Resource(count=2), ["count", "*"], Resource(count=2)),
        # Delimited messages.
        (
            Legacy(corner=Legacy.Corner(label="a", turns=1)),
            Legacy(),
            ["corner.label"],
            Legacy(corner=Legacy.Corner(turns=1)),
        ),
        (Modern(inner=Modern(name="a", count=1)), Modern(), ["inner.name"], Modern(inner=Modern(count=1))),
    ],
    ids=str,
)
def test_a_mask_selects_the_fields_to_update(stored, patch, mask, expected):
    assert merged(stored, patch, *mask) == expected


def test_an_empty_mask_counts_as_absent():
    assert apply(Resource(count=1), Resource(name="b"), FieldMask()).message.count == 1


def test_unknown_fields_and_extensions_are_copied_with_the_whole_message():
    stored, patch = Resource(place=Place(city="a")), Resource(name="b", place=Place(city="b"))
    for message in (patch, patch.place):
        message.MergeFromString(UNKNOWN)
    assert merged(stored, patch) == Resource(name="b", place=Place(city="b"))
    assert merged(stored, patch, "place").place == patch.place
    assert merged(stored, patch, "*") == patch
    added = Legacy()
    added.Extensions[color] = "red"
    assert merged(Legacy(), added) == Legacy()
    assert merged(Legacy(), added, "*") == added
    assert apply(Legacy(), added, FieldMask(paths=["*"])).changed.paths == ["*"]


def test_update_time_and_etag_change_only_if_a_field_changed():
    first = apply(Resource(), Resource(name="a"), now=NOW)
    assert first.changed
    assert first.message.update_time.ToDatetime(UTC) == NOW
    assert first.message.etag.startswith('"')
    assert first.message.etag.endswith('"')
    again = apply(first.message, Resource(name="a"), now=LATER)
    assert not again.changed
    assert again.message == first.message
    second = apply(first.message, Resource(name="b"), now=LATER)
    assert list(second.changed) == second.changed.paths == list(second.changed.mask.paths) == ["name"]
    assert second.message.update_time.ToDatetime(UTC) == LATER
    assert second.message.etag != first.message.etag


def test_update_time_is_the_current_time_by_default():
    before = datetime.now(UTC)
    moved = apply(Resource(), Resource(name="a")).message.update_time.ToDatetime(UTC)
    assert before <= moved <= datetime.now(UTC)


def test_etags_are_deterministic_and_never_repeat():
    first = apply(Resource(), Resource(name="a"), now=NOW).message
    assert apply(Resource(), Resource(name="a"), now=LATER).message.etag == first.etag
    second = [
        apply(first, Resource(name="b", update_time=Timestamp(seconds=number), etag=etag)).message.etag
        for number, etag in ((1, ""), (2, first.etag))
    ]
    assert second[0] == second[1]
    back = apply(apply(first, Resource(name="b")).message, Resource(name="a")).message
    assert (back.name, back.etag == first.etag) == ("a", False)


@pytest.mark.parametrize("mask", [[], ["name"], ["*"], ["etag", "update_time", "update_time.nanos", "name"]])
def test_update_time_and_etag_are_not_taken_from_the_patch(mask):
    stored = apply(Resource(), Resource(name="a"), now=NOW).message
    patch = Resource(name="a", etag=stored.etag, update_time=Timestamp(seconds=1))
    update = apply(stored, patch, FieldMask(paths=mask), now=LATER)
    assert (update.changed.paths, update.message) == ([], stored)
    patch.name = "b"
    update = apply(stored, patch, FieldMask(paths=mask), now=LATER)
    assert update.changed.paths == ["name"]
    assert update.message.update_time.ToDatetime(UTC) == LATER


def test_update_time_and_etag_can_be_plain_fields():
    stored = Resource(etag="a", update_time=Timestamp(seconds=1))
    patch = Resource(etag="b", update_time=Timestamp(seconds=2))
    assert apply(stored, patch, touch=None, etag=None).message == patch
    update = apply(stored, Resource(etag="a", update_time=Timestamp(seconds=2)), touch=None)
    assert update.changed.paths == ["update_time"]
    assert update.message.etag not in {"", "a"}


def test_update_time_and_etag_may_have_other_names():
    update = apply(Plain(), Plain(value="a"), touch="modified", etag="version", now=NOW)
    assert update.message.modified.ToDatetime(UTC) == NOW
    assert len(update.message.version) == 24
    plain = apply(Plain(), Plain(value="a"))
    assert plain.message == Plain(value="a")
    assert apply(Node(), Node(value="a")).message == Node(value="a")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"touch": "no_such"}, "has no such field"),
        ({"etag": "no_such"}, "has no such field"),
        ({"touch": "number"}, "is not a google.protobuf.Timestamp"),
        ({"etag": "number"}, "is not a string"),
        ({"now": NOW.replace(tzinfo=None)}, "aware"),
    ],
)
def test_invalid_settings_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        apply(Plain(), Plain(), **setting)


def test_messages_of_different_types_are_refused():
    with pytest.raises(TypeError, match="Resource and Plain"):
        apply(Resource(), Plain())


@pytest.mark.parametrize("mask", [None, FieldMask(paths=["name"]), FieldMask(paths=["*"])])
@pytest.mark.parametrize("stored", [Resource(name="a"), Resource(name="a", etag='"1"')])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_wrong_etag_is_refused_for_any_update(stored, mask, name):
    with pytest.raises(UpdateRefused) as caught:
        apply(stored, Resource(name=name, etag='"2"'), mask)
    assert (caught.value.code, caught.value.reason) == (Code.ABORTED, "ETAG_MISMATCH")
    info = unpacked(caught.value, error_details_pb2.ErrorInfo())
    assert (info.reason, info.domain) == ("ETAG_MISMATCH", "idem_grpc")


def unpacked(refused, detail):
    assert any(each.Unpack(detail) for each in refused.status.details)
    return detail


@pytest.mark.parametrize(
    "path",
    [
        "",
        "no_such",
        "place.no_such",
        "place.",
        ".place",
        "name.first",
        "tags.0",
        "places.city",
        "sites.a.city",
        "place.*",
        "updateTime",
        "labels.`a`",
        "no_such.city",
    ],
)
def test_an_invalid_path_is_refused_and_named(path):
    with pytest.raises(UpdateRefused) as caught:
        apply(Resource(), Resource(etag="of another"), FieldMask(paths=["name", path, "*"]))
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "MASK_INVALID")
    (violation,) = unpacked(caught.value, error_details_pb2.BadRequest()).field_violations
    assert violation.field == path
    assert repr(path) in violation.description
    assert repr(path) in caught.value.details


def test_the_status_of_many_invalid_paths_stays_small():
    with pytest.raises(UpdateRefused, match="99 more") as caught:
        apply(Resource(), Resource(), FieldMask(paths=["ß" * 10_000 + str(number) for number in range(100)]))
    assert len(unpacked(caught.value, error_details_pb2.BadRequest()).field_violations) == 8
    ((_, status),) = caught.value.trailing_metadata
    assert len(status) < 6000
