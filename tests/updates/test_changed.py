"""The fields in which two messages differ, case by case."""

import math
import struct

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import DoubleValue
from tests_pb.v1.updates_pb2 import Node, Place, Resource, Tier
from tests_pb.v1.updates_proto2_pb2 import Grade, Legacy, color, weights

from idem_grpc.updates import changed
from tests.updates.kinds import Modern

OTHER_NAN = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0001))[0]
UNKNOWN = b"\xc0\x3e\x01"  # field 1000, a varint


def paths(one, other, *named, **options):
    mask = FieldMask(paths=named) if named else None
    found = changed(one, other, mask, **options)
    assert changed(other, one, mask, **options) == found
    return list(found.paths)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Resource(name="a", tags=["a"]), Resource(name="b", tags=["a"]), ["name"]),
        (Resource(), Resource(name=""), []),
        (Resource(), Resource(nickname=""), ["nickname"]),
        (Legacy(), Legacy(name="nobody"), ["name"]),
        (Legacy(), Legacy(count=7), ["count"]),
        (Modern(), Modern(count=7), ["count"]),
        (Modern(), Modern(plain_name=""), []),
        # Messages: of both, of one, and empty.
        (Resource(place=Place(city="a")), Resource(place=Place(city="b")), ["place.city"]),
        (Resource(), Resource(place=Place(city="a")), ["place"]),
        (Resource(), Resource(place=Place()), ["place"]),
        (Resource(tree=Node(next=Node(value="a"))), Resource(tree=Node(next=Node())), ["tree.next.value"]),
        # Many: whole, in order unless it is a map.
        (Resource(tags=["a", "b"]), Resource(tags=["b", "a"]), ["tags"]),
        (Resource(tags=["a"]), Resource(tags=["a", "a"]), ["tags"]),
        (Resource(places=[Place(city="a")]), Resource(places=[Place(city="b")]), ["places"]),
        (Resource(labels={"a": "1", "b": "2"}), Resource(labels={"b": "2", "a": "1"}), []),
        (Resource(labels={"a": "1"}), Resource(labels={"a": "2"}), ["labels"]),
        (Resource(labels={"a": ""}), Resource(labels={"b": ""}), ["labels"]),
        (Resource(sites={"a": Place()}), Resource(sites={"b": Place()}), ["sites"]),
        # One of several: both sides of a switch.
        (Resource(email="a"), Resource(phone=1), ["email", "phone"]),
        (Resource(email=""), Resource(), ["email"]),
        (Resource(visit=Place(city="a")), Resource(via=Node()), ["via", "visit"]),
        # Values are whole.
        (Resource(born=Timestamp(seconds=1)), Resource(born=Timestamp(seconds=2)), ["born"]),
        (Resource(update_time=Timestamp(seconds=1)), Resource(update_time=Timestamp(seconds=2)), []),
        # Enums: open ones take any number, closed ones none that they do not know.
        (Resource(tier=Tier.ValueType(98)), Resource(tier=Tier.ValueType(99)), ["tier"]),
        (Legacy(grade=Grade.GRADE_UNSPECIFIED), Legacy(grade=Grade.GRADE_GOOD), ["grade"]),
        (Legacy(corner=Legacy.Corner(turns=1)), Legacy(corner=Legacy.Corner(turns=2)), ["corner.turns"]),
    ],
    ids=str,
)
def test_changed_lists_the_paths_that_differ(one, other, expected):
    assert paths(one, other) == expected


@pytest.mark.parametrize("field", ["score", "ratio", "weight", "samples", "weights", "height", "tree"])
@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [(math.nan, OTHER_NAN, False), (math.nan, 1.0, True), (0.0, -0.0, True), (-0.0, -0.0, False)],
)
def test_floats(field, one, other, differ):
    make = {
        "samples": lambda value: Resource(samples=[1.0, value]),
        "weights": lambda value: Resource(weights={1: value}),
        "height": lambda value: Resource(height=DoubleValue(value=value)),
        "tree": lambda value: Resource(tree=Node(children=[Node(amount=value)])),
    }.get(field, lambda value: Resource(**{field: value}))
    where = ["tree.children" if field == "tree" else field] if differ else []
    assert paths(make(one), make(other)) == where
    # Another difference neither hides it nor causes it.
    left, right = make(one), make(other)
    right.name = "b"
    assert paths(left, right) == sorted([*where, "name"])


def with_unknown(message, data=UNKNOWN):
    message.MergeFromString(data)
    return message


def test_unknown_fields_are_reported_as_the_message_that_has_them():
    assert paths(Resource(name="a"), with_unknown(Resource(name="b"))) == ["*"]
    assert paths(with_unknown(Resource()), with_unknown(Resource())) == []
    one, other = Resource(place=Place(city="a")), Resource(place=Place(city="b"))
    with_unknown(other.place)
    assert paths(one, other) == ["place"]
    assert paths(one, other, "place") == ["place"]
    assert paths(one, other, "place.city") == ["place.city"]
    assert paths(one, other, "place.street") == []


def test_unknown_fields_in_another_order_are_the_same():
    one, other = (
        with_unknown(Resource(), data) for data in (UNKNOWN + b"\xca\x3e\x01a", b"\xca\x3e\x01a" + UNKNOWN)
    )
    assert paths(one, other) == []
    one, other = (
        with_unknown(Resource(), data) for data in (UNKNOWN + b"\xc0\x3e\x02", b"\xc0\x3e\x02" + UNKNOWN)
    )
    assert paths(one, other) == ["*"]


def test_unknown_fields_outside_of_the_mask_do_not_count():
    assert paths(Resource(), with_unknown(Resource()), "name") == []


def test_a_value_that_a_closed_enum_does_not_know_is_an_unknown_field():
    other = Legacy.FromString(b"\x30\x63")  # grade: 99
    assert not other.HasField("grade")
    assert paths(Legacy(), other) == ["*"]


def test_extensions_count_as_unknown_fields_do():
    one, other = Legacy(name="a"), Legacy(name="a")
    other.Extensions[color] = "red"
    assert paths(one, other) == ["*"]
    one.Extensions[color] = "blue"
    assert paths(one, other) == ["*"]
    one.Extensions[color] = "red"
    assert paths(one, other) == []
    assert len(one.Extensions[weights]) == 0  # to look at it lists it
    other.name = "b"
    assert paths(one, other) == ["name"]


def test_a_mask_selects_fields_of_a_message_that_one_side_lacks():
    one, other = Resource(), Resource(place=Place(city="a"), name="a")
    assert paths(one, other, "place.city") == ["place.city"]
    assert paths(one, other, "place.street", "count") == []
    assert paths(one, other, "place", "place.city") == ["place"]
    assert paths(one, other, "name", "*") == ["name", "place"]
    assert paths(one, other, "*") == paths(one, other) == ["name", "place"]


def test_a_mask_selects_fields_of_messages():
    one, other = Resource(born=Timestamp(seconds=1)), Resource(born=Timestamp(seconds=2))
    assert paths(one, other, "born.nanos") == []
    assert paths(one, other, "born.seconds") == ["born.seconds"]


def test_an_empty_mask_counts_as_absent():
    assert list(changed(Resource(), Resource(name="a"), FieldMask()).paths) == ["name"]


def test_ignore():
    one = Resource(etag="a", place=Place(city="a"), update_time=Timestamp(seconds=1))
    other = Resource(etag="b", place=Place(city="b"))
    assert paths(one, other) == ["etag", "place.city"]
    assert paths(one, other, ignore=()) == ["etag", "place.city", "update_time"]
    assert paths(one, other, ignore=["update_time", "etag", "place.city"]) == []
    assert paths(one, other, ignore={"place", "no_such", "no_such.at_all"}) == ["etag", "update_time"]
    assert paths(one, other, "place", ignore=["place.city"]) == []


def test_an_ignored_path_into_a_field_without_parts_is_refused():
    for path in ("places.city", "sites.a", "name.first"):
        with pytest.raises(ValueError, match=f"ignore=….*'{path}': .*cannot lead into it"):
            changed(Resource(), Resource(), ignore=[path])
    with pytest.raises(TypeError, match="one string"):
        changed(Resource(), Resource(), ignore="update_time")


def test_messages_of_different_types_are_refused():
    with pytest.raises(TypeError, match="Resource and Legacy"):
        changed(Resource(), Legacy())


def test_deeply_nested_messages_are_compared():
    """As deep as protobuf allows, with a difference in the innermost message."""
    one, other = Node(), Node()
    for end, value in ((one, "a"), (other, "b")):
        for _ in range(95):
            end = end.next
            end.children.add(value="same")
        end.value = value
    assert paths(one, other) == ["next." * 95 + "value"]


def test_reading_maps_adds_nothing_to_them():
    one, other = Resource(sites={"a": Place()}), Resource(sites={"b": Place()})
    changed(one, other)
    assert (list(one.sites), list(other.sites)) == (["a"], ["b"])
