"""Where the latest attempt at a call stands, and whether it goes on from the one before."""

from enum import Enum
from typing import Any

import grpc

from idem_grpc._client.common import Handed

NOTHING = object()


class State(Enum):
    """Of the latest attempt.

    CURRENT: what it answers is the call's answer. BEHIND: it answers again what was handed
    over before. SKIPPING: somebody is reading that. FAILED: another one will be made.
    OVER: it was the last.
    """

    CURRENT = "current"
    BEHIND = "behind"
    SKIPPING = "skipping"
    FAILED = "failed"
    OVER = "over"


def is_resumed(call: Any, handed: Handed) -> bool | None:
    """Read what was handed over before again, and tell if ``call`` answers the same; None if it fails."""
    try:
        next(call)  # initial metadata comes with it
        to_skip = handed.to_skip(call.initial_metadata())
        if to_skip is None:
            return False
        for _ in range(to_skip - 1):
            next(call)
    except StopIteration:
        return False
    except grpc.RpcError:
        return None
    return True
