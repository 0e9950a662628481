"""Ctrl-C and SIGTERM, turned into an orderly stop."""

import asyncio
import signal
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Interrupted(Exception):
    """The user stopped the run."""


class Interruption:
    """Work wrapped in `guard` is given up when the user stops the run; all other work is finished first."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._requested.set)

    async def guard(self, work: Awaitable[T]) -> T:
        """Await `work`, or raise Interrupted as soon as the user stops the run."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._requested.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Interrupted
        finally:
            stop.cancel()
            task.cancel()
