"""Real stores that record their swaps."""

import threading

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._protocol import AsyncStore, Store


class Watched(Store):
    """Records every swap that goes to ``inner``."""

    def __init__(self, inner: Store) -> None:
        self.namespace = inner.namespace
        self.inner = inner
        self._lock = threading.Lock()
        self.swaps: list[Swap] = []

    def note(self, swap: Swap) -> None:
        with self._lock:
            self.swaps.append(swap)

    def swap(self, swap: Swap) -> Swapped | Held:
        self.note(swap)
        return self.inner.swap(swap)

    def check(self) -> None:
        self.inner.check()

    def close(self) -> None:
        self.inner.close()


class AsyncWatched(AsyncStore):
    """The same for asyncio. Swaps of the keeper's thread are recorded too."""

    def __init__(self, inner: AsyncStore) -> None:
        self.namespace = inner.namespace
        self.inner = inner
        self.blocking: Watched = Watched(inner.blocking)

    @property
    def swaps(self) -> list[Swap]:
        return self.blocking.swaps

    async def swap(self, swap: Swap) -> Swapped | Held:
        self.blocking.note(swap)
        return await self.inner.swap(swap)

    async def check(self) -> None:
        await self.inner.check()

    async def aclose(self) -> None:
        await self.inner.aclose()


def watched(store: Store | AsyncStore) -> Watched | AsyncWatched:
    return Watched(store) if isinstance(store, Store) else AsyncWatched(store)
