"""gRPC interceptors that make calls safe to send twice.

``idem_grpc.aio`` has the same names for ``grpc.aio``.
"""

from idem_grpc import keys, updates
from idem_grpc._client.answers import reason
from idem_grpc._client.keying import KeySource
from idem_grpc._client.retry import Budget, Retry
from idem_grpc._client.service_config import service_config
from idem_grpc._client.sync import client_interceptors, replayed
from idem_grpc._core.checks import StatusCode
from idem_grpc._core.durations import Duration
from idem_grpc._core.execution import Execution, current
from idem_grpc._core.keys import Outgoing
from idem_grpc._core.methods import proto_path
from idem_grpc._core.outcome import Code
from idem_grpc._core.policy import KeyRule, OnCancel, OnOutage, Policy
from idem_grpc._core.problem import Reason
from idem_grpc._core.record import OnUnclear
from idem_grpc._core.reporter import Replied, Reporter
from idem_grpc._core.scope import PEER, SHARED, CallInfo, Scope, metadata
from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc._server.replies import status_of
from idem_grpc._server.sync import ServerInterceptor
from idem_grpc._tokens.issuing import Operation
from idem_grpc._tokens.keys import TokenKeys
from idem_grpc._tokens.service import TokenServicer, add_token_service
from idem_grpc.stores import open_store
from idem_grpc.stores._protocol import Store, StoreError, StoreUnavailable

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
