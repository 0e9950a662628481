"""What users bring, run in processes of its own: a verifier, a chat template, anything that may never return.

Code that loops in C keeps the interpreter's lock: no thread, signal or deadline of its own process ends it. So each
call has a deadline that another process keeps, and a process that hangs, dies or takes too much memory is replaced.
"""

import asyncio
import faulthandler
import os
import resource
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from loky.backend import get_context
from pebble import ProcessExpired, ProcessPool

T = TypeVar("T")
MEMORY_GIB = 4.0  # of address space
_GRACE_SECONDS = 10  # behind a deadline, after which a process that nobody ended ends itself


class Overrun(RuntimeError):
    """A call that took too long or too much memory, or whose process died; the message says which."""


class ProcessDied(Overrun):
    """The process of a call died of it, or by another hand."""


class GuardedPool:
    """Processes that run one call each at a time, and are replaced when they hang or die.

    Processes start with the first call. They do not import the main module, so starting one costs what `prepare`
    imports.

    Args:
        workers: processes side by side.
        prepare: run in each process before its first call, outside any deadline: it imports what calls need. As
            `prepare` and the functions travel by name, they must be a module's own.
        memory_gib: address space of each process, beside what it has once `prepare` is done.
    """

    def __init__(
        self, workers: int, prepare: Callable[..., None] | None = None, memory_gib: float = MEMORY_GIB
    ) -> None:
        self._pool = ProcessPool(
            max_workers=workers,
            context=get_context("loky"),  # as spawn, but without running the main module again
            initializer=_start,
            initargs=[int(memory_gib * 2**30), prepare],
        )

    def call(self, function: Callable[..., T], *arguments: Any, deadline: float) -> T:
        """Run a function in one of the processes and wait for its result.

        Args:
            deadline: seconds, from when a process takes the call.

        Raises:
            Overrun: it took too long or too much memory, or its process died.
            Exception: what the function raised.
        """
        with _Explained(deadline):
            return self._schedule(function, arguments, deadline).result()

    async def acall(self, function: Callable[..., T], *arguments: Any, deadline: float) -> T:
        """Await a function's result, as `call`."""
        with _Explained(deadline):
            return await asyncio.wrap_future(self._schedule(function, arguments, deadline))

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.stop()
        self._pool.join()

    def _schedule(self, function: Callable[..., T], arguments: tuple[Any, ...], deadline: float) -> "Future[T]":
        return self._pool.schedule(_run, args=[function, arguments, deadline], timeout=deadline)


class _Explained:
    """Turns what ends a call into an `Overrun` that says what it was."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ProcessExpired):
            raise ProcessDied(f"its process died with exit code {error.exitcode}") from None
        if isinstance(error, MemoryError):
            raise Overrun("it took too much memory") from None
        if isinstance(error, TimeoutError):
            raise Overrun(f"it took more than {self._deadline:g} s") from None


def _run(function: Callable[..., T], arguments: tuple[Any, ...], deadline: float) -> T:
    """In a process of the pool."""
    with open(os.devnull, "w") as nowhere:
        # Whoever keeps the deadline may have been killed. This watchdog needs no lock of the interpreter.
        faulthandler.dump_traceback_later(deadline + _GRACE_SECONDS, exit=True, file=nowhere)
        try:
            return function(*arguments)
        except SystemExit as error:  # would end whoever waits for the result
            raise RuntimeError(f"it wanted to end the program: {error!r}") from None
        finally:
            faulthandler.cancel_dump_traceback_later()


def _start(memory: int, prepare: Callable[..., None] | None) -> None:
    if prepare is not None:
        prepare()
    # Libraries reserve address space that they never touch: with a GPU, more than any limit that would mean something.
    memory += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
