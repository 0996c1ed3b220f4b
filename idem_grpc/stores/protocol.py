"""What a store must be able to do: compare-and-swap, and little else."""

import os
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from idem_grpc.swap import Held, Swapped


class StoreError(Exception):
    """The store was set up or used wrongly; the message says how to mend it."""


class StoreUnavailable(StoreError):
    """The store did not answer: whether the swap took effect is not known."""


class Store(ABC):
    """A key-value store with compare-and-swap, for threads.

    ``namespace`` keeps apart the keys of services that share a server. An
    implementation may be called by many threads at once.
    """

    namespace: str

    @abstractmethod
    def swap(
        self,
        key: bytes,
        expected: bytes | None,
        new: bytes | None,
        ttl: float,
        max_left: float | None = None,
    ) -> Swapped | Held:
        """Write ``new`` if the key holds ``expected``, in one atomic step.

        It takes effect when the key holds ``expected`` (None: nothing) and, with
        ``max_left``, has no more than so many seconds left to live; *or* when it
        already holds ``new`` (then its life is set to ``ttl`` again). Otherwise it
        changes nothing and returns what is there. ``new=None`` deletes. Values are
        never empty. Durations are seconds, kept to the millisecond at least, and
        ``ttl_left`` is measured on the store's own clock before the write.

        Raises StoreUnavailable when the store did not answer, after which the
        same swap may be sent again; StoreError when the store is misused.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise StoreError unless the store can be reached and is set up safely."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the store holds open. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStore(ABC):
    """The same for asyncio. ``blocking`` is the same data over a connection of its own.

    Leases are renewed through ``blocking`` from a thread, so that a handler that
    blocks the event loop does not lose its lease. ``aclose`` closes it too.
    """

    namespace: str
    blocking: Store

    @abstractmethod
    async def swap(
        self,
        key: bytes,
        expected: bytes | None,
        new: bytes | None,
        ttl: float,
        max_left: float | None = None,
    ) -> Swapped | Held:
        """As Store.swap."""

    @abstractmethod
    async def check(self) -> None:
        """As Store.check."""

    @abstractmethod
    async def aclose(self) -> None:
        """As Store.close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class OpeningProcess:
    """The process that opened a store; no other may use it.

    Connections, locks and an in-memory store do not survive a fork in one piece.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()

    def require(self) -> None:
        """Raise StoreError in any other process."""
        if os.getpid() != self._pid:
            raise StoreError(
                f"this store was opened in process {self._pid}, before a fork, and is used in process"
                f" {os.getpid()}: call open_store in each worker process, after the fork"
            )
