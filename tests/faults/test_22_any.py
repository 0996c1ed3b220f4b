"""A request that holds an Any is the same request, however the content of the Any was serialized."""

from collections.abc import Callable
from itertools import permutations
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st
from tests_pb.v1 import envelope_pb2 as pb
from tests_pb.v1 import envelope_proto2_pb2 as old
from tests_pb.v1 import order_pb2

from idem_grpc import Reason
from idem_grpc._core.fingerprint import Fingerprint, StreamFingerprint, check_ignored, fingerprint
from tests.server.client import Pending
from tests.server.kinds import ALL

METHOD = "/tests.Envelopes/Send"
PREFIX = "type.googleapis.com/"
ORDER = PREFIX + "tests.v1.Order"


def wire(*entries: tuple[str, int]) -> bytes:
    """An order whose map is serialized in this order."""
    return b"".join(order_pb2.Order(counts={name: count}).SerializeToString() for name, count in entries)


ONE_WAY, OTHER_WAY = wire(("tea", 1), ("rum", 2)), wire(("rum", 2), ("tea", 1))
OTHER_ORDER = wire(("tea", 1), ("rum", 3))


def packed(value: bytes, type_url: str = ORDER) -> AnyMessage:
    return AnyMessage(type_url=type_url, value=value)


def packing(message: Message) -> AnyMessage:
    """The message in an Any, with the bytes of its current serialization."""
    return packed(message.SerializePartialToString(), PREFIX + message.DESCRIPTOR.full_name)


def folder(cover: AnyMessage | None = None, *folders: old.Folder) -> old.Folder:
    made = old.Folder(title="a")
    if cover is not None:
        made.Extensions[old.cover].CopyFrom(cover)
    made.Extensions[old.folders].extend(folders)
    return made


PLACES: dict[str, Callable[[AnyMessage], Message]] = {
    "the request itself": lambda one: one,
    "field": lambda one: pb.Envelope(sender="a", content=one),
    "list": lambda one: pb.Envelope(parts=[packed(b"", "a/unknown"), one]),
    "map": lambda one: pb.Envelope(named={"b": packed(b""), "a": one}),
    "message inside": lambda one: pb.Envelope(inner=[pb.Envelope(), pb.Envelope(content=one)]),
    "oneof": lambda one: pb.Envelope(enclosure=one),
    "message of a oneof": lambda one: pb.Envelope(other=pb.Envelope(parts=[one])),
    "group": lambda one: old.Folder(title="a", sheet=old.Folder.Sheet(content=one)),
    "extension": folder,
    "list of an extension": lambda one: folder(None, folder(one), folder()),
    "Any": lambda one: pb.Envelope(content=packing(one)),
    "Any three times": lambda one: packing(packing(packing(one))),
    "Any, message, Any": lambda one: pb.Envelope(content=packing(pb.Envelope(named={"a": one}))),
    "Any, extension, Any": lambda one: pb.Envelope(content=packing(folder(one))),
    "rich status": lambda one: status_pb2.Status(code=3, details=[one, one]),
    "message without a required field": lambda one: old.Folder(sheet=old.Folder.Sheet(content=one)),
    "Any, message without a required field": lambda one: packing(
        old.Folder(sheet=old.Folder.Sheet(content=one))
    ),
}
places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


def of(request: Message, ignore: tuple[str, ...] = ()) -> Fingerprint:
    """The fingerprint of a request, with a unique raw digest, so that only the canonical one can match."""
    return fingerprint(METHOD, uuid4().bytes, request, ignore)


def same(one: Message, other: Message, ignore: tuple[str, ...] = ()) -> bool:
    return of(one, ignore).matches(of(other, ignore))


@places
def test_the_order_of_a_map_inside_does_not_matter(place):
    assert same(place(packed(ONE_WAY)), place(packed(OTHER_WAY)))
    assert not same(place(packed(ONE_WAY)), place(packed(OTHER_ORDER)))


@places
def test_streams_of_messages_with_an_any_are_compared_in_the_same_way(place):
    def stream(*values: bytes) -> Fingerprint:
        rolling = StreamFingerprint(METHOD)
        for value in values:
            rolling.add(uuid4().bytes, place(packed(value)))
        return rolling.so_far()

    assert stream(ONE_WAY, OTHER_WAY).matches(stream(OTHER_WAY, ONE_WAY))
    assert not stream(ONE_WAY, OTHER_WAY).matches(stream(ONE_WAY, OTHER_ORDER))


@places
def test_the_handler_gets_the_request_unchanged(place):
    request = place(packed(OTHER_WAY))
    before = request.SerializePartialToString(deterministic=True)
    of(request)
    assert request.SerializePartialToString(deterministic=True) == before


@pytest.mark.parametrize("entries", list(permutations([("a", 1), ("b", 2), ("c", 3)])))
def test_every_order_of_a_map_is_the_same(entries):
    first = wire(("a", 1), ("b", 2), ("c", 3))
    assert same(PLACES["Any"](packed(wire(*entries))), PLACES["Any"](packed(first)))


def test_fields_of_the_content_in_another_order_are_the_same():
    customer = order_pb2.Order(customer="a").SerializeToString()
    amount = order_pb2.Order(amount=1).SerializeToString()
    assert same(packed(customer + amount), packed(amount + customer))


@pytest.mark.parametrize(
    "type_url", ["a/tests.v1.Unknown", "", "/", "a/", "tests.v1.Order/", "a/tests.v1.Order.customer", "a/\0"]
)
def test_content_of_an_unknown_type_is_compared_by_its_bytes(type_url):
    assert same(packed(ONE_WAY, type_url), packed(ONE_WAY, type_url))
    assert not same(packed(ONE_WAY, type_url), packed(OTHER_WAY, type_url))


def test_content_that_cannot_be_parsed_is_compared_by_its_bytes():
    broken, another = b"\xff" + ONE_WAY, b"\xff" + OTHER_WAY
    for place in PLACES.values():
        assert same(place(packed(broken)), place(packed(broken)))
        assert not same(place(packed(broken)), place(packed(another)))
    one, other = (pb.Envelope(parts=[packed(broken), packed(way)]) for way in (ONE_WAY, OTHER_WAY))
    assert same(one, other)


def test_the_type_url_is_compared_as_it_was_sent():
    other_host = packed(ONE_WAY, "example.com/tests.v1.Order")
    assert same(other_host, packed(OTHER_WAY, "example.com/tests.v1.Order"))
    assert not same(packed(ONE_WAY), other_host)


def test_a_field_that_is_ignored_is_left_out_and_the_rest_is_compared():
    def sent(sender: str, value: bytes) -> Message:
        return pb.Envelope(sender=sender, content=packed(value))

    assert same(sent("a", ONE_WAY), sent("b", OTHER_WAY), ("sender",))
    assert not same(sent("a", ONE_WAY), sent("b", OTHER_ORDER), ("sender",))
    assert same(sent("a", ONE_WAY), sent("a", OTHER_ORDER), ("content",))


@pytest.mark.parametrize("path", ["content.customer", "named.customer", "inner.parts.counts"])
def test_a_path_into_an_any_is_refused_with_the_reason(path):
    with pytest.raises(ValueError, match=r"a google\.protobuf\.Any, .* ignore the whole field"):
        check_ignored(pb.Envelope.DESCRIPTOR, [path])
    for whole in ("content", "content.value", "inner.named"):
        check_ignored(pb.Envelope.DESCRIPTOR, [whole])


def test_a_type_that_is_registered_later_is_used_from_then_on():
    pool = descriptor_pool.DescriptorPool()
    for file in ("google/protobuf/any.proto", "tests_pb/v1/envelope.proto"):
        copied = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(file).CopyToProto(copied)
        pool.Add(copied)
    envelope = message_factory.GetMessageClass(pool.FindMessageTypeByName("tests.v1.Envelope"))

    def sent(value: bytes) -> Message:
        message: Message = envelope.FromString(pb.Envelope(content=packed(value)).SerializeToString())
        return message

    assert not same(sent(ONE_WAY), sent(OTHER_WAY)), "the pool of the request does not have it"
    for file in ("google/protobuf/timestamp.proto", "tests_pb/v1/order.proto"):
        copied = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(file).CopyToProto(copied)
        pool.Add(copied)
    assert same(sent(ONE_WAY), sent(OTHER_WAY))


def test_an_extension_that_is_registered_later_is_used_from_then_on():
    message = old.Folder(title="a")
    assert same(message, message)
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/later.proto", package="tests.later", dependency=["tests_pb/v1/envelope_proto2.proto"]
    )
    file.dependency.append("google/protobuf/any.proto")
    file.extension.add(
        name="late",
        number=150,
        extendee=".tests.v1.Folder",
        type=11,
        type_name=".google.protobuf.Any",
        label=1,
    )
    late: Any = descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    late = descriptor_pool.Default().FindExtensionByName("tests.later.late")

    def sent(value: bytes) -> Message:
        extended = old.Folder(title="a")
        extended.Extensions[late].CopyFrom(packed(value))
        return extended

    assert same(sent(ONE_WAY), sent(OTHER_WAY))
    assert not same(sent(ONE_WAY), sent(OTHER_ORDER))


def nested(levels: int, core: AnyMessage) -> bytes:
    """An Any nested in a number of others, serialized by hand, as protobuf has a limit."""
    url = b"\n" + _varint(len(PREFIX) + 19) + PREFIX.encode() + b"google.protobuf.Any\x12"
    inside = core.SerializeToString()
    heads, size = [], len(inside)
    for _ in range(levels):
        heads.append(url + _varint(size))
        size += len(heads[-1])
    return b"".join(reversed(heads)) + inside


def _varint(number: int) -> bytes:
    low = number & 127
    return bytes([low]) if number < 128 else bytes([low | 128]) + _varint(number >> 7)


def test_nested_anys_are_compared_by_their_content():
    def sent(value: bytes) -> Message:
        return AnyMessage.FromString(nested(40, packed(value)))

    assert same(sent(ONE_WAY), sent(OTHER_WAY))
    assert not same(sent(ONE_WAY), sent(OTHER_ORDER))


@pytest.mark.parametrize(
    ("levels", "filler"), [(200, 0), (5_000, 0), (100_000, 0), (99, 4_000_000)], ids=lambda each: f"{each}"
)
def test_hostile_nesting_costs_no_more_than_its_size(levels, filler):
    def sent(value: bytes) -> Message:
        return AnyMessage.FromString(nested(levels, packed(value + b"\0" * filler)))

    assert same(sent(ONE_WAY), sent(ONE_WAY))
    assert not same(sent(ONE_WAY), sent(OTHER_ORDER))


def test_messages_nested_as_deep_as_a_parser_allows_hold_an_any_each():
    """Each Any starts the parser's own count of levels anew."""
    value = b""
    for _ in range(50):
        inside = pb.Envelope(content=packed(value, PREFIX + "tests.v1.Envelope"))
        for _ in range(45):
            inside = pb.Envelope(inner=[inside])
        value = inside.SerializeToString()
    request = pb.Envelope.FromString(value)
    assert same(request, request)


@given(
    st.binary(max_size=60), st.sampled_from([ORDER, PREFIX + "tests.v1.Envelope", PREFIX + "tests.v1.Folder"])
)
def test_no_content_of_an_any_raises(value, type_url):
    assert same(packed(value, type_url), packed(value, type_url))


def envelopes() -> grpc.GenericRpcHandler:
    """A service that takes envelopes in all kinds of method, and answers with its number of runs."""
    runs = 0

    def one(request: Any, context: Any) -> bytes:
        nonlocal runs
        if not isinstance(request, pb.Envelope):
            assert all(isinstance(each, pb.Envelope) for each in request)
        runs += 1
        return b"%d" % runs

    def many(request: Any, context: Any) -> Any:
        yield one(request, context)

    handlers = {}
    for each in ALL:
        make = getattr(grpc, f"{each.arity}_rpc_method_handler")
        handlers[each.value] = make(many if each.has_response_stream else one, pb.Envelope.FromString)
    return grpc.method_handlers_generic_handler("tests.Envelopes", handlers)


def test_a_duplicate_in_another_order_is_answered(start, url, kind, key):
    server = start(url, handlers=[envelopes()], plain=True)

    def call(value: bytes) -> Any:
        requests = [pb.Envelope(sender="a"), PLACES["Any, message, Any"](packed(value))]
        body = [request.SerializeToString() for request in requests]
        method = getattr(server.client.channel, kind.arity)(f"/tests.Envelopes/{kind.value}")
        send = method if kind.has_response_stream else method.future
        sent = iter(body) if kind.has_request_stream else body[1]
        rpc = send(sent, metadata=(("idempotency-key", key),), timeout=30)
        return Pending(rpc, kind.has_response_stream).answer()

    first, again = call(ONE_WAY), call(OTHER_WAY)
    assert first.ok
    assert again.essence == first.essence
    assert again.replayed
    assert call(OTHER_ORDER).reason is Reason.KEY_REUSED
