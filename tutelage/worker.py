"""A worker: a Ray actor that is called with deadlines, under a name that people can read.

call, stream ─► its answers
             └► WorkerLost: it is gone, or late     WorkerFailure: it raised; both with the end of its log
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from tutelage.errors import WorkerFailure, WorkerLate, WorkerLost

T = TypeVar("T")
PING_SECONDS = 5.0
TAIL_LINES = 25
MOST_BYTES = 2**23  # of one log of another node: its end
_ENGINE_DIED = re.compile(r"EngineDeadError|EngineCore encountered|Engine core initialization failed|EngineCore failed")
_LOGGED_ERROR = re.compile(
    r"EngineCore.*?(?:^|\s)(?P<kind>(?:\w+\.)*(?:\w*Error|\w*Exception)): (?P<words>.+)$", re.MULTILINE
)
_ADVICE = {  # by what an engine says
    r"kv cache|cache blocks": "raise {room}.kv_cache_gib (on GPUs {room}.gpu_memory_utilization), or lower "
    "rollout.max_model_len",
    r"out of ?memory|cannot allocate|bad_alloc": "lower {room}.kv_cache_gib (on GPUs {room}.gpu_memory_utilization) or "
    "{room}.max_num_seqs",
    r"free memory on device": "lower {room}.gpu_memory_utilization, or free the GPU",
    r"max_model_len|max_position_embeddings": "lower rollout.max_model_len",
}
_ENGINE_IS_DEAD = "EngineDeadError"  # of vLLM, which the driver does not import


@dataclass(frozen=True)
class Worker:
    """A Ray actor with a name people can read."""

    name: str
    handle: Any
    pid: int
    node: str  # its address
    node_id: str  # Ray's
    session_dir: Path

    @property
    def log_files(self) -> list[Path]:
        return log_files(self.session_dir, self.pid)

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """Call a method of the actor and wait for its result.

        Raises:
            WorkerLost: it died, or did not answer within `deadline` seconds.
            WorkerFailure: the method raised.
        """
        return await self._wait(getattr(self.handle, method).remote(*args), method, deadline)

    async def call_in_two(self, method: str, *args: Any, deadline: float) -> "tuple[Any, ray.ObjectRef[Any]]":
        """Call a method that returns two things: the first, and a reference to the second, which stays on its node.

        Raises:
            WorkerFailure: as `call`.
        """
        first, second = getattr(self.handle, method).options(num_returns=2).remote(*args)
        return await self._wait(first, method, deadline), second

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncIterator[Any]:
        """Iterate over what a generator method yields; `deadline` holds from one item to the next.

        Raises:
            WorkerFailure: as `call`.
        """
        items = getattr(self.handle, method).remote(*args)
        iterator = aiter(items)
        while True:
            try:
                ref = await self._wait(anext(iterator), method, deadline)
            except StopAsyncIteration:
                return
            yield await self._wait(ref, method, deadline)

    async def _wait(self, waitable: Awaitable[T], method: str, deadline: float) -> T:
        try:
            return await within(waitable, deadline, f"{self.name}.{method}")
        except (RayActorError, ObjectLostError) as error:  # the process, or its node with what it had answered
            raise WorkerLost(f"{self.name} died during {method}: {first_line(error)}\n{self._log_tail()}") from None
        except RayTaskError as error:
            root = root_cause(self.name, self.log_files)
            said = f"{root}\n{error.cause!r}" if root else repr(error.cause)
            # The process of a worker's engine is gone: what another worker could do in its place, this one cannot.
            is_lost = isinstance(error.cause, WorkerLost) or type(error.cause).__name__ == _ENGINE_IS_DEAD
            kind = WorkerLost if is_lost else WorkerFailure
            raise kind(f"{self.name} failed in {method}: {said}\n{self._log_tail()}") from error

    async def death_report(self) -> str | None:
        """Tell who died and what it last printed; None for a worker that lives or cannot say. Never raises."""
        try:
            await asyncio.wait_for(self.handle.__ray_call__.remote(lambda _self: None), PING_SECONDS)
        except RayActorError as error:
            return f"{self.name} died: {first_line(error)}\n{self._log_tail()}"
        except Exception:  # too busy; a cluster that is gone itself
            return None
        return None

    def _log_tail(self) -> str:
        tails = [end for path in self.log_files if (end := tail(path))]
        if not tails:
            return f"its log is on node {self.node}, in {self.session_dir / 'logs'}, under worker-*-{self.pid}.err"
        return "\n".join(tails)

    def stop(self) -> None:
        """Kill its process."""
        ray.kill(self.handle)


async def call_all(workers: Sequence[Worker], method: str, *args: Any, deadline: float) -> list[Any]:
    """Call the same method of all workers at once; returns their results, in the order of the workers.

    Raises:
        WorkerFailure: the first failure of any of them.
    """
    return list(await asyncio.gather(*(worker.call(method, *args, deadline=deadline) for worker in workers)))


async def within(waitable: Awaitable[T], deadline: float, what: str) -> T:
    try:
        return await asyncio.wait_for(waitable, deadline)
    except TimeoutError:
        raise WorkerLate(f"{what} did not answer within {deadline:g} s; see timeouts.* in the config") from None


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))


# What workers printed: the end of it, the error that an engine of theirs died of, and all of it


def says_engine_died(text: str) -> bool:
    return _ENGINE_DIED.search(text) is not None


def root_cause(name: str, logs: Sequence[Path]) -> str | None:
    """The first error that the engine of a worker has logged, and the setting to change; None: no engine died of one.

    An engine of vLLM's is a process of its own: what the worker raises says only that it is gone.
    """
    for path in logs:
        text = path.read_text(encoding="utf-8", errors="replace")
        errors = [match for match in _LOGGED_ERROR.finditer(text) if not says_engine_died(match[0])]
        if errors and says_engine_died(text):
            words = f"{errors[0]['kind']}: {errors[0]['words'].strip()}"
            room = "rollout" if "rollout" in name else "scoring.engine"
            advice = next((fix for pattern, fix in _ADVICE.items() if re.search(pattern, words, re.IGNORECASE)), None)
            return f"{words}; {advice.format(room=room)}" if advice else words
    return None


def tail(path: Path) -> str:
    """The last lines of a log, under its name; empty where there are none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:  # Ray tidies up
        return ""
    return "\n".join([f"--- the end of {path.name} ---", *lines]) if lines else ""


def log_files(session_dir: Path, pid: int) -> list[Path]:
    """What a worker's process printed, on this node; empty where it runs on another one."""
    return sorted((session_dir / "logs").glob(f"worker-*-{pid}.*"))


def read_logs(session_dir: Path, pids: Sequence[int]) -> dict[int, dict[str, bytes]]:
    """The ends of what workers of this node printed, by their pids and the ends of the files' names."""
    found: dict[int, dict[str, bytes]] = {}
    for pid in pids:
        for path in log_files(session_dir, pid):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - MOST_BYTES))
                found.setdefault(pid, {})[path.suffix] = file.read(MOST_BYTES)
    return found
