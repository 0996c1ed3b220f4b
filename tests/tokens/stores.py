"""A store that counts its batches and its records."""

from collections.abc import Sequence

from idem_grpc._core.swap import Held, Swap, Swapped
from idem_grpc.stores._protocol import AsyncStore, Store
from tests.server.stores import AsyncWatched, Watched


class Counted(Watched):
    """Records the size of every batch that goes to ``inner``."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.batches: list[int] = []

    def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self.batches.append(len(swaps))
        for swap in swaps:
            self.note(swap)
        return self.inner.swap_many(swaps)

    def living(self) -> int:
        """How many of the records that were written still exist."""
        keys = {swap.key for swap in self.swaps}
        return sum(self.inner.read(key).value is not None for key in keys)


class AsyncCounted(AsyncWatched):
    """The same for asyncio."""

    def __init__(self, inner: AsyncStore) -> None:
        super().__init__(inner)
        self.batches: list[int] = []

    async def swap_many(self, swaps: Sequence[Swap]) -> list[Swapped | Held]:
        self.batches.append(len(swaps))
        return await self.inner.swap_many(swaps)


def counted(store: Store | AsyncStore) -> Counted | AsyncCounted:
    return Counted(store) if isinstance(store, Store) else AsyncCounted(store)
