"""Several streams as one, and work on a stream's items side by side."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tutelage.aio import mapped, merged


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


def test_results_come_as_they_are_ready_whatever_the_order_of_the_items() -> None:
    async def slow_first(item: tuple[str, int]) -> int:
        for _ in range(20 - 10 * item[1]):
            await asyncio.sleep(0)
        return item[1]

    async def run() -> list[int]:
        return [result async for result in mapped(slow_first, counted("a", [0, 0, 0]))]

    assert asyncio.run(run()) == [2, 1, 0]


@pytest.mark.parametrize("broken", ["stream", "work"])
def test_a_failure_of_stream_or_work_is_raised_and_the_rest_given_up(broken: str) -> None:
    given_up = []

    async def work(item: tuple[str, int]) -> int:
        if item[1] == 1 and broken == "work":
            raise RuntimeError(broken)
        try:
            await asyncio.sleep(60)
        finally:
            given_up.append(item[1])
        return 0

    async def run() -> None:
        with pytest.raises(RuntimeError, match=broken):
            async for _ in mapped(work, counted("stream", [1, 1], fails=broken == "stream")):
                pass
        await asyncio.sleep(0)

    asyncio.run(run())
    assert 0 in given_up
