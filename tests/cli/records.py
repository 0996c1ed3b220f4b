"""Records in every state, as servers leave them."""

from dataclasses import replace

from idem_grpc._core.digest import store_key, token_key
from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.record import Binding, OnUnclear, Record, State
from idem_grpc._core.swap import Swap

OPERATION, SCOPE = "/pay.v1.Payments/Charge", "tenant-1"
KEY = ("--operation", OPERATION, "--scope", SCOPE)
LEASE, TTL = 30.0, 3600.0

RUNNING = Record(
    state=State.RUNNING,
    attempt=2,
    owner=b"8 bytes.",
    fingerprint=Fingerprint(b"request"),
    lease=LEASE,
    ttl=TTL,
    on_unclear=OnUnclear.FAIL,
)
UNKNOWN = Record(state=State.UNKNOWN, attempt=2, owner=RUNNING.owner, fingerprint=RUNNING.fingerprint)
OPEN = replace(UNKNOWN, state=State.OPEN)
DONE = replace(
    UNKNOWN,
    state=State.DONE,
    outcome=Outcome(Code.NOT_FOUND, "a secret", (), (("x-secret", "one"), ("x-bin", b"\0")), (b"secret",)),
)
TOKEN = Record(state=State.OPEN, binding=Binding.of("pay", SCOPE))


def write(store, key, record, *, ttl=TTL):
    """Put a record under a client key, and return its name in the store."""
    name = store_key(store.namespace, OPERATION, SCOPE.encode(), key)
    return put(store, name, record.to_bytes(), ttl)


def write_token(store, token, record, *, ttl=TTL):
    """Put a record under a token, and return its name in the store."""
    return put(store, token_key(store.namespace, token), record.to_bytes(), ttl)


def put(store, name, value, ttl=TTL):
    store.swap(Swap(name, None, value, ttl))
    return name.decode()
