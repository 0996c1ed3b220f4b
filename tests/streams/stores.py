"""Real stores some of whose swaps wait or fail."""

from collections.abc import Callable

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._protocol import AsyncStore, Store
from tests.server.ledger import Gate
from tests.server.stores import AsyncWatched, Watched

Bar = Callable[[Swap], None]


class _Barred(Watched):
    def __init__(self, inner: Store, bar: Bar) -> None:
        super().__init__(inner)
        self._bar = bar

    def note(self, swap: Swap) -> None:
        super().note(swap)
        self._bar(swap)


class _AsyncBarred(AsyncWatched):
    def __init__(self, inner: AsyncStore, bar: Bar) -> None:
        super().__init__(inner)
        self.blocking = _Barred(inner.blocking, bar)


def barred(store: Store | AsyncStore, bar: Bar) -> Watched | AsyncWatched:
    """A store that calls ``bar`` before every swap, which may raise StoreUnavailable."""
    return _Barred(store, bar) if isinstance(store, Store) else _AsyncBarred(store, bar)


class _AsyncHeld(AsyncWatched):
    def __init__(self, inner: AsyncStore, gate: Gate) -> None:
        super().__init__(inner)
        self._gate = gate

    async def swap(self, swap: Swap) -> Swapped | Held:
        await self._gate.cross_async()
        return await super().swap(swap)


def held(store: Store | AsyncStore, gate: Gate) -> Watched | AsyncWatched:
    """A store whose swaps wait at a gate."""
    return _Barred(store, lambda _: gate.cross()) if isinstance(store, Store) else _AsyncHeld(store, gate)
