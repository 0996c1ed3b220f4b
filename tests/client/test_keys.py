"""Which key a call bears: the order of choice, and what each source gives."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from uuid import UUID

import grpc
import pytest
from tests_pb.v1 import contract_pb2, contract_pb2_grpc
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
import idem_grpc.aio
from idem_grpc import keys
from idem_grpc._core.keys import current_step
from tests.client.conftest import send
from tests.client.scripted import answer
from tests.server.client import Kind
from tests.server.kinds import ALL

REQUEST = pb.LedgerRequest(order="one", amount=7)
OWN = (("idempotency-key", "own"),)
FROM_REQUEST = keys.from_request("order:{order}:{amount}")


@pytest.fixture
def server(script):
    return script(answer())


def test_own_metadata_comes_first(server, stub_of, kind):
    stub = stub_of(server, keys=lambda outgoing: "source")
    with keys.using("used"):
        send(stub, kind, REQUEST, metadata=OWN)
        send(stub, kind, REQUEST)
        send(stub, kind, REQUEST)
    assert server.keys == ["own", "used", "source"]


def test_own_metadata_is_sent_along(server, stub_of, kind):
    send(stub_of(server), kind, REQUEST, metadata=(("a", "1"), ("b-bin", b"\x00")))
    metadata = server.seen[0].metadata
    assert (metadata["a"], metadata["b-bin"]) == ("1", b"\x00")
    assert UUID(metadata["idempotency-key"]).version == 7


def test_using_is_for_the_next_call_alone(server, stub_of):
    stub = stub_of(server, keys=None)
    with keys.using("used"):
        stub.Read(REQUEST)  # which takes none
        stub.Unary.future(REQUEST).result()
        stub.Unary(REQUEST)
    stub.Unary(REQUEST)
    assert server.keys == [None, "used", None, None]


def test_a_key_of_the_request(server, stub_of):
    stub = stub_of(server, keys=FROM_REQUEST)
    stub.Unary(REQUEST)
    list(stub.ServerStream(REQUEST))
    assert server.keys == ["order:one:7"] * 2


def test_a_request_stream_has_no_request_to_make_a_key_of(server, stub_of):
    with pytest.raises(ValueError, match="no single request"):
        stub_of(server, keys=FROM_REQUEST).ClientStream(iter([REQUEST]))
    assert not server.seen


def test_an_empty_field_makes_no_key(server, stub_of):
    with pytest.raises(ValueError, match="'order'"):
        stub_of(server, keys=FROM_REQUEST).Unary(pb.LedgerRequest())
    assert not server.seen


def test_a_template_is_checked_against_the_method_it_is_for():
    good = {Kind.UNARY.path: FROM_REQUEST, "/tests.v1.Unknown/Method": keys.from_request("{anything}")}
    assert idem_grpc.client_interceptors(keys=good)
    with pytest.raises(ValueError, match=r"tests\.v1\.LedgerRequest has no single field 'ordre'"):
        idem_grpc.client_interceptors(keys={Kind.UNARY.path: keys.from_request("{ordre}")})


@pytest.mark.parametrize("source", [keys.unique, FROM_REQUEST], ids=["unique", "from_request"])
def test_a_pattern_that_names_no_method_of_a_known_service(source):
    with pytest.raises(ValueError, match=r"no method '/tests\.v1\.LedgerService/Unry': .* has Unary"):
        idem_grpc.client_interceptors(keys={"/tests.v1.LedgerService/Unry": source})


def test_a_template_is_not_for_a_method_that_takes_a_stream():
    with pytest.raises(ValueError, match="takes a stream of requests"):
        idem_grpc.client_interceptors(keys={Kind.CLIENT_STREAM.path: FROM_REQUEST})


@pytest.mark.parametrize("face", [idem_grpc, idem_grpc.aio], ids=["sync", "aio"])
@pytest.mark.parametrize("retry", [{}, 3, True, idem_grpc.Retry], ids=repr)
def test_retries_that_are_none(face, retry):
    with pytest.raises(TypeError, match="give a Retry, or None"):
        face.client_interceptors(retry=retry)


def test_a_source_for_aio_is_told_where_it_belongs(server, stub_of):
    async def source(outgoing):
        return "key"

    with pytest.raises(TypeError, match=r"async sources are for idem_grpc\.aio"):
        stub_of(server, keys=source).Unary(REQUEST)
    assert not server.seen


@pytest.mark.parametrize("pattern", ["tests.v1.LedgerService/Unary", "/tests.v1.LedgerService", "*", ""])
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(ValueError, match=r"is not '/pkg\.Service/Method'"):
        idem_grpc.client_interceptors(keys={pattern: keys.unique})


@pytest.mark.parametrize("source", ["key", 1, {Kind.UNARY.path: "key"}, idem_grpc.TokenKeys], ids=str)
def test_a_source_that_is_none(source):
    with pytest.raises(TypeError, match="is no source"):
        idem_grpc.client_interceptors(keys=source)


def test_the_nearest_pattern_wins(server, stub_of):
    sources = {
        "/tests.v1.LedgerService/*": lambda outgoing: "service",
        Kind.UNARY.path: lambda outgoing: "method",
        "/tests.v1.Other/*": lambda outgoing: "other",
    }
    stub = stub_of(server, keys=sources)
    for kind in ALL:
        send(stub, kind, REQUEST)
    assert server.keys == ["method", "service", "service", "service"]


@pytest.mark.parametrize(
    "template",
    ["{order}{amount}", "{order}-{amount}", "{a}:{b}{c}", "{order}{{}}{amount}"],
)
def test_fields_of_a_template_are_told_apart(template):
    with pytest.raises(ValueError, match="put a colon between"):
        keys.from_request(template)
    keys.from_request("{order}:{{x}}{amount}")


def test_a_template_for_a_service_is_one_for_a_method_of_it():
    everything = "/tests.v1.ContractService/*"
    assert idem_grpc.client_interceptors(keys={everything: keys.from_request("{request_id}")})
    with pytest.raises(ValueError, match=r"suits no method of it: .*'\{requested_id\}'"):
        idem_grpc.client_interceptors(keys={everything: keys.from_request("{requested_id}")})
    assert idem_grpc.client_interceptors(keys={"/tests.v1.Unknown/*": keys.from_request("{anything}")})


def test_a_source_sees_the_call_and_may_pass(server, stub_of, kind):
    seen = []

    def source(outgoing):
        seen.append(outgoing)

    send(stub_of(server, keys=source), kind, REQUEST, metadata=(("a", "1"),))
    assert server.keys == [None]
    (outgoing,) = seen
    assert outgoing.method == kind.path
    assert outgoing.metadata == (("a", "1"),)
    assert outgoing.request == (None if kind.has_request_stream else REQUEST)


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256, 7, b"bytes"], ids=repr)
def test_keys_that_may_not_be_sent(server, stub_of, key):
    with pytest.raises(ValueError, match="a key source gave"):
        stub_of(server, keys=lambda outgoing: key).Unary(REQUEST)
    assert not server.seen


def test_what_a_source_raises_is_raised(server, stub_of):
    def source(outgoing):
        raise LookupError("no key today")

    with pytest.raises(LookupError, match="today"):
        stub_of(server, keys=source).Unary(REQUEST)


def test_methods_that_change_nothing_get_none(server, stub_of):
    stub_of(server).Read(REQUEST)
    assert server.keys == [None]


class Contract(contract_pb2_grpc.ContractServiceServicer):
    """Notes the key of every call."""

    def __init__(self):
        self.keys = []
        self.address = ""

    def Plain(self, request, context):
        return self._note(context, contract_pb2.PlainResponse())

    def Full(self, request, context):
        return self._note(context, contract_pb2.FullResponse())

    def FromFields(self, request, context):
        return self._note(context, contract_pb2.FromFieldsResponse())

    def Read(self, request, context):
        return self._note(context, contract_pb2.ReadResponse())

    def _note(self, context, response):
        self.keys.append(dict(context.invocation_metadata()).get("idempotency-key"))
        return response


def test_steps_nest_however_long_their_names_are():
    names = ("a" * 100, "b:" * 60, "c" * 100)
    found = set()
    for last in ("d", "e"):
        with keys.step(names[0]), keys.step(names[1]), keys.step(names[2]), keys.step(last):
            found.add(current_step())
    assert len(found) == 2


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (None, TypeError), (1.5, TypeError)])
def test_a_step_has_a_name(name, error):
    with pytest.raises(error), keys.step(name):
        pass


@pytest.mark.parametrize("at", ["2024-03-30T10:00Z", 0, date(2024, 3, 30)], ids=repr)
def test_a_window_is_of_a_time(at):
    with pytest.raises(TypeError, match="give a datetime"):
        keys.windowed("task", window=60, at=at)


@pytest.fixture
def contract():
    """A server of the contract, which notes keys."""
    contract = Contract()
    server = grpc.server(ThreadPoolExecutor(2))
    contract_pb2_grpc.add_ContractServiceServicer_to_server(contract, server)
    contract.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield contract
    server.stop(0).wait()


def test_without_sources_the_contract_says_who_gets_one(connect, contract):
    stub = contract_pb2_grpc.ContractServiceStub(connect(contract, keys=None))
    stub.Plain(contract_pb2.PlainRequest())
    stub.FromFields(contract_pb2.FromFieldsRequest(request_id="id-1"))
    stub.Read(contract_pb2.ReadRequest())
    stub.Full(contract_pb2.FullRequest())  # wants a token, which nobody can make up
    assert UUID(contract.keys[0]).version == 7
    assert contract.keys[1:] == ["id-1", None, None]


@pytest.mark.parametrize(
    ("sources", "key"),
    [
        (keys.unique, "id-1"),
        ({"/tests.v1.ContractService/*": keys.unique}, "id-1"),
        (keys.from_request("request:{request_id}"), "request:id-1"),
        ({"/tests.v1.ContractService/*": keys.from_request("request:{request_id}")}, "request:id-1"),
        ({"/tests.v1.ContractService/FromFields": lambda outgoing: "own"}, "own"),
    ],
)
def test_fields_of_the_contract_come_before_sources_that_are_for_many_methods(
    connect, contract, sources, key
):
    stub = contract_pb2_grpc.ContractServiceStub(connect(contract, keys=sources))
    stub.FromFields(contract_pb2.FromFieldsRequest(request_id="id-1"))
    assert contract.keys == [key]
