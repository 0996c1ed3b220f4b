"""Which key a call gets: the order of choice, and what each source gives."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from uuid import UUID

import grpc
import pytest
from tests_pb.v1 import contract_pb2, contract_pb2_grpc
from tests_pb.v1 import ledger_pb2 as pb

import idem_grpc
from idem_grpc import keys
from idem_grpc._core.keys import current_step
from tests.server.client import Kind
from tests.server.kinds import ALL

REQUEST = pb.LedgerRequest(order="one", amount=7)
OWN = (("idempotency-key", "own"),)
FROM_REQUEST = keys.from_request("order:{order}:{amount}")


@pytest.fixture
def server(script):
    return script()


def test_own_metadata_comes_first(face, server, kind):
    client = face.client(server, keys=lambda outgoing: "source")
    with keys.using("used"):
        client.send(kind, metadata=OWN)
        client.send(kind)
        client.send(kind)
    assert server.keys == ["own", "used", "source"]


def test_own_metadata_is_sent_along(face, server, kind):
    face.client(server).send(kind, metadata=(("a", "1"), ("b-bin", b"\x00")))
    metadata = server.seen[0].metadata
    assert (metadata["a"], metadata["b-bin"]) == ("1", b"\x00")
    assert UUID(metadata["idempotency-key"]).version == 7


def test_using_is_for_the_next_call_alone(face, server):
    client = face.client(server, keys=None)
    with keys.using("used"):
        client.send(Kind.READ)  # which takes none
        client.begin(Kind.UNARY).responses()
        client.send(Kind.UNARY)
    client.send(Kind.UNARY)
    assert server.keys == [None, "used", None, None]


def test_the_key_that_is_used_is_that_of_the_call_that_is_made_first(face, server):
    client = face.client(server, keys=None)
    with keys.using("used"):
        call = client.begin(Kind.UNARY, pb.LedgerRequest(order="first"))
    client.send(Kind.UNARY, pb.LedgerRequest(order="second"))
    call.responses()
    assert {seen.requests[0].order: seen.key for seen in server.seen} == {"first": "used", "second": None}


def test_a_key_of_the_request(face, server):
    client = face.client(server, keys=FROM_REQUEST)
    client.send(Kind.UNARY, REQUEST)
    client.send(Kind.SERVER_STREAM, REQUEST)
    assert server.keys == ["order:one:7"] * 2


def test_a_request_stream_has_no_request_to_make_a_key_of(face, server):
    with pytest.raises(ValueError, match="no single request"):
        face.client(server, keys=FROM_REQUEST).send(Kind.CLIENT_STREAM, REQUEST)
    assert not server.seen


def test_an_empty_field_makes_no_key(face, server):
    with pytest.raises(ValueError, match="'order'"):
        face.client(server, keys=FROM_REQUEST).send(Kind.UNARY, pb.LedgerRequest())
    assert not server.seen


def test_a_template_is_checked_against_the_method_it_is_for(face):
    good = {Kind.UNARY.path: FROM_REQUEST, "/tests.v1.Unknown/Method": keys.from_request("{anything}")}
    assert face.library.client_interceptors(keys=good)
    with pytest.raises(ValueError, match=r"tests\.v1\.LedgerRequest has no single field 'ordre'"):
        face.library.client_interceptors(keys={Kind.UNARY.path: keys.from_request("{ordre}")})


@pytest.mark.parametrize("source", [keys.unique, FROM_REQUEST], ids=["unique", "from_request"])
def test_a_pattern_that_names_no_method_of_a_known_service(face, source):
    with pytest.raises(ValueError, match=r"no method '/tests\.v1\.LedgerService/Unry': .* has Unary"):
        face.library.client_interceptors(keys={"/tests.v1.LedgerService/Unry": source})


def test_a_template_is_not_for_a_method_that_takes_a_stream(face):
    with pytest.raises(ValueError, match="takes a stream of requests"):
        face.library.client_interceptors(keys={Kind.CLIENT_STREAM.path: FROM_REQUEST})


@pytest.mark.parametrize("retry", [{}, 3, True, idem_grpc.Retry], ids=repr)
def test_retries_that_are_none(face, retry):
    with pytest.raises(TypeError, match="give a Retry, or None"):
        face.library.client_interceptors(retry=retry)


def test_grpc_takes_no_async_source(server, stub_of):
    async def source(outgoing):
        return "key"

    with pytest.raises(TypeError, match=r"async sources are for idem_grpc\.aio"):
        stub_of(server, keys=source).Unary(REQUEST)
    assert not server.seen


@pytest.mark.parametrize("pattern", ["tests.v1.LedgerService/Unary", "/tests.v1.LedgerService", "*", ""])
def test_a_pattern_that_is_none(face, pattern):
    with pytest.raises(ValueError, match=r"is not '/pkg\.Service/Method'"):
        face.library.client_interceptors(keys={pattern: keys.unique})


@pytest.mark.parametrize("source", ["key", 1, {Kind.UNARY.path: "key"}, idem_grpc.TokenKeys], ids=str)
def test_a_source_that_is_none(face, source):
    with pytest.raises(TypeError, match="is no source"):
        face.library.client_interceptors(keys=source)


def test_the_nearest_pattern_wins(face, server):
    sources = {
        "/tests.v1.LedgerService/*": lambda outgoing: f"any:{outgoing.method}",
        Kind.UNARY.path: FROM_REQUEST,
        "/tests.v1.Other/*": lambda outgoing: "other",
    }
    client = face.client(server, keys=sources)
    for kind in ALL:
        client.send(kind, REQUEST)
    assert server.keys == ["order:one:7", *(f"any:{kind.path}" for kind in ALL[1:])]


@pytest.mark.parametrize(
    "template",
    ["{order}{amount}", "{order}-{amount}", "{a}:{b}{c}", "{order}{{}}{amount}"],
)
def test_fields_of_a_template_are_told_apart(template):
    with pytest.raises(ValueError, match="put a colon between"):
        keys.from_request(template)
    keys.from_request("{order}:{{x}}{amount}")


def test_a_template_for_a_service_is_one_for_a_method_of_it(face):
    everything = "/tests.v1.ContractService/*"
    assert face.library.client_interceptors(keys={everything: keys.from_request("{request_id}")})
    with pytest.raises(ValueError, match=r"suits no method of it: .*'\{requested_id\}'"):
        face.library.client_interceptors(keys={everything: keys.from_request("{requested_id}")})
    assert face.library.client_interceptors(keys={"/tests.v1.Unknown/*": keys.from_request("{anything}")})


def test_a_source_sees_the_call_and_may_give_no_key(face, server, kind):
    seen = []

    def source(outgoing):
        seen.append(outgoing)

    face.client(server, keys=source).send(kind, REQUEST, metadata=(("a", "1"),))
    assert server.keys == [None]
    (outgoing,) = seen
    assert outgoing.method == kind.path
    assert tuple(outgoing.metadata) == (("a", "1"),)
    assert outgoing.request == (None if kind.has_request_stream else REQUEST)


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256, 7, b"bytes"], ids=repr)
def test_keys_that_may_not_be_sent(face, server, key):
    client = face.client(server, keys=lambda outgoing: key)
    for kind in ALL:
        with pytest.raises(ValueError, match=r"a key source gave .* 0x21 to 0x7E"):
            client.send(kind)
        with pytest.raises(ValueError, match=r"a key source gave .* 0x21 to 0x7E"):
            client.begin(kind).responses()
    assert not server.seen


def test_what_a_source_raises_is_raised(face, server, kind):
    def source(outgoing):
        raise LookupError("no key today")

    with pytest.raises(LookupError, match="today"):
        face.client(server, keys=source).send(kind)
    assert not server.seen


class Contract(contract_pb2_grpc.ContractServiceServicer):
    """Records the key of every call."""

    def __init__(self):
        self.keys = []
        self.address = ""

    def Plain(self, request, context):
        return self._recorded(context, contract_pb2.PlainResponse())

    def Full(self, request, context):
        return self._recorded(context, contract_pb2.FullResponse())

    def FromFields(self, request, context):
        return self._recorded(context, contract_pb2.FromFieldsResponse())

    def Read(self, request, context):
        return self._recorded(context, contract_pb2.ReadResponse())

    def _recorded(self, context, response):
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
    """A server of the contract."""
    contract = Contract()
    server = grpc.server(ThreadPoolExecutor(2))
    contract_pb2_grpc.add_ContractServiceServicer_to_server(contract, server)
    contract.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield contract
    server.stop(0).wait()


def test_without_sources_the_contract_says_which_methods_get_one(face, contract):
    client = face.client(contract, keys=None)
    for name, request in (
        ("Plain", contract_pb2.PlainRequest()),
        ("FromFields", contract_pb2.FromFieldsRequest(request_id="id-1")),
        ("Read", contract_pb2.ReadRequest()),
        ("Full", contract_pb2.FullRequest()),  # needs a token, which only a server can issue
    ):
        client.invoke(contract_pb2_grpc.ContractServiceStub, name, request)
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
def test_fields_of_the_contract_come_before_sources_that_are_for_many_methods(face, contract, sources, key):
    client = face.client(contract, keys=sources)
    request = contract_pb2.FromFieldsRequest(request_id="id-1")
    client.invoke(contract_pb2_grpc.ContractServiceStub, "FromFields", request)
    assert contract.keys == [key]
