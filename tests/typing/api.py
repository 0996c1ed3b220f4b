"""The public surface as users write it, for ``make type`` to check: nothing here is run.

A line that must be an error says which one; mypy complains if it is none.
"""

from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Never, assert_type

import grpc
from examples_pb.checkout.v1 import payments_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.status_pb2 import Status

import idem_grpc
import idem_grpc.aio
from idem_grpc import (
    PEER,
    SHARED,
    CallInfo,
    Code,
    Duration,
    Execution,
    Held,
    KeyRule,
    KeySource,
    OnCancel,
    OnOutage,
    OnUnclear,
    Outgoing,
    Policy,
    Reason,
    Replied,
    Reporter,
    Scope,
    ServerInterceptor,
    StatusCode,
    Store,
    StoreError,
    StoreUnavailable,
    Swap,
    Swapped,
    current,
    keys,
    metadata,
    open_store,
    status_of,
    updates,
)
from idem_grpc.testing import AsyncStoreContract, StoreContract

# Policies: all fields, each in every form that it may have.

Policy()
Policy(
    operation="payments.charge",
    key=KeyRule.REQUIRED,
    retention=timedelta(hours=24),
    lease=30,
    wait=2.5,
    max_run=timedelta(minutes=5),
    on_unclear=OnUnclear.FAIL,
    on_outage=OnOutage.REFUSE,
    on_cancel=OnCancel.CANCEL,
    replay_errors=[grpc.StatusCode.NOT_FOUND],
    ignore=["client_version", "trace.id"],
    max_response_bytes=1024,
    claim_rate=(600, timedelta(minutes=15)),
)
Policy(replay_errors={grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED}, ignore=())
Policy(replay_errors=("NOT_FOUND", "ALREADY_EXISTS"))

Policy(KeyRule.REQUIRED)  # type: ignore[call-arg, arg-type]  # fields are given by name
Policy(key="required")  # type: ignore[arg-type]  # the rule is an enum
Policy(key=True)  # type: ignore[arg-type]  # the rule is an enum
Policy(retention="24h")  # type: ignore[arg-type]  # durations are no strings
Policy(replay_errors=grpc.StatusCode.NOT_FOUND)  # type: ignore[arg-type]  # it takes several
Policy(retries=3)  # type: ignore[call-arg]  # there is no such field
Policy().key = KeyRule.TOKEN  # type: ignore[misc]  # a policy is frozen


# Scopes.


def tenant(call: CallInfo) -> str:
    assert_type(call.method, str)
    assert_type(call.peer_identities, tuple[bytes, ...])
    assert_type(call.peer_identity_key, str | None)
    return f"{call.method}:{dict(call.metadata)['x-tenant-id']!r}"


def nobody(call: CallInfo) -> None: ...


# The interceptor for threads.

store = open_store("redis://localhost:6379/0", namespace="payments")
assert_type(store, Store)
assert_type(store.check(), None)
with open_store("memory:") as entered:
    assert_type(entered, Store)

SERVICE: ServiceDescriptor = payments_pb2.DESCRIPTOR.services_by_name["PaymentService"]
POLICIES: Mapping[str, Policy] = {"/examples.checkout.v1.PaymentService/*": Policy(key=KeyRule.REQUIRED)}


class Metrics(Reporter):
    def replied(self, event: Replied) -> None:
        assert_type(event.method, str)
        assert_type(event.reason, Reason | None)
        assert_type(event.replayed, bool)
        assert_type(event.code.name, str)
        assert_type(event.run, str)
        assert_type(event.protected, bool)

    def lease_lost(self, method: str, run: str) -> None:
        assert_type((method, run), tuple[str, str])


interceptor = ServerInterceptor(
    store,
    scope=metadata("x-tenant-id"),
    services=["examples.checkout.v1.PaymentService", SERVICE],
    policies=POLICIES,
    default=Policy(lease=10),
    max_waiters=8,
    max_detached=16,
    reporter=Metrics(),
)
ServerInterceptor(store, scope=SHARED)
ServerInterceptor(store, scope=PEER)
ServerInterceptor(store, scope=tenant)
ServerInterceptor(store, scope=lambda call: call.method)

ServerInterceptor(store)  # type: ignore[call-arg]  # a scope has no default
ServerInterceptor(store, SHARED)  # type: ignore[call-arg]  # settings are given by name
ServerInterceptor(store, scope="x-tenant-id")  # type: ignore[arg-type]  # a scope is a function
ServerInterceptor(store, scope=nobody)  # type: ignore[arg-type]  # a scope says something
ServerInterceptor(store, scope=metadata)  # type: ignore[arg-type]  # it was not given a name
ServerInterceptor("memory:", scope=SHARED)  # type: ignore[arg-type]  # a URL is no store
ServerInterceptor(store, scope=SHARED, policies=[Policy()])  # type: ignore[arg-type]  # policies have names

server = grpc.server(ThreadPoolExecutor(8), interceptors=[interceptor])
assert_type(interceptor.drain(), int)
assert_type(interceptor.drain(10), int)
assert_type(interceptor.drain(timedelta(seconds=10)), int)
interceptor.drain("10s")  # type: ignore[arg-type]  # durations are no strings


# The interceptor for asyncio: the same names, and stores that do not mix.


async def serve() -> None:
    async with idem_grpc.aio.open_store("sqlite:///idem.db", namespace="payments") as aio_store:
        assert_type(aio_store, idem_grpc.aio.Store)
        await aio_store.check()
        aio_interceptor = idem_grpc.aio.ServerInterceptor(
            aio_store,
            scope=idem_grpc.aio.metadata("x-tenant-id"),
            policies=POLICIES,
            default=idem_grpc.aio.Policy(on_unclear=idem_grpc.aio.OnUnclear.FAIL),
            executor=(pool := ThreadPoolExecutor(8)),
            reporter=Metrics(),
        )
        grpc.aio.server(migration_thread_pool=pool, interceptors=[aio_interceptor])
        assert_type(await aio_interceptor.drain(timedelta(seconds=10)), int)

        idem_grpc.aio.ServerInterceptor(aio_store)  # type: ignore[call-arg]  # a scope has no default
        idem_grpc.aio.ServerInterceptor(store, scope=SHARED)  # type: ignore[arg-type]  # a store for threads
        idem_grpc.aio.ServerInterceptor(
            aio_store,
            scope=SHARED,
            executor=8,  # type: ignore[arg-type]  # a number is no pool
        )
        ServerInterceptor(aio_store, scope=SHARED)  # type: ignore[arg-type]  # a store for asyncio
        aio_interceptor.drain(10) + 1  # type: ignore[operator]  # it was not awaited
        aio_store.close()  # type: ignore[attr-defined]  # it is called aclose
        await aio_store.aclose()


# In a handler.


def charge(request: payments_pb2.ChargeRequest, context: grpc.ServicerContext) -> payments_pb2.ChargeResponse:
    run = current()
    assert_type(run, Execution | None)
    current().keep()  # type: ignore[union-attr]  # there is none without a key
    if run is not None:
        assert_type(run.key, str)
        assert_type(run.operation, str)
        assert_type(run.scope, str)
        assert_type(run.attempt, int)
        assert_type(run.lease_lost, bool)
        assert_type(run.derive("payment"), str)
        assert_type(run.keep(), None)
        assert_type(run.release(), None)
        run.derive()  # type: ignore[call-arg]  # an id has a name
        run.lease_lost = True  # type: ignore[misc]  # it is read-only
    return payments_pb2.ChargeResponse()


# Keys.

assert_type(keys.structured("order", "uid123", 456), str)
assert_type(keys.windowed("task", "uid123", window=timedelta(hours=1)), str)
assert_type(keys.windowed("task", window=timedelta(hours=1), at=datetime.now(UTC)), str)
assert_type(keys.windowed("task", window=3600), str)
assert_type(keys.unique(), str)


def source(outgoing: Outgoing) -> str | None:
    assert_type(outgoing.method, str)
    return None if outgoing.request is None else keys.unique()


def its_own(outgoing: keys.Outgoing) -> str:
    return keys.structured("call", outgoing.method)


SOURCES: Mapping[str, KeySource] = {"/pkg.Service/*": source, "/pkg.Service/Method": its_own}
idem_grpc.client_interceptors(keys=SOURCES)
idem_grpc.aio.client_interceptors(keys=SOURCES)
aio_source: idem_grpc.aio.KeySource = source
assert_type(idem_grpc.proto_path(), str)
assert_type(idem_grpc.aio.proto_path(), str)
with keys.using(keys.unique()):
    pass

keys.structured("order", None)  # type: ignore[arg-type]  # a part says something
keys.windowed("task")  # type: ignore[call-arg]  # a window has no default
keys.windowed("task", window="1h")  # type: ignore[arg-type]  # a window is a duration


# Updates.

stored = payments_pb2.Payment(id="1")
update = updates.apply(stored, payments_pb2.Payment(order_id="2"), FieldMask(paths=["order_id"]))
assert_type(update, updates.Update[payments_pb2.Payment])
assert_type(update.message, payments_pb2.Payment)
assert_type(bool(update.changed), bool)
assert_type(update.changed.paths, list[str])
assert_type(update.changed.mask, FieldMask)
assert_type(updates.changed(stored, update.message, ignore=["id"]), FieldMask)
updates.apply(stored, stored, touch=None, etag="version", now=datetime.now(UTC))

updates.apply(stored, stored, "*")  # type: ignore[arg-type]  # a mask is a FieldMask
updates.apply(stored, stored, None, None)  # type: ignore[call-arg]  # settings are given by name


def save(
    context: grpc.ServicerContext, aio_context: grpc.aio.ServicerContext[Any, Any]
) -> Coroutine[object, object, Never]:
    try:
        updates.apply(stored, stored)
    except updates.UpdateRefused as refused:
        assert_type(refused.code.name, str)
        assert_type(refused.reason, Reason)
        assert_type(status_of(refused), grpc.Status)
        context.abort_with_status(refused)  # type: ignore[arg-type]  # status_of makes it one
    return aio_context.abort_with_status(status_of(updates.UpdateRefused(Reason.MASK_INVALID, Status())))


# Reasons and errors.


def is_worth_a_retry(reason: Reason) -> bool:
    assert_type(reason.code.name, str)
    return reason.retryable and reason is not Reason.IN_PROGRESS


def reached() -> bool:
    try:
        store.check()
    except StoreUnavailable as error:
        assert_type(error.answered, bool)
        return False
    except StoreError as error:
        raise SystemExit(str(error)) from error
    return True


# Stores of one's own.


def swapped(mine: Store) -> float:
    found = mine.swap(Swap(b"key", None, b"value", ttl=10))
    assert_type(found, Swapped | Held)
    if isinstance(found, idem_grpc.aio.Held):
        assert_type(found.value, bytes | None)
    assert_type(mine.read(b"key"), Held)
    return found.ttl_left


class MyStore(Store):
    def swap(self, swap: Swap) -> Swapped | Held:
        return Swapped(0.0) if swap.new is None else Held(None, swap.ttl)

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        return super().swap_many([swap for swap in swaps if swap.ttl > 0])

    def check(self) -> None: ...

    def close(self) -> None: ...


class MyAsyncStore(idem_grpc.aio.Store):
    def __init__(self, blocking: Store) -> None:
        self.blocking = blocking

    async def swap(self, swap: Swap) -> Swapped | Held:
        return self.blocking.swap(swap)

    async def check(self) -> None: ...

    async def aclose(self) -> None: ...


assert_type(MyStore().namespace, str)
assert_type(MyAsyncStore(MyStore()).blocking, Store)
by_tenant: Scope = tenant
minute: Duration = timedelta(minutes=1)
refused: StatusCode = Code.ABORTED
Policy(replay_errors=[Code.ABORTED, refused], retention=minute)


async def swapped_on_aio(mine: idem_grpc.aio.Store) -> None:
    assert_type(await mine.swap(Swap(b"key", None, b"value", 10)), idem_grpc.aio.Swapped | idem_grpc.aio.Held)


class TestMyStore(StoreContract):
    def make_store(self) -> Store:
        return open_store("memory:")


class TestMyAsyncStore(AsyncStoreContract):
    def make_store(self) -> idem_grpc.aio.Store:
        return idem_grpc.aio.open_store("memory:")


class TestOfTheOtherKind(StoreContract):
    def make_store(self) -> idem_grpc.aio.Store:  # type: ignore[override]  # AsyncStoreContract is for these
        return idem_grpc.aio.open_store("memory:")
