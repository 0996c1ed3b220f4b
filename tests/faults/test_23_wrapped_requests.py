"""The fields of wrapped requests, such as those of proto-plus, are read, or the call is refused."""

from typing import Any

import grpc
import proto  # type: ignore[import-untyped]  # it has no stubs
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from tests_pb.v1 import contract_pb2

import idem_grpc
import idem_grpc.aio
from idem_grpc import Outgoing, Policy, Reason, Retry, keys, updates
from idem_grpc._core.messages import message_of, size_of, snapshot
from tests.server.client import Kind, Pending
from tests.server.ledger import DEADLINE

KEY = "idempotency-key"
__protobuf__ = proto.module(package="tests.wrapped")


class Item(proto.Message):  # type: ignore[misc]  # it has no stubs
    sku = proto.Field(proto.STRING, number=1)
    trace = proto.Field(proto.STRING, number=2)


class Order(proto.Message):  # type: ignore[misc]  # it has no stubs
    order_id = proto.Field(proto.STRING, number=1)
    trace = proto.Field(proto.STRING, number=2)
    item = proto.Field(Item, number=3)
    items = proto.RepeatedField(Item, number=4)


class Opaque:
    """A wrapper without access to a protobuf message, like the dataclasses of betterproto."""

    def __init__(self, raw):
        self._raw = raw

    @classmethod
    def deserialize(cls, raw):
        return cls(raw)


class WithMethod(Opaque):
    """A wrapper of another library, with a method that returns the message."""

    def pb(self):
        return Order.pb().FromString(self._raw)


class WithProperty(Opaque):
    @property
    def pb(self):
        return Order.pb().FromString(self._raw)


WRAPPERS: dict[str, Any] = {"proto-plus": Order, "a method": WithMethod, "a property": WithProperty}
SERVICE = "tests.v1.Wrapped"  # which no descriptor knows


def raw(order_id="1", trace="", sku="a", item_trace=""):
    item = Item(sku=sku, trace=item_trace)
    message: bytes = Order.serialize(Order(order_id=order_id, trace=trace, item=item, items=[item]))
    return message


@pytest.fixture
def serve(start, face):
    """A server of ``kind`` whose requests are made by ``parse``: ``serve(kind, parse, **settings)``.

    Each run of its handler is in ``calls``, with the requests that it was given.
    """

    def serve(kind, parse, *, service=SERVICE, method="Do", **settings):
        calls: list[Any] = []

        def unary(request, context):
            calls.append(list(request) if kind.has_request_stream else request)
            return b"%d" % len(calls)

        def stream(request, context):
            yield unary(request, context)

        async def async_unary(request, context):
            calls.append([each async for each in request] if kind.has_request_stream else request)
            return b"%d" % len(calls)

        async def async_stream(request, context):
            yield await async_unary(request, context)

        behaviors = {"sync": (unary, stream), "aio": (async_unary, async_stream)}[face]
        make = getattr(grpc, f"{kind.arity}_rpc_method_handler")
        handler = make(behaviors[kind.has_response_stream], parse)
        generic = grpc.method_handlers_generic_handler(service, {method: handler})
        server = start(handlers=[generic], **settings)

        def call(*bodies, key: str | None = "key"):
            rpc = getattr(server.client.channel, kind.arity)(f"/{service}/{method}")
            send = rpc if kind.has_response_stream else rpc.future
            body = iter(bodies) if kind.has_request_stream else bodies[0]
            metadata = [] if key is None else [(KEY, key)]
            return Pending(send(body, metadata=metadata, timeout=DEADLINE), kind.has_response_stream).answer()

        return call, calls

    return serve


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_ignored_fields_are_ignored_in_wrapped_requests(serve, kind, wrapper):
    ignore = ["trace", "item.trace", "items.trace"]
    call, calls = serve(kind, wrapper.deserialize, default=Policy(ignore=ignore))
    first = call(raw(trace="one", item_trace="x"))
    second = call(raw(trace="two", item_trace="y"))
    assert first.ok, first
    assert second.essence == first.essence
    assert call(raw(trace="one", sku="b")).reason is Reason.KEY_REUSED
    assert len(calls) == 1
    given = calls[0][0] if kind.has_request_stream else calls[0]
    assert type(given) is wrapper, "handlers get what their own function made"


def test_a_wrapped_request_is_the_same_in_another_order_of_fields(serve, kind):
    call, calls = serve(kind, Order.deserialize)
    one, two = Order.serialize(Order(order_id="1")), Order.serialize(Order(trace="2"))
    first, second = call(one + two), call(two + one)
    assert first.ok
    assert second.essence == first.essence
    assert len(calls) == 1


@pytest.mark.parametrize("parse", [Opaque.deserialize, None], ids=["a wrapper of nothing known", "bytes"])
def test_a_call_whose_fields_cannot_be_ignored_is_refused_and_the_log_says_why(serve, kind, parse, caplog):
    call, calls = serve(kind, parse, default=Policy(ignore=["trace"]))
    answer = call(raw())
    assert (answer.code, answer.reason) == (grpc.StatusCode.INTERNAL, Reason.MISCONFIGURED)
    assert not calls
    assert "Policy(ignore=['trace']): requests are of <class" in caplog.text
    assert "neither a protobuf message nor wraps one" in caplog.text
    assert call(raw(), key=None).ok, "without a key nothing is compared"


@pytest.mark.parametrize("parse", [Opaque.deserialize, None], ids=["a wrapper of nothing known", "bytes"])
def test_requests_without_fields_are_compared_by_their_bytes(serve, kind, parse):
    call, calls = serve(kind, parse)
    first = call(raw())
    assert call(raw()).essence == first.essence
    assert call(raw(order_id="2")).reason is Reason.KEY_REUSED
    assert len(calls) == 1


def test_a_wrong_field_to_ignore_is_found_before_a_handler_runs(serve, kind):
    for parse in Order.deserialize, Order.pb().FromString:
        call, calls = serve(kind, parse, default=Policy(ignore=["trase"]))
        assert call(raw()).reason is Reason.MISCONFIGURED
        assert not calls


CONTRACT = {"service": "tests.v1.ContractService", "method": "FromFields"}
Fields = contract_pb2.FromFieldsRequest


PARSERS = {"opaque": Opaque.deserialize, "bytes": None, "the class itself": Fields.FromString}


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM], ids=lambda kind: kind.value, indirect=True)
@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
def test_a_key_is_made_of_fields_by_the_descriptor_whatever_the_handler_gets(serve, kind, parse):
    call, calls = serve(kind, parse, **CONTRACT)
    one = Fields(request_id="r", amount=1, trace="one", part=contract_pb2.Part(name="p", seen_by="one"))
    two = Fields(request_id="r", amount=1, trace="two", part=contract_pb2.Part(name="p", seen_by="two"))
    first, second = (call(each.SerializeToString(), key=None) for each in (one, two))
    assert first.ok, first
    assert second.essence == first.essence
    two.amount = 2
    assert call(two.SerializeToString(), key=None).reason is Reason.KEY_REUSED
    assert call(Fields(amount=1).SerializeToString(), key=None).reason is Reason.KEY_REQUIRED
    assert len(calls) == 1
    if parse is not Fields.FromString:
        assert call(b"\xff\xff\xff", key=None).code is grpc.StatusCode.INTERNAL


def test_a_key_is_made_of_a_wrapped_request(serve, face):
    """The fields are those of the class that the handler takes, if its own contract has them all."""
    call, calls = serve(Kind.UNARY, Wrapped.FromString, **CONTRACT)
    one = Fields(request_id="r", trace="one").SerializeToString()
    two = Fields(request_id="r", trace="two").SerializeToString()
    first, second = call(one, key=None), call(two, key=None)
    assert first.ok, first
    assert second.essence == first.essence
    assert len(calls) == 1


class Wrapped:
    def __init__(self, message):
        self._message = message

    @classmethod
    def FromString(cls, raw):
        return cls(Fields.FromString(raw))

    def pb(self):
        return self._message


# The client.


def outgoing(request):
    return Outgoing("/tests.v1.Wrapped/Do", request, ())


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_a_client_makes_keys_of_wrapped_requests(wrapper):
    source = keys.from_request("order:{order_id}:{item.sku}")
    assert source(outgoing(wrapper.deserialize(raw("7", sku="b")))) == "order:7:b"
    with pytest.raises(ValueError, match="no value for 'order_id'"):
        source(outgoing(wrapper.deserialize(raw(order_id=""))))
    with pytest.raises(ValueError, match="has no single field 'nothing'"):
        keys.from_request("{nothing}")(outgoing(wrapper.deserialize(raw())))


@pytest.mark.parametrize(
    "request_", [Opaque(b""), b"bytes", {"order_id": 1}], ids=["opaque", "bytes", "a dict"]
)
def test_the_error_of_a_client_names_a_request_without_fields(request_):
    with pytest.raises(
        ValueError, match=r"its requests are of <class .*neither a protobuf message nor wraps"
    ):
        keys.from_request("{order_id}")(outgoing(request_))
    with pytest.raises(ValueError, match="has no single request message"):
        keys.from_request("{order_id}")(outgoing(None))


def test_a_call_through_a_client_of_proto_plus(start, face):
    seen = []

    def do(request, context):
        seen.append(dict(context.invocation_metadata())[KEY])
        return request

    async def async_do(request, context):
        return do(request, context)

    behavior = do if face == "sync" else async_do
    handler = grpc.unary_unary_rpc_method_handler(behavior, Order.deserialize, Order.serialize)
    server = start(handlers=[grpc.method_handlers_generic_handler(SERVICE, {"Do": handler})])
    order = Order(order_id="7")
    settings: Any = {"keys": keys.from_request("order:{order_id}"), "retry": Retry(attempt_timeout=5)}
    if face == "sync":
        with grpc.insecure_channel(server.address) as plain:
            channel = grpc.intercept_channel(plain, *idem_grpc.client_interceptors(**settings))
            do_it = channel.unary_unary(f"/{SERVICE}/Do", Order.serialize, Order.deserialize)
            assert do_it(order, timeout=DEADLINE) == order
            assert do_it(order, timeout=DEADLINE) == order
    else:

        async def twice():
            ours = idem_grpc.aio.client_interceptors(**settings)
            async with grpc.aio.insecure_channel(server.address, interceptors=ours) as channel:
                do_it: Any = channel.unary_unary(f"/{SERVICE}/Do", Order.serialize, Order.deserialize)
                assert await do_it(order, timeout=DEADLINE) == order
                assert await do_it(order, timeout=DEADLINE) == order

        server.run(twice())
    assert seen == ["order:7"]


def test_a_wrapped_request_is_kept_unchanged_for_a_retry():
    order = Order(order_id="1", items=[Item(sku="a")])
    kept = snapshot(order)
    order.order_id = "2"
    order.items.append(Item(sku="b"))
    assert (type(kept), kept.order_id, len(kept.items)) == (Order, "1", 1)
    assert size_of(kept) == len(Order.serialize(kept))


def test_updates_refuse_wrapped_messages_with_the_reason():
    with pytest.raises(TypeError, match=r"for proto-plus, type\(m\)\.pb\(m\)"):
        updates.apply(Order(), Order())
    with pytest.raises(TypeError, match=r"for proto-plus, type\(m\)\.pb\(m\)"):
        updates.changed(Order(), Order())
    assert updates.changed(Order.pb(Order(order_id="1")), Order.pb(Order())).paths == ["order_id"]


def test_an_object_with_an_attribute_pb_is_not_taken_for_a_wrapper():
    class Raises:
        @property
        def pb(self):
            raise RuntimeError("not now")

    class Other:
        pb = 7

    assert [message_of(each) for each in (Raises(), Other(), Other, Order, None, b"", object())] == [None] * 7
    message = FileDescriptorProto()
    assert message_of(message) is message
