"""A client of the payments service that sends a key with its calls and retries them.

``python -m examples.checkout.client 127.0.0.1:50051 order-1 12.99 --key K`` charges a card.
Running it again with the same key charges nothing more.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

import grpc
from examples_pb.checkout.v1 import payments_pb2 as pb
from examples_pb.checkout.v1 import payments_pb2_grpc as pb_grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from idem_grpc_pb.v1 import token_pb2, token_pb2_grpc

from idem_grpc import keys

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True)
class Answer:
    """The final answer to a call.

    body: the serialized response, or the serialized rich status of an error.
    reason: the reason in the rich status.
    run: the id of the run that produced the answer; the same in every duplicate's answer.
    """

    code: grpc.StatusCode
    body: bytes
    reason: str = ""
    replayed: bool = False
    run: str = ""

    def __str__(self) -> str:
        return (self.reason or self.code.name) + (" replayed" if self.replayed else "")


class Client:
    """Calls ``on_pushback`` for every answer that asks for the call to be sent again later."""

    def __init__(
        self, address: str, tenant: str = "shop", on_pushback: Callable[[str], object] = lambda reason: None
    ) -> None:
        self._tenant = tenant
        self._on_pushback = on_pushback
        self._channel = grpc.insecure_channel(address)
        self._stub = pb_grpc.PaymentServiceStub(self._channel)
        self._checkout = pb_grpc.CheckoutServiceStub(self._channel)
        self._tokens = token_pb2_grpc.TokenServiceStub(self._channel)

    def charge(self, request: pb.ChargeRequest, key: str, timeout: float = 10) -> Answer:
        return self._send(self._stub.Charge, request, key, timeout)

    def refund(self, request: pb.RefundRequest, key: str, timeout: float = 10) -> Answer:
        return self._send(self._stub.Refund, request, key, timeout)

    def issue_token(self, timeout: float = 10) -> str:
        """Get a token for one payment. A front end does this before it shows the page."""
        request = token_pb2.IssueTokensRequest(operation="payments.charge")
        metadata = (("x-tenant-id", self._tenant),)
        return self._tokens.IssueTokens(request, timeout=timeout, metadata=metadata).tokens[0].token

    def pay(self, request: pb.ChargeRequest, token: str, timeout: float = 10) -> Answer:
        return self._send(self._checkout.Pay, pb.PayRequest(charge=request), token, timeout)

    def get_payment(self, payment_id: str, timeout: float = 10) -> pb.Payment:
        request = pb.GetPaymentRequest(payment_id=payment_id)
        return self._stub.GetPayment(request, timeout=timeout).payment

    def close(self) -> None:
        self._channel.close()

    def _send(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        key: str,
        timeout: float,
    ) -> Answer:
        """Send a call, and repeat it under the same key for as long as the server asks for it."""
        deadline = time.monotonic() + timeout
        metadata = (("idempotency-key", key), ("x-tenant-id", self._tenant))
        while True:
            call = method.future(request, timeout=deadline - time.monotonic(), metadata=metadata)
            if call.code() is grpc.StatusCode.OK:
                return _answer(call, call.result().SerializeToString())
            trailing = dict(call.trailing_metadata() or ())
            answer = _answer(call, trailing.get("grpc-status-details-bin", b""))
            pushback = int(trailing.get("grpc-retry-pushback-ms", -1)) / 1000
            if pushback < 0 or time.monotonic() + pushback > deadline:
                return answer
            self._on_pushback(answer.reason)
            time.sleep(pushback)


def _answer(call: grpc.Call, body: str | bytes) -> Answer:
    assert isinstance(body, bytes)  # the value of a metadata entry whose name ends in -bin is bytes
    trailing = dict(call.trailing_metadata() or ())
    return Answer(
        code=call.code(),
        body=body,
        reason="" if call.code() is grpc.StatusCode.OK else _reason(body),
        replayed=trailing.get("idempotency-replayed") == "true",
        run=str(trailing.get("idempotency-run", "")),
    )


def _reason(rich_status: bytes) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(rich_status).details:
        if detail.Unpack(info):
            return info.reason
    return ""


def cents(euro: str) -> int:
    """Convert an amount in euro. Raises ValueError if it is not a number."""
    try:
        return int(Decimal(euro) * 100)
    except ArithmeticError as error:
        raise ValueError(euro) from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Charge a card.")
    parser.add_argument("address", help="the address that the server printed")
    parser.add_argument("order")
    parser.add_argument("amount", type=cents, help="in euro, such as 12.99")
    parser.add_argument("--card", default="card-good", help="see provider.py")
    parser.add_argument("--key", default=keys.unique(), help="default: a new one")
    options = parser.parse_args()
    amount = pb.Money(minor_units=options.amount, currency="EUR")
    client = Client(options.address)
    answer = client.charge(
        pb.ChargeRequest(order_id=options.order, amount=amount, card=options.card), options.key
    )
    client.close()
    print(answer)
    if answer.code is grpc.StatusCode.OK:
        print(pb.ChargeResponse.FromString(answer.body))


if __name__ == "__main__":
    main()
