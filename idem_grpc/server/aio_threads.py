"""The threads on which an asyncio server's plain functions run."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

T = TypeVar("T")

MAX_THREADS = 128
"""The most threads of an interceptor that is given no executor. They are made as they are needed."""


class Threads:
    """Runs functions on ``executor``, or on threads of its own.

    Never on those of the event loop's default executor: name lookups run there, without which
    a store cannot be reached.
    """

    def __init__(self, executor: Executor | None) -> None:
        self._given = executor
        self._own: ThreadPoolExecutor | None = None

    def run(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Run a function in a copy of this context. Raises RuntimeError if the executor is shut down.

        The future is no task: the end of the event loop does not cancel it.
        """
        executor = self._given
        if executor is None:
            executor = self._own = self._own or ThreadPoolExecutor(MAX_THREADS, "idem_grpc handler")
        return asyncio.get_running_loop().run_in_executor(executor, partial(copy_context().run, function))

    def close(self) -> None:
        """End threads of its own that are idle. The next function to run makes new ones."""
        own, self._own = self._own, None
        if own is not None:
            own.shutdown(wait=False)
