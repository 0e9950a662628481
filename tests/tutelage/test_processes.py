"""Calls of users' code: bounded in time and memory, and never in the caller's process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tutelage.processes import GuardedPool, Overrun


def _add(a: int, b: int) -> int:
    return a + b


def _power_tower() -> int:
    return 9**9**9**9  # one C call, which holds the interpreter's lock


def _hog() -> int:
    return len(bytearray(64 * 2**30))


def _fall() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse() -> None:
    raise ValueError("not this")


def _leave() -> None:
    sys.exit(3)


def _process() -> int:
    time.sleep(0.2)
    return os.getpid()


@pytest.fixture(scope="module")
def pool() -> Iterator[GuardedPool]:
    pool = GuardedPool(workers=2)
    yield pool
    pool.close()


def test_a_result_comes_back_from_another_process(pool: GuardedPool) -> None:
    assert pool.call(_add, 1, 2, deadline=30) == 3
    assert pool.call(_process, deadline=30) != os.getpid()


def test_calls_run_side_by_side(pool: GuardedPool) -> None:
    async def both() -> list[int]:
        return await asyncio.gather(*(pool.acall(_process, deadline=30) for _ in range(4)))

    assert len(set(asyncio.run(both()))) == 2


def test_c_code_that_never_returns_is_ended_and_its_process_replaced(pool: GuardedPool) -> None:
    with pytest.raises(Overrun, match=r"more than 0\.5 s"):
        pool.call(_power_tower, deadline=0.5)
    assert pool.call(_add, 1, 2, deadline=30) == 3


def test_a_death_is_told_and_the_process_replaced(pool: GuardedPool) -> None:
    with pytest.raises(Overrun, match="died with exit code -9"):
        pool.call(_fall, deadline=30)
    assert pool.call(_add, 1, 2, deadline=30) == 3


def test_memory_is_bounded(pool: GuardedPool) -> None:
    with pytest.raises(Overrun, match="too much memory"):
        pool.call(_hog, deadline=30)


def test_what_a_call_raises_is_raised(pool: GuardedPool) -> None:
    with pytest.raises(ValueError, match="not this"):
        pool.call(_refuse, deadline=30)


def test_a_call_cannot_end_the_program(pool: GuardedPool) -> None:
    with pytest.raises(RuntimeError, match="wanted to end the program"):
        pool.call(_leave, deadline=30)


_KILLED = """
import os, signal, threading, time
from tutelage import processes

processes._GRACE_SECONDS = 1
pool = processes.GuardedPool(workers=1)
pool.call(os.getpid, deadline=30)
print(pool.call(os.getpid, deadline=30), flush=True)
threading.Thread(target=pool.call, args=(pow, 9, 9**9), kwargs={"deadline": 1}, daemon=True).start()
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_call_that_never_returns_outlives_a_killed_program_by_seconds() -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True, timeout=60)
    process = int(killed.stdout)
    ends = time.monotonic() + 30
    while _is_running(process):
        assert time.monotonic() < ends
        time.sleep(0.2)


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
