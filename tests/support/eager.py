"""Tasks that start at once, as those of ``asyncio.eager_task_factory`` (Python 3.12 and later) do.

With EAGER_TASKS in the environment, every event loop of the tests has such tasks.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def _started_at_once(loop: Any, coroutine: Any, **settings: Any) -> "asyncio.Task[Any]":
    """A task factory for Python 3.11: the first step runs before ``create_task`` returns."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **settings)
    if not loop.is_running():
        return task
    first_step = loop._ready.pop()  # the constructor has just scheduled it, and nothing after it
    creator = asyncio.current_task(loop)
    if creator is not None:
        asyncio.tasks._leave_task(loop, creator)
    try:
        first_step._run()
    finally:
        if creator is not None:
            asyncio.tasks._enter_task(loop, creator)
    return task


eager_task_factory: Any = getattr(asyncio, "eager_task_factory", _started_at_once)


class _EagerLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()
        loop.set_task_factory(eager_task_factory)
        return loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, in a loop with eager tasks."""
    with asyncio.Runner(loop_factory=_EagerLoops().new_event_loop) as runner:
        return runner.run(coroutine)


def obey_environment() -> None:
    """Give the event loops of this process eager tasks if EAGER_TASKS asks for them."""
    if os.environ.get("EAGER_TASKS"):
        asyncio.set_event_loop_policy(_EagerLoops())
