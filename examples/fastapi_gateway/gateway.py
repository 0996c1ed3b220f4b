"""The gateway: **the file to copy**. It turns the header into metadata, and maps the status of the answer.

The gateway has no state and makes no decisions. The payments service knows whether a key is needed, was used
before, or is in use, so gateways do not depend on each other. The gateway sends each call once. Only the
client retries: it knows how long an answer is worth waiting for, and retries of several layers multiply.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import grpc
from examples_pb.checkout.v1 import payments_pb2 as pb
from examples_pb.checkout.v1 import payments_pb2_grpc
from examples_pb.fastapi_gateway.v1 import books_pb2, books_pb2_grpc
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from examples.fastapi_gateway.problems import MEDIA_TYPE, Problem, answer_headers, problem
from idem_grpc import Reason, keys

TENANT = "shop"  # a real gateway takes it from the caller's credentials, never from the caller's headers

DEADLINE = 10.0
"""Seconds that a payment may take. After that the service continues, and a retry gets its answer."""

PAGE = Path(__file__).parent / "page"


class Payment(BaseModel):
    """The JSON body of a payment."""

    model_config = ConfigDict(extra="forbid")

    order_id: str = Field(pattern="^[A-Za-z0-9-]{1,64}$")
    minor_units: int = Field(gt=0, le=1_000_000)
    currency: str = Field(default="EUR", pattern="^[A-Z]{3}$")
    card: str = Field(pattern="^[a-z-]{1,32}$")


def idempotency_key(request: Request) -> str | None:
    """Return the key of a request, or None if it has none. Raises Problem if the key is malformed.

    The draft requires a string in quotes (RFC 9651, section 3.3.3). The quotes are not part of the key. A key
    without quotes is accepted too, because clients have sent such keys to payment services for years.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', given[0])
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else given[0]
    is_malformed = quoted is None and re.search(r'[",;]', key)
    if len(given) > 1 or is_malformed or not keys.is_valid(key):
        detail = 'Idempotency-Key takes one string of 1 to 255 printable characters: "8e03978e-40d5"'
        raise Problem(400, Reason.KEY_INVALID, detail)
    return key


def make_app(payments: str, deadline: float = DEADLINE) -> FastAPI:
    """Create the gateway to the payments service at the address ``payments``."""
    stub: payments_pb2_grpc.PaymentServiceAsyncStub
    ledger: books_pb2_grpc.BooksServiceAsyncStub

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal stub, ledger
        async with grpc.aio.insecure_channel(payments) as channel:
            stub = payments_pb2_grpc.PaymentServiceStub(channel)
            ledger = books_pb2_grpc.BooksServiceStub(channel)
            yield

    app = FastAPI(title="Payments", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(Problem)
    async def respond(request: Request, problem: Problem) -> JSONResponse:
        headers = dict(problem.headers)
        if problem.retry_after is not None:
            headers["Retry-After"] = str(problem.retry_after)
        about = f"{request.base_url}problems.html"
        return JSONResponse(problem.body(about), problem.status, headers, MEDIA_TYPE)

    # FastAPI uses 422 here, which the draft reserves for a key that was used with another payload.
    @app.exception_handler(RequestValidationError)
    async def tell_of_a_bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return await respond(request, Problem(400, "BAD_REQUEST", faults))

    @app.post("/payments", status_code=HTTPStatus.CREATED)
    async def pay(payment: Payment, key: Annotated[str | None, Depends(idempotency_key)]) -> JSONResponse:
        metadata = [("x-tenant-id", TENANT)]
        if key is not None:  # without a key, the service refuses the call
            metadata.append((keys.METADATA_KEY, key))
        amount = pb.Money(minor_units=payment.minor_units, currency=payment.currency)
        charge = pb.ChargeRequest(order_id=payment.order_id, amount=amount, card=payment.card)
        call = stub.Charge(charge, timeout=deadline, metadata=tuple(metadata))
        try:
            paid = (await call).payment
        except grpc.aio.AioRpcError as error:
            raise problem(error) from None
        answer = {
            "payment_id": paid.id,
            "order_id": paid.order_id,
            "minor_units": paid.amount.minor_units,
            "currency": paid.amount.currency,
        }
        return JSONResponse(answer, HTTPStatus.CREATED, answer_headers(dict(await call.trailing_metadata())))

    @app.get("/orders/{order_id}/books")
    async def books(order_id: str) -> dict[str, int]:
        try:
            got = await ledger.GetBooks(books_pb2.GetBooksRequest(order_id=order_id), timeout=deadline)
        except grpc.aio.AioRpcError as error:
            raise problem(error) from None
        return {"runs": got.runs, "charges": got.charges, "minor_units": got.minor_units}

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app
