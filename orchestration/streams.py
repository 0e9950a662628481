"""Several asynchronous streams as one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncIterator[T]]) -> AsyncIterator[T]:
    """Yield the items of all streams as they come.

    Raises:
        Whatever ends one of them early; the others are given up then.
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
