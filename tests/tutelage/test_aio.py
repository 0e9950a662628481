"""Several streams as one."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tutelage.aio import merged


async def counted(name: str, turns: list[int], fails: bool = False) -> AsyncIterator[tuple[str, int]]:
    for index, wait in enumerate(turns):
        for _ in range(wait):
            await asyncio.sleep(0)
        yield name, index
    if fails:
        raise RuntimeError(name)


async def collect(*streams: AsyncIterator[tuple[str, int]]) -> list[tuple[str, int]]:
    return [item async for item in merged(streams)]


def test_items_come_as_they_are_ready_and_in_order_within_a_stream() -> None:
    found = asyncio.run(collect(counted("slow", [30, 30]), counted("fast", [1, 1, 1]), counted("empty", [])))
    assert found == [("fast", 0), ("fast", 1), ("fast", 2), ("slow", 0), ("slow", 1)]


def test_no_stream_is_an_empty_one() -> None:
    assert asyncio.run(collect()) == []


def test_a_failure_ends_them_all() -> None:
    given_up = []

    async def endless() -> AsyncIterator[tuple[str, int]]:
        try:
            while True:
                await asyncio.sleep(0)
        finally:
            given_up.append(True)
        yield "never", 0

    async def run() -> None:
        with pytest.raises(RuntimeError, match="broken"):
            await collect(endless(), counted("broken", [1], fails=True))
        await asyncio.sleep(0)

    asyncio.run(run())
    assert given_up == [True]
