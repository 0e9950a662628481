"""Several streams as one, and work on a stream's items side by side."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from tutelage.aio import Interruption, mapped, merged, together
from tutelage.errors import Interrupted


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


def test_where_one_raises_the_others_have_ended() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def fails() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("broken")

    async def run() -> None:
        assert await together(asyncio.sleep(0, 1), asyncio.sleep(0.01, 2)) == [1, 2]
        with pytest.raises(RuntimeError, match="broken"):
            await together(waits(), fails())
        assert ended == [True]

    asyncio.run(run())


def test_a_first_ctrl_c_gives_up_what_is_guarded_and_a_second_ends_all_at_once() -> None:
    given_up = []

    async def run() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            await interruption.guard(asyncio.sleep(60))
        with pytest.raises(Interrupted):  # from now on
            await interruption.guard(asyncio.sleep(60))
        given_up.append(True)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    async def listen() -> None:
        nonlocal interruption
        interruption = Interruption(grace=60)
        await interruption.listening(run())

    interruption: Interruption
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(listen())
    assert given_up == [True] and not interruption.is_preemption


@pytest.mark.parametrize("in_time", [True, False])
def test_after_sigterm_there_is_so_much_time(in_time: bool) -> None:
    async def run(interruption: Interruption) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            await interruption.guard(asyncio.sleep(60))
        await asyncio.sleep(0.01 if in_time else 60)
        return "done"

    async def listen() -> str:
        interruption = Interruption(grace=60 if in_time else 0.05)
        try:
            return await interruption.listening(run(interruption))
        finally:
            assert interruption.is_preemption

    if in_time:
        assert asyncio.run(listen()) == "done"
    else:
        with pytest.raises(TimeoutError):
            asyncio.run(listen())
