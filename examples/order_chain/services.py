"""The handlers: plain business code that neither passes keys on nor makes them."""

import threading

import grpc
from examples_pb.order_chain.v1 import shop_pb2 as pb
from examples_pb.order_chain.v1 import shop_pb2_grpc as pb_grpc

from examples.order_chain.books import Books

PATIENCE = 10.0
"""Seconds that Order waits for the other services."""


class OrderService(pb_grpc.OrderServiceServicer):
    """Calls the other two services, one after the other.

    For the demonstration, ``stall`` makes it stop forever, "between" the two calls or "after" both.
    """

    def __init__(self, payments: grpc.Channel, inventory: grpc.Channel, stall: str = "") -> None:
        self._payments = pb_grpc.PaymentServiceStub(payments)
        self._inventory = pb_grpc.InventoryServiceStub(inventory)
        self._stall = stall

    def PlaceOrder(
        self, request: pb.PlaceOrderRequest, context: grpc.ServicerContext
    ) -> pb.PlaceOrderResponse:
        charge = pb.ChargeRequest(order_id=request.order_id, cents=request.cents)
        payment = self._payments.Charge(charge, timeout=PATIENCE)
        self._reach("between")
        goods = pb.ReserveRequest(order_id=request.order_id, article=request.article)
        reservation = self._inventory.Reserve(goods, timeout=PATIENCE)
        self._reach("after")
        return pb.PlaceOrderResponse(payment_id=payment.payment_id, reservation_id=reservation.reservation_id)

    def _reach(self, place: str) -> None:
        if place == self._stall:
            print(f"stalled {place}", flush=True)
            threading.Event().wait()


class PaymentService(pb_grpc.PaymentServiceServicer):
    def __init__(self, books: Books) -> None:
        self._books = books

    def Charge(self, request: pb.ChargeRequest, context: grpc.ServicerContext) -> pb.ChargeResponse:
        return pb.ChargeResponse(payment_id=self._books.note_effect(request.order_id, key_of(context)))


class InventoryService(pb_grpc.InventoryServiceServicer):
    def __init__(self, books: Books) -> None:
        self._books = books

    def Reserve(self, request: pb.ReserveRequest, context: grpc.ServicerContext) -> pb.ReserveResponse:
        return pb.ReserveResponse(reservation_id=self._books.note_effect(request.order_id, key_of(context)))


def key_of(context: grpc.ServicerContext) -> str:
    return str(dict(context.invocation_metadata()).get("idempotency-key", ""))
