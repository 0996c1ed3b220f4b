"""Compare-and-swap: the one primitive that everything here is built on."""

from dataclasses import dataclass


@dataclass(slots=True, unsafe_hash=True)
class Swap:
    """A request to write ``new`` under ``key`` if ``expected`` is there.

    ``None`` stands for nothing: as ``expected``, the key must be absent; as
    ``new``, the key is deleted. ``ttl`` is the life of what is written, in
    seconds. With ``max_left`` the swap succeeds only if what is there has no
    more than so many seconds left to live.
    """

    key: bytes
    expected: bytes | None
    new: bytes | None
    ttl: float
    max_left: float | None = None


def renewal(swap: Swap) -> Swap:
    """The swap of what ``swap`` writes for itself: renews it if it is there, and otherwise only looks."""
    return Swap(swap.key, swap.new, swap.new, swap.ttl)


@dataclass(slots=True, unsafe_hash=True)
class Swapped:
    """The key holds ``new``. ``ttl_left``: seconds left before the write, 0 if absent."""

    ttl_left: float


@dataclass(slots=True, unsafe_hash=True)
class Held:
    """Nothing was changed, and this is what the key holds.

    ``ttl_left``: seconds left to live; 0 if absent, infinity if it never expires.
    """

    value: bytes | None
    ttl_left: float


def may_swap(swap: Swap, value: bytes | None, ttl_left: float) -> bool:
    """Whether ``swap`` takes effect on a key that holds ``value`` for so long.

    A key that already holds ``new`` counts as swapped, so that a swap whose
    reply was lost can be sent again; ``swap.lua`` says the same for Redis.
    """
    if value == swap.new:
        return True
    return value == swap.expected and (swap.max_left is None or ttl_left <= swap.max_left)
