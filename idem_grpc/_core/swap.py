"""Compare-and-swap: the one primitive of stores that the library is built on."""

from dataclasses import dataclass


@dataclass(slots=True, unsafe_hash=True)
class Swap:
    """A request to write ``new`` under ``key`` if the key holds ``expected``.

    As ``expected``, None means that the key must be absent; as ``new``, it deletes the key. ``ttl`` is the
    time to live of the new value, in seconds. With ``max_left`` the swap succeeds only if the present value
    has at most that many seconds left to live.
    """

    key: bytes
    expected: bytes | None
    new: bytes | None
    ttl: float
    max_left: float | None = None


def renewal(swap: Swap) -> Swap:
    """Return the swap of what ``swap`` writes for itself.

    It renews the value if the key still holds it, and only reads the key if not.
    """
    return Swap(swap.key, swap.new, swap.new, swap.ttl)


@dataclass(slots=True, unsafe_hash=True)
class Swapped:
    """The key holds ``new``. ``ttl_left``: seconds that the value before had left, 0 if it was absent."""

    ttl_left: float


@dataclass(slots=True, unsafe_hash=True)
class Held:
    """Nothing was changed; the key holds ``value``.

    ``ttl_left``: seconds left to live; 0 if absent, infinity if it never expires.
    """

    value: bytes | None
    ttl_left: float


def may_swap(swap: Swap, value: bytes | None, ttl_left: float) -> bool:
    """Return whether ``swap`` takes effect on a key that holds ``value`` for ``ttl_left`` more seconds.

    A key that already holds ``new`` counts as swapped, so that a swap whose reply was lost can be sent
    again. ``swap.lua`` does the same in Redis.
    """
    if value == swap.new:
        return True
    return value == swap.expected and (swap.max_left is None or ttl_left <= swap.max_left)
