"""A TCP proxy that is bad at its work: each connection has a fate, drawn from a seed.

What it does to one connection hits all calls that share it.
"""

import asyncio
import random
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from tests.server.ledger import DEADLINE


class Fate(StrEnum):
    REFUSED = "closed as soon as it is opened"
    CUT_ON_THE_WAY_THERE = "closed in the middle of what the client sends"
    CUT_ON_THE_WAY_BACK = "closed as the server answers, whose work is done"
    SWALLOWED = "answers vanish; only later is the connection closed"
    SLOW = "all is late"
    FINE = "closed when something was answered"


@dataclass
class Plan:
    """The fate of one connection, and after how many bytes, in which direction, it comes."""

    fate: Fate
    after: int
    delay: float

    @classmethod
    def draw(cls, seed: int, number: int) -> "Plan":
        chance = random.Random(f"{seed}/{number}")
        fate = chance.choices(list(Fate), [2, 4, 4, 1, 2, 1])[0]
        return cls(fate, chance.randrange(100, 4000), chance.uniform(0.01, 0.1))


class Proxy:
    """Between clients and the server at ``target``; with a thread and an event loop of its own."""

    def __init__(self, target: str, seed: int) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._seed = seed
        self.met: Counter[Fate] = Counter()
        """How often each fate came true."""
        self._opened = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(DEADLINE)

    async def _listen(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        """End all connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plan = Plan.draw(self._seed, self._opened)
        self._opened += 1
        if plan.fate is Fate.REFUSED:
            self.met[plan.fate] += 1
            writer.transport.abort()
            return
        there: asyncio.StreamWriter | None = None
        pipes: list[asyncio.Task[None]] = []
        try:
            back, there = await asyncio.open_connection(self._host, int(self._port))
            pipes = [
                asyncio.create_task(self._pass(reader, there, plan, Fate.CUT_ON_THE_WAY_THERE)),
                asyncio.create_task(self._pass(back, writer, plan, Fate.CUT_ON_THE_WAY_BACK)),
            ]
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for pipe in pipes:
                pipe.cancel()
            writer.transport.abort()
            if there is not None:
                there.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, plan: Plan, cut: Fate
    ) -> None:
        """Pass on bytes of one direction until the connection ends, ``cut`` being what may befall them."""
        passed = 0
        with suppress(OSError):
            while data := await reader.read(65536):
                if plan.fate is Fate.SLOW:
                    await asyncio.sleep(plan.delay / 4)  # the fault itself
                if passed + len(data) >= plan.after:
                    match plan.fate:
                        case Fate.CUT_ON_THE_WAY_THERE | Fate.CUT_ON_THE_WAY_BACK if plan.fate is not cut:
                            pass
                        case Fate.SWALLOWED if cut is Fate.CUT_ON_THE_WAY_THERE:
                            pass
                        case Fate.CUT_ON_THE_WAY_THERE:
                            self.met[plan.fate] += 1
                            writer.write(data[: plan.after - passed])
                            await writer.drain()
                            return
                        case fate:
                            self.met[fate] += 1
                            if fate is Fate.SWALLOWED:
                                await asyncio.sleep(plan.delay * 10)  # the fault itself: silence
                            return
                passed += len(data)
                writer.write(data)
                await writer.drain()
