"""``idem_grpc`` for ``grpc.aio``: the same names where I/O differs, the very same elsewhere."""

from idem_grpc import (
    PEER,
    SHARED,
    CallInfo,
    Execution,
    KeyRule,
    OnCancel,
    OnOutage,
    OnUnclear,
    Policy,
    Reason,
    Replied,
    Reporter,
    StoreError,
    StoreUnavailable,
    current,
    keys,
    metadata,
)
from idem_grpc.server.aio import ServerInterceptor
from idem_grpc.stores import open_async_store as open_store
from idem_grpc.stores.protocol import AsyncStore as Store

__all__ = [
    "PEER",
    "SHARED",
    "CallInfo",
    "Execution",
    "KeyRule",
    "OnCancel",
    "OnOutage",
    "OnUnclear",
    "Policy",
    "Reason",
    "Replied",
    "Reporter",
    "ServerInterceptor",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "current",
    "keys",
    "metadata",
    "open_store",
]
