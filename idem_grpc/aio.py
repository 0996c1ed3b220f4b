"""The names of ``idem_grpc`` for ``grpc.aio``.

Names that do I/O are asyncio versions; all others are the same objects as in ``idem_grpc``.
"""

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
    Operation,
    Outgoing,
    Policy,
    Reason,
    Replied,
    Reporter,
    Scope,
    StatusCode,
    StoreError,
    StoreUnavailable,
    Swap,
    Swapped,
    current,
    keys,
    metadata,
    proto_path,
    status_of,
    updates,
)
from idem_grpc._client.aio import client_interceptors, replayed
from idem_grpc._client.answers import reason
from idem_grpc._client.retry import Budget, Retry
from idem_grpc._client.service_config import service_config
from idem_grpc._server.aio import ServerInterceptor
from idem_grpc._tokens.keys import AsyncTokenKeys as TokenKeys
from idem_grpc._tokens.service import AsyncTokenServicer as TokenServicer
from idem_grpc._tokens.service import add_async_token_service as add_token_service
from idem_grpc.stores import open_async_store as open_store
from idem_grpc.stores._protocol import AsyncStore as Store

__all__ = [
    "PEER",
    "SHARED",
    "Budget",
    "CallInfo",
    "Code",
    "Duration",
    "Execution",
    "Held",
    "KeyRule",
    "KeySource",
    "OnCancel",
    "OnOutage",
    "OnUnclear",
    "Operation",
    "Outgoing",
    "Policy",
    "Reason",
    "Replied",
    "Reporter",
    "Retry",
    "Scope",
    "ServerInterceptor",
    "StatusCode",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Swap",
    "Swapped",
    "TokenKeys",
    "TokenServicer",
    "add_token_service",
    "client_interceptors",
    "current",
    "keys",
    "metadata",
    "open_store",
    "proto_path",
    "reason",
    "replayed",
    "service_config",
    "status_of",
    "updates",
]
