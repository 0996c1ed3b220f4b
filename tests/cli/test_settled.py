"""A server answers what a person settled with the command."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from idem_grpc import SHARED, KeyRule, OnUnclear, Policy, ServerInterceptor, open_store

METHOD = "/pay.v1.Payments/Charge"
KEY = ("order-1", "--operation", METHOD, "--scope", "")


class Payments:
    """A server whose handler fails until ``works`` is set."""

    def __init__(self, store):
        self.runs, self.works = 0, False
        policy = Policy(key=KeyRule.REQUIRED, on_unclear=OnUnclear.FAIL)
        interceptor = ServerInterceptor(store, scope=SHARED, policies={METHOD: policy})
        self.server = grpc.server(ThreadPoolExecutor(4), interceptors=[interceptor])
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._charge)
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("pay.v1.Payments", {"Charge": handler})]
        )
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def _charge(self, request, context):
        self.runs += 1
        if not self.works:
            context.abort(grpc.StatusCode.INTERNAL, "the provider did not answer")
        return b"charged by a run"

    def call(self):
        """Make a call, and return the answer, or the status code of the failure."""
        try:
            metadata = (("idempotency-key", "order-1"),)
            charge: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(METHOD)
            return charge(b"1299 EUR", metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            return error.code()

    def close(self):
        self.channel.close()
        self.server.stop(None).wait()


@pytest.fixture
def payments(place):
    with open_store(place[1], namespace=place[3]) as store:
        payments = Payments(store)
        assert payments.call() is grpc.StatusCode.INTERNAL
        payments.works = True
        assert payments.call() is grpc.StatusCode.FAILED_PRECONDITION, "it is not run again"
        yield payments
        payments.close()


def test_an_unknown_record_is_listed_and_found_by_its_key(run, place, payments):
    assert "UNKNOWN" in run("list", *place, "--state", "unknown").stdout
    assert "UNKNOWN: the outcome is unclear" in run("inspect", *place, *KEY).stdout


def test_resolved_to_run_again(run, place, payments):
    assert run("resolve", *place, *KEY, "--rerun", "--yes").exit_code == 0
    assert [payments.call(), payments.call()] == [b"charged by a run"] * 2
    assert payments.runs == 2


def test_resolved_to_an_answer(run, place, payments, tmp_path):
    (tmp_path / "response").write_bytes(b"charged, says the provider")
    done = run("resolve", *place, *KEY, "--response-file", tmp_path / "response", "--unchecked", "--yes")
    assert done.exit_code == 0
    assert [payments.call(), payments.call()] == [b"charged, says the provider"] * 2
    assert payments.runs == 1


def test_resolved_to_a_failure(run, place, payments):
    code = ("--outcome-code", "ABORTED", "--details", "not charged, says the provider")
    assert run("resolve", *place, *KEY, *code, "--yes").exit_code == 0
    assert payments.call() is grpc.StatusCode.ABORTED
    assert payments.runs == 1


def test_forgotten(run, place, payments):
    assert run("forget", *place, *KEY, "--yes").exit_code == 0
    assert payments.call() == b"charged by a run"
    assert payments.runs == 2
