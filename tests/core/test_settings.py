"""Settings that all interceptors share: durations, scopes, and the fields that keys are made of."""

import asyncio
import math
from datetime import timedelta

import pytest
from google.protobuf import descriptor_pb2, timestamp_pb2, type_pb2, wrappers_pb2
from idem_grpc_pb.v1 import options_pb2, token_pb2

import idem_grpc.aio
from idem_grpc import StoreError, keys, metadata
from idem_grpc._core.durations import in_seconds
from idem_grpc._core.keys import Outgoing


@pytest.mark.parametrize("duration", [-1, -0.001, timedelta(seconds=-1), math.nan, math.inf], ids=str)
def test_a_duration_is_finite_and_not_negative(duration):
    with pytest.raises(ValueError, match="is not a duration: give 0 seconds or more"):
        in_seconds(duration)


@pytest.mark.parametrize("duration", ["10", None, True, b"1"], ids=repr)
def test_a_duration_of_another_type_is_refused(duration):
    with pytest.raises(TypeError, match="give a timedelta or a number of seconds"):
        in_seconds(duration)


@pytest.mark.parametrize("name", ["", "X-Tenant", "x tenant", "x-tenant:", "téna", "x\n"])
def test_an_invalid_metadata_name_is_refused(name):
    with pytest.raises(ValueError, match="metadata keys are lower case"):
        metadata(name)


@pytest.mark.parametrize("name", [5, None, b"x-tenant-id"], ids=repr)
def test_a_metadata_name_is_a_string(name):
    with pytest.raises(TypeError, match="give the name of an entry, such as 'x-tenant-id'"):
        metadata(name)


def key_of(template, message):
    return keys.from_request(template)(Outgoing("/shop.v1.Orders/Create", message, ()))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (wrappers_pb2.Int64Value(value=0), "value"),
        (wrappers_pb2.BoolValue(value=False), "value"),
        (wrappers_pb2.DoubleValue(value=0), "value"),
        (wrappers_pb2.StringValue(value=""), "value"),
        (wrappers_pb2.BytesValue(value=b""), "value"),
        (type_pb2.Type(syntax=type_pb2.SYNTAX_PROTO2), "syntax"),
        (token_pb2.IssueTokensRequest(), "ttl.seconds"),
        (type_pb2.Type(), "source_context.file_name"),
    ],
    ids=lambda value: getattr(value, "DESCRIPTOR", None) and value.DESCRIPTOR.name,
)
def test_a_key_field_without_presence_is_missing_if_it_has_its_default(message, field):
    with pytest.raises(ValueError, match=f"the request has no value for '{field}'"):
        key_of(f"order:{{{field}}}", message)


@pytest.mark.parametrize(
    ("message", "field", "part"),
    [
        (wrappers_pb2.Int64Value(value=-7), "value", "-7"),
        (wrappers_pb2.BoolValue(value=True), "value", "True"),
        (wrappers_pb2.BytesValue(value=b"\0"), "value", "00"),
        (type_pb2.Type(syntax=type_pb2.SYNTAX_PROTO3), "syntax", "1"),
        (timestamp_pb2.Timestamp(seconds=5), "seconds", "5"),
    ],
    ids=str,
)
def test_a_field_with_another_value_is_part_of_the_key(message, field, part):
    assert key_of(f"order:{{{field}}}", message) == f"order:{part}"


def test_a_key_field_with_presence_may_be_zero():
    given, silent = options_pb2.Policy(max_response_bytes=0), options_pb2.Policy()
    assert key_of("order:{max_response_bytes}", given) == "order:0"
    with pytest.raises(ValueError, match="has no value for 'max_response_bytes'"):
        key_of("order:{max_response_bytes}", silent)
    empty = descriptor_pb2.FieldDescriptorProto(name="")
    with pytest.raises(ValueError, match="has no value for 'name'"):
        key_of("order:{name}", empty)


def test_the_error_in_a_second_event_loop_says_what_to_open(tmp_path):
    store = idem_grpc.aio.open_store(f"sqlite:///{tmp_path}/idem.db")
    asyncio.run(store.check())
    with pytest.raises(StoreError, match=r"call idem_grpc\.aio\.open_store once for each event loop"):
        asyncio.run(store.check())
    asyncio.run(store.aclose())
