"""How many new keys or tokens a caller gets in a time, counted in the store by all servers together."""

import secrets
from collections.abc import Generator

from google.protobuf.message import DecodeError
from idem_grpc_pb.v1 import token_pb2

from idem_grpc._core.steps import Outage
from idem_grpc._core.swap import Held, Swap, Swapped

Rate = tuple[int, float]
"""So many in so many seconds."""

_SHORTEST_TTL = 0.001
_MOST_COUNTED = 2**32 - 1


class NotCounted(Exception):
    """The store did not answer, or holds what is no count."""


def counted(key: bytes, number: int, rate: Rate) -> Generator[Swap, Swapped | Held | Outage, float]:
    """Add ``number`` to what is counted under ``key`` in the present window, which ends with the record.

    Returns 0 once it is added, or the seconds until the window ends if that would exceed the rate.
    Raises NotCounted.
    """
    most, period = min(rate[0], _MOST_COUNTED), rate[1]
    expected, had, left = None, 0, period
    while had + number <= most:
        now = token_pb2.IssueCount(count=had + number, nonce=secrets.token_bytes(8)).SerializeToString()
        seen = yield Swap(key, expected, now, max(left, _SHORTEST_TTL))
        if isinstance(seen, Swapped):
            return 0.0
        if isinstance(seen, Outage):
            raise NotCounted("the store did not answer")
        expected, had, left = seen.value, 0, period
        if expected is not None:
            try:
                had = token_pb2.IssueCount.FromString(expected).count
            except DecodeError:
                raise NotCounted(f"the store's key {key!r} holds what is no count") from None
            left = min(seen.ttl_left, period)
    return max(left, _SHORTEST_TTL)
