"""Makes gRPC calls safe to send twice. ``idem_grpc.aio`` is the same for ``grpc.aio``."""

from idem_grpc import keys, updates
from idem_grpc.client.answers import reason
from idem_grpc.client.config import service_config
from idem_grpc.client.keying import KeySource
from idem_grpc.client.retry import Budget, Retry
from idem_grpc.client.sync import client_interceptors, replayed
from idem_grpc.execution import Execution, current
from idem_grpc.outcome import Code
from idem_grpc.policy import Duration, KeyRule, OnCancel, OnOutage, Policy, StatusCode
from idem_grpc.problem import Reason
from idem_grpc.protofiles import proto_path
from idem_grpc.record import OnUnclear
from idem_grpc.reporter import Replied, Reporter
from idem_grpc.scope import PEER, SHARED, CallInfo, Scope, metadata
from idem_grpc.server.statuses import status_of
from idem_grpc.server.sync import ServerInterceptor
from idem_grpc.sources import Outgoing
from idem_grpc.stores import open_store
from idem_grpc.stores.protocol import Store, StoreError, StoreUnavailable
from idem_grpc.swap import Held, Swap, Swapped
from idem_grpc.tokens.issuing import Operation
from idem_grpc.tokens.keys import TokenKeys
from idem_grpc.tokens.service import TokenServicer, add_token_service

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
