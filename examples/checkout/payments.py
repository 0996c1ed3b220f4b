"""The payments service: plain business code, the same with and without protection.

From ``idem_grpc`` it uses only an id that is the same in every attempt at one request. This id is the
primary key of the payment. If a run dies after the charge and another run follows, the card is charged once.
"""

import uuid
from dataclasses import dataclass

import grpc
from examples_pb.checkout.v1 import payments_pb2 as pb
from examples_pb.checkout.v1 import payments_pb2_grpc as pb_grpc
from google.rpc import error_details_pb2, status_pb2

from examples.checkout.ledger import Ledger, LedgerError, Payment
from examples.checkout.provider import Declined, Provider
from idem_grpc import current


@dataclass(frozen=True)
class RichStatus(grpc.Status):
    """A google.rpc.Status for ``context.abort_with_status``; grpcio-status has this too."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


class PaymentService(pb_grpc.PaymentServiceServicer):
    def __init__(self, ledger: Ledger, provider: Provider) -> None:
        self._ledger = ledger
        self._provider = provider

    def Charge(self, request: pb.ChargeRequest, context: grpc.ServicerContext) -> pb.ChargeResponse:
        if request.amount.minor_units <= 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the amount must be more than nothing")
        execution = current()
        run = self._ledger.note_run(request.order_id, execution.attempt if execution else 1)
        try:
            self._provider.authorize(request.order_id, request.card)
        except Declined as declined:
            context.abort_with_status(card_declined(declined))
        payment = self._ledger.charge(
            stable_id("payment"),
            request.order_id,
            request.amount.minor_units,
            request.amount.currency,
            request.card,
            run,
        )
        self._provider.send_receipt(request.order_id, request.card)
        return pb.ChargeResponse(payment=message(payment))

    def Refund(self, request: pb.RefundRequest, context: grpc.ServicerContext) -> pb.RefundResponse:
        if self._ledger.payment(request.payment_id) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such payment")
        refund_id = stable_id("refund")
        try:
            payment = self._ledger.refund(refund_id, request.payment_id, request.minor_units)
        except LedgerError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return pb.RefundResponse(refund_id=refund_id, payment=message(payment))

    def GetPayment(
        self, request: pb.GetPaymentRequest, context: grpc.ServicerContext
    ) -> pb.GetPaymentResponse:
        payment = self._ledger.payment(request.payment_id)
        if payment is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such payment")
        return pb.GetPaymentResponse(payment=message(payment))


class CheckoutService(pb_grpc.CheckoutServiceServicer):
    """The same charge, for the front end. The handler does not depend on the key being a token."""

    def __init__(self, payments: PaymentService) -> None:
        self._payments = payments

    def Pay(self, request: pb.PayRequest, context: grpc.ServicerContext) -> pb.PayResponse:
        return pb.PayResponse(payment=self._payments.Charge(request.charge, context).payment)


def stable_id(name: str) -> str:
    """Return an id that all attempts at this call share, or a new id if there is no interceptor."""
    execution = current()
    return execution.derive(name) if execution else str(uuid.uuid4())


def card_declined(declined: Declined) -> RichStatus:
    """Build the status of a declined card. It is kept for duplicates, with its reference number."""
    code = grpc.StatusCode.FAILED_PRECONDITION
    status = status_pb2.Status(code=code.value[0], message=str(declined))
    reference = {"reference": str(uuid.uuid4())}
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="CARD_DECLINED", domain="checkout.example", metadata=reference)
    )
    return RichStatus(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))


def message(payment: Payment) -> pb.Payment:
    return pb.Payment(
        id=payment.id,
        order_id=payment.order_id,
        amount=pb.Money(minor_units=payment.minor_units, currency=payment.currency),
        refunded=pb.Money(minor_units=payment.refunded, currency=payment.currency),
    )
