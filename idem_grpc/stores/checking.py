"""What check() asks of every store: a few swaps on a key of its own, whose answers are known beforehand."""

from collections.abc import Generator
from uuid import uuid4

from idem_grpc.stores.protocol import AsyncStore, Store, StoreError
from idem_grpc.swap import Held, Swap, Swapped

_TTL = 60.0  # seconds; far longer than the swaps take, and what is left behind expires
_MOST = _TTL + 1  # seconds that can be left of it; a store may round, but not by a second

Probes = Generator[Swap, Swapped | Held, None]


def check_swaps(store: Store) -> None:
    """Raise StoreError unless ``store`` answers some swaps as its contract says."""
    probes = _probes(store)
    try:
        sent = next(probes)
        while True:
            sent = probes.send(store.swap(sent))
    except StopIteration:
        pass


async def check_swaps_async(store: AsyncStore) -> None:
    """As check_swaps, for an AsyncStore."""
    probes = _probes(store)
    try:
        sent = next(probes)
        while True:
            sent = probes.send(await store.swap(sent))
    except StopIteration:
        pass


def _probes(store: Store | AsyncStore) -> Probes:
    def require(answer: bool, otherwise: str) -> None:
        if not answer:
            raise StoreError(
                f"{store!r} does not keep the contract of a store: {otherwise}. It must be one place that all"
                " servers share, such as one Redis server and not several behind a proxy; a store of your own"
                " must pass idem_grpc.testing.StoreContract"
            )

    key = b"check:" + uuid4().bytes
    mine, other, third = (b"%d %s" % (number, uuid4().bytes) for number in range(3))
    seen = yield Swap(key, None, mine, _TTL)
    require(seen == Swapped(0.0), "it did not write a new key, or found one where there was none")
    seen = yield Swap(key, other, third, _TTL)
    is_mine = isinstance(seen, Held) and seen.value == mine
    require(is_mine, "it did not refuse a swap of a value that the key does not hold, or lost what it held")
    require(0 < seen.ttl_left <= _MOST, "what it writes does not expire after the time asked for")
    seen = yield Swap(key, None, other, _TTL)
    require(isinstance(seen, Held), "it gave one key to two owners")
    seen = yield Swap(key, None, mine, _TTL)
    require(isinstance(seen, Swapped), "it refused a swap that was sent again")
    seen = yield Swap(key, mine, mine, 2 * _TTL)
    require(isinstance(seen, Swapped) and 0 < seen.ttl_left <= _MOST, "it did not renew what a key holds")
    seen = yield Swap(key, mine, other, _TTL, _MOST)
    is_kept = isinstance(seen, Held) and seen.value == mine and _MOST < seen.ttl_left <= _TTL + _MOST
    require(is_kept, "it let a renewed key be taken over, or its renewal did not last")
    seen = yield Swap(key, mine, other, _TTL)
    require(isinstance(seen, Swapped) and seen.ttl_left > _MOST, "it did not replace what a key holds")
    seen = yield Swap(key, other, None, _TTL)
    require(isinstance(seen, Swapped), "it did not delete a key")
    seen = yield Swap(key, other, third, _TTL)
    require(seen == Held(None, 0.0), "a key that was deleted is still there")
