"""Counts of new keys or tokens per caller and time window, kept in the store for all servers together."""

import secrets
from collections.abc import Generator

from google.protobuf.message import DecodeError
from idem_grpc_pb.v1 import token_pb2

from idem_grpc._core.steps import Outage
from idem_grpc._core.swap import Held, Swap, Swapped

Rate = tuple[int, float]
"""(number, seconds): at most so many in this time."""

_SHORTEST_TTL = 0.001
_MOST_COUNTED = 2**32 - 1


class NotCounted(Exception):
    """The store did not answer, or what it holds is not a count."""


def counted(key: bytes, number: int, rate: Rate) -> Generator[Swap, Swapped | Held | Outage, float]:
    """Add ``number`` to the count under ``key`` in the current window, which ends when the record expires.

    Returns 0 if it was added, or the seconds until the window ends if that would exceed the rate.
    Raises NotCounted.
    """
    most, period = min(rate[0], _MOST_COUNTED), rate[1]
    expected, count, left = None, 0, period
    while count + number <= most:
        new = token_pb2.IssueCount(count=count + number, nonce=secrets.token_bytes(8)).SerializeToString()
        seen = yield Swap(key, expected, new, max(left, _SHORTEST_TTL))
        if isinstance(seen, Swapped):
            return 0.0
        if isinstance(seen, Outage):
            raise NotCounted("the store did not answer")
        expected, count, left = seen.value, 0, period
        if expected is not None:
            try:
                count = token_pb2.IssueCount.FromString(expected).count
            except DecodeError:
                raise NotCounted(f"the store's key {key!r} does not hold a count") from None
            left = min(seen.ttl_left, period)
    return max(left, _SHORTEST_TTL)
