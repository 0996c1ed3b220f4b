"""Fingerprints match for the same request, across retries, versions and ignored fields, and for no other."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from tests_pb.v1 import order_pb2 as v1
from tests_pb.v2 import order_pb2 as v2

from idem_grpc._core.fingerprint import Fingerprint, StreamFingerprint, check_ignored, fingerprint
from tests.support.threads import restless

__all__ = ["restless"]  # fixtures are found by name

METHOD = "/tests.Orders/Create"


def order(**fields) -> v1.Order:
    return v1.Order(**{"customer": "uid123", "amount": 456, **fields})


def of(request, ignore=(), method=METHOD) -> Fingerprint:
    return fingerprint(method, request.SerializeToString(), request, ignore)


def same(one, other, ignore=()) -> bool:
    return of(one, ignore).matches(of(other, ignore))


def test_another_request_or_another_method_does_not_match():
    assert same(order(), order())
    assert not same(order(), order(amount=457))
    assert not of(order()).matches(of(order(), method="/tests.Orders/Cancel"))


def test_servers_with_an_old_and_a_new_schema_match_the_same_bytes():
    raw = v2.Order(customer="uid123", currency="EUR", amount=456).SerializeToString()
    old = fingerprint(METHOD, raw, v1.Order.FromString(raw))
    new = fingerprint(METHOD, raw, v2.Order.FromString(raw))
    assert old.canonical != new.canonical  # a field that is not known is serialized last
    assert old.matches(new)
    assert new.matches(old)


def test_schema_versions_match_a_request_without_new_fields_if_an_ignored_field_differs():
    """For example, an old client retries through a proxy that stamps the time."""
    old_request = order(sent_at=Timestamp(seconds=1))
    raw = order(sent_at=Timestamp(seconds=2)).SerializeToString()
    old = of(old_request, ["sent_at"])
    new = fingerprint(METHOD, raw, v2.Order.FromString(raw), ["sent_at"])
    assert old.raw != new.raw
    assert old.matches(new)


def test_unknown_fields_make_a_different_request():
    euros, dollars = (
        v1.Order.FromString(v2.Order(customer="uid123", currency=currency).SerializeToString())
        for currency in ("EUR", "USD")
    )
    assert not same(euros, dollars)


def test_fields_in_another_order_make_the_same_request():
    first, second = v1.Order(customer="uid123"), v1.Order(amount=456)
    swapped = second.SerializeToString() + first.SerializeToString()
    assert swapped != order().SerializeToString()
    assert fingerprint(METHOD, swapped, v1.Order.FromString(swapped)).matches(of(order()))


@given(st.permutations([("a", 1), ("b", 2), ("c", 3), ("d", 4)]))
def test_the_order_of_a_map_does_not_matter(entries):
    wire = b"".join(v1.Order(counts={name: count}).SerializeToString() for name, count in entries)
    request = v1.Order.FromString(wire)
    assert fingerprint(METHOD, wire, request).matches(of(v1.Order(counts={"a": 1, "b": 2, "c": 3, "d": 4})))


def test_what_is_not_protobuf_is_compared_by_its_bytes():
    known = fingerprint(METHOD, b'{"amount": 456}', {"amount": 456})
    assert known.canonical == b""
    assert known.matches(fingerprint(METHOD, b'{"amount": 456}', {"amount": 456}))
    assert not known.matches(fingerprint(METHOD, b'{"amount": 457}', {"amount": 457}))
    with pytest.raises(ValueError, match="neither a protobuf message nor wraps one"):
        fingerprint(METHOD, b'{"amount": 456}', {"amount": 456}, ["amount"])


LINE = v1.OrderLine(article="tea", trace="1")
RETRIED = v1.OrderLine(article="tea", trace="2")
OTHER = v1.OrderLine(article="rum", trace="1")


@pytest.mark.parametrize(
    ("path", "first", "retry", "other"),
    [
        ("tags", order(tags=["a"]), order(tags=["b", "c"]), order(amount=1)),
        (
            "sent_at",
            order(sent_at=Timestamp(seconds=1)),
            order(),
            order(sent_at=Timestamp(seconds=1), amount=1),
        ),
        (
            "sent_at.nanos",
            order(sent_at=Timestamp(seconds=1, nanos=1)),
            order(sent_at=Timestamp(seconds=1, nanos=2)),
            order(sent_at=Timestamp(seconds=2, nanos=1)),
        ),
        ("lines.trace", order(lines=[LINE, LINE]), order(lines=[RETRIED, LINE]), order(lines=[OTHER, LINE])),
        (
            "notes.trace",
            order(notes={"a": LINE, "b": LINE}),
            order(notes={"a": LINE, "b": RETRIED}),
            order(notes={"a": LINE, "b": OTHER}),
        ),
        ("counts", order(counts={"a": 1}), order(counts={"b": 2}), order(amount=1)),
    ],
)
def test_ignored_fields_make_no_difference(path, first, retry, other):
    check_ignored(v1.Order.DESCRIPTOR, [path])
    before = first.SerializeToString(deterministic=True)
    assert not same(first, retry)
    assert same(first, retry, [path])
    assert not same(first, other, [path])
    assert first.SerializeToString(deterministic=True) == before


def test_an_ignored_path_through_an_unset_field_makes_no_difference():
    assert same(order(), order(), ["sent_at.nanos", "lines.trace", "notes.trace"])
    assert of(order(), ["sent_at.nanos"]) == of(order())


@pytest.mark.parametrize(
    "path", ["nothing", "customer.name", "lines.nothing", "notes.key", "counts.value", "tags.x", "", "lines."]
)
def test_an_ignored_path_that_names_no_field_is_refused(path):
    with pytest.raises(ValueError, match=r"tests\.v1\.Order has no field"):
        check_ignored(v1.Order.DESCRIPTOR, ["customer", path])
    with pytest.raises(ValueError, match=r"tests\.v1\.Order has no field"):  # of a method that is not known
        of(order(), ["customer", path])


def stream(*requests, whole=False):
    rolling = StreamFingerprint(METHOD, ["sent_at"])
    for request in requests:
        rolling.add(request.SerializeToString(), request)
    return rolling.so_far(whole=whole)


def test_streams_match_if_they_have_the_same_messages_in_the_same_order():
    one, two = order(amount=1), order(amount=2)
    assert stream(one, two).matches(stream(one, two, whole=True))
    assert not stream(one, two).matches(stream(two, one))
    assert not stream(one).matches(stream(one, v1.Order()))
    assert stream(order(sent_at=Timestamp(seconds=1))).matches(stream(order(sent_at=Timestamp(seconds=2))))
    assert (stream(one, two).messages, stream(one, two).size) == (2, one.ByteSize() + two.ByteSize())
    assert not stream(one).matches(of(one))


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_boundaries_between_messages_of_a_stream_count(one, two):
    streams = []
    for parts in ([one, two], [one + two], [one + two, b""]):
        rolling = StreamFingerprint(METHOD)
        for part in parts:
            rolling.add(part, part)
        streams.append(rolling.so_far().raw)
    assert len(set(streams)) == 3


def test_a_stream_fingerprint_can_be_read_while_another_thread_adds_to_it(restless):
    """A handler may read on one thread and answer on another: each result is that of some prefix."""
    orders = [order(amount=amount) for amount in range(2000)]
    rolling, moments = StreamFingerprint(METHOD), [StreamFingerprint(METHOD).so_far()]
    for each in orders:
        rolling.add(each.SerializeToString(), each)
        moments.append(rolling.so_far())
    watched = StreamFingerprint(METHOD)

    def read():
        for each in orders:
            watched.add(each.SerializeToString(), each)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        while not reading.done():
            seen = watched.so_far()
            assert seen == moments[seen.messages]
        reading.result()
    assert watched.so_far() == moments[-1]
