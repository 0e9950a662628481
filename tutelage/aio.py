"""Waiting for several things at once: streams that are read as one, and work that the user may interrupt."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from tutelage.errors import Interrupted

T = TypeVar("T")
U = TypeVar("U")


async def merged(streams: Sequence[AsyncIterator[T]]) -> AsyncIterator[T]:
    """Yield the items of all streams as they come.

    An exception that ends one of them early is raised here, and the others are given up.
    """
    arrived: asyncio.Queue[T | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_drain(stream, arrived)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


async def _drain(stream: AsyncIterator[T], arrived: "asyncio.Queue[T | Exception | None]") -> None:
    try:
        async for item in stream:
            arrived.put_nowait(item)
    except Exception as error:
        arrived.put_nowait(error)
    else:
        arrived.put_nowait(None)


async def mapped(work: Callable[[T], Awaitable[U]], stream: AsyncIterator[T]) -> AsyncIterator[U]:
    """Work on the items of a stream side by side as they come, and yield each result as it is there.

    An exception of the stream or of the work is raised here, and the rest is given up.
    """
    done: asyncio.Queue[U | Exception | None] = asyncio.Queue()
    tasks: list[asyncio.Task[None]] = []

    async def finish(item: T) -> None:
        try:
            done.put_nowait(await work(item))
        except Exception as error:
            done.put_nowait(error)

    async def feed() -> None:
        try:
            async for item in stream:
                tasks.append(asyncio.create_task(finish(item)))
        except Exception as error:
            done.put_nowait(error)
        else:
            await asyncio.gather(*tasks)
            done.put_nowait(None)

    feeder = asyncio.create_task(feed())
    try:
        while (result := await done.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        for task in (feeder, *tasks):
            task.cancel()


async def together(*work: Awaitable[Any]) -> list[Any]:
    """Await all side by side; where one raises, the others are cancelled and have ended before that is raised here."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Interruption:
    """Work wrapped in `guard` is given up when the user stops the run; all other work is finished first.

    SIGINT    the user's wish; a second one is a KeyboardInterrupt wherever the process is
    SIGTERM   notice that the machine is taken away: all has so long to end
    """

    def __init__(self, grace: float) -> None:
        """`grace`: seconds from SIGTERM on."""
        self.is_preemption = False  # SIGTERM, and not the user, stops the run
        self._requested = asyncio.Event()
        self._grace, self._scope = grace, asyncio.timeout(None)

    def _interrupted(self, loop: asyncio.AbstractEventLoop) -> None:
        self._requested.set()
        loop.remove_signal_handler(signal.SIGINT)  # Python's own comes back

    def _preempted(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self.is_preemption:
            self.is_preemption = True
            self._requested.set()
            if self._scope.when() is None:
                self._scope.reschedule(loop.time() + self._grace)

    async def listening(self, work: Awaitable[T]) -> T:
        """Await `work` and take the two signals meanwhile; once only.

        Raises:
            TimeoutError: the time that SIGTERM leaves is over.
        """
        loop = asyncio.get_running_loop()
        async with self._scope:
            loop.add_signal_handler(signal.SIGINT, self._interrupted, loop)
            loop.add_signal_handler(signal.SIGTERM, self._preempted, loop)
            return await work

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
