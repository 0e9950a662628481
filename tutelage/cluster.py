"""The Ray cluster of a run: joining it, deadlines on every call, and the name and last words of a worker that dies."""

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from tutelage.settings import ClusterConfig

log = logging.getLogger("tutelage")
T = TypeVar("T")
ReuseKey = tuple[Any, ...]  # all that two runs must have in common to share workers
TAIL_LINES = 25
PING_SECONDS = 5.0


def local_cpus(settings: ClusterConfig) -> int:
    """Logical CPUs of a cluster of the run's own."""
    return settings.cpus or os.cpu_count() or 1


class WorkerFailure(RuntimeError):
    """A worker died, raised, or missed a deadline; the message names it and shows the end of its log."""


class WorkerLost(WorkerFailure):
    """A worker died or missed a deadline: another one could do what it was asked."""


@dataclass(frozen=True)
class Cluster:
    session_dir: Path
    workers: "list[Worker]" = field(default_factory=list)  # every one that was up in this run
    _idle: "dict[str, tuple[ReuseKey, list[Worker]]]" = field(default_factory=dict)  # by kind, from earlier runs

    @classmethod
    def join(cls, settings: ClusterConfig) -> "Cluster":
        """Start a Ray of one's own, or join the running one.

        Raises:
            ConnectionError: no cluster at `cluster.address`.
        """
        if settings.address == "local":
            context = ray.init(
                address="local",
                num_cpus=local_cpus(settings),
                object_store_memory=int(settings.object_store_gib * 2**30),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            context = ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        return cls(Path(context.address_info["session_dir"]))

    @staticmethod
    def resources() -> tuple[float, float]:
        """All CPUs and GPUs of the cluster, whoever holds them."""
        there = ray.cluster_resources()
        return there.get("CPU", 0.0), there.get("GPU", 0.0)

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def reuse(self, kind: str, name: str, reuse_key: ReuseKey) -> "list[Worker]":
        """The idle workers of a kind, under the name that they go by now; those that do not fit make room instead."""
        found, workers = self._idle.pop(kind, (reuse_key, []))
        if found != reuse_key:
            for worker in workers:
                worker.stop()
            return []
        renamed = [replace(worker, name=f"{name}-{i}") for i, worker in enumerate(workers)]
        self.workers.extend(renamed)
        return renamed

    def set_idle(self, kind: str, reuse_key: ReuseKey, workers: "Sequence[Worker]") -> None:
        """Keep workers for a next run, which may take what fits."""
        self._idle[kind] = (reuse_key, list(workers))

    def dismiss_idle(self, but: Set[str]) -> None:
        """Stop the idle workers of all other kinds: a run may need the room."""
        for kind in self._idle.keys() - but:
            for worker in self._idle.pop(kind)[1]:
                worker.stop()

    def leave(self) -> None:
        ray.shutdown()

    def keep_logs(self, folder: Path) -> None:
        """Copy what the workers of this node printed into the run's folder."""
        for worker in self.workers:
            for path in worker.log_files:
                shutil.copyfile(path, folder / f"{worker.name}{path.suffix}")


class Session:
    """The cluster of several runs, one after the other: joined for the first, left after the last.

    Workers that a completed run leaves idle go on in the next one, if it can use them.
    """

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._settings: dict[str, Any] = {}

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        if self._cluster is not None:
            self._cluster.leave()

    def cluster(self, settings: ClusterConfig) -> Cluster:
        """The cluster for a run; another one than before only where the run asks for another.

        Raises:
            ConnectionError: as `Cluster.join`.
        """
        values = asdict(settings)
        if self._cluster is not None and self._settings != values:
            self._cluster.leave()
            self._cluster = None
        if self._cluster is None:
            self._cluster, self._settings = Cluster.join(settings), values
        else:
            self._cluster.workers.clear()
        return self._cluster


@dataclass(frozen=True)
class Worker:
    """A Ray actor with a name people can read."""

    name: str
    handle: Any
    pid: int
    node: str
    session_dir: Path

    @classmethod
    async def from_actor(cls, name: str, handle: Any, cluster: Cluster, deadline: float) -> "Worker":
        """Wait until the actor's process is up and learn where it runs."""
        pid, node = await _within(
            handle.__ray_call__.remote(lambda _self: (os.getpid(), ray.util.get_node_ip_address())),
            deadline,
            name,
        )
        worker = cls(name, handle, pid, node, cluster.session_dir)
        cluster.workers.append(worker)
        return worker

    @property
    def log_files(self) -> list[Path]:
        return sorted((self.session_dir / "logs").glob(f"worker-*-{self.pid}.*"))

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """Call a method of the actor and wait for its result.

        Raises:
            WorkerFailure: it died, raised, or did not answer within `deadline` seconds.
        """
        return await self._wait(getattr(self.handle, method).remote(*args), f"{method}", deadline)

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncIterator[Any]:
        """Iterate over what a generator method yields; `deadline` holds from one item to the next."""
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
            return await _within(waitable, deadline, f"{self.name}.{method}")
        except RayActorError as error:
            raise WorkerLost(f"{self.name} died during {method}: {_reason(error)}\n{self._log_tail()}") from None
        except RayTaskError as error:
            raise WorkerFailure(f"{self.name} failed in {method}: {error.cause!r}\n{self._log_tail()}") from error

    async def death_report(self) -> str | None:
        """Who died and what it last printed; None for a worker that lives or is too busy to say."""
        try:
            await asyncio.wait_for(self.handle.__ray_call__.remote(lambda _self: None), PING_SECONDS)
        except RayActorError as error:
            return f"{self.name} died: {_reason(error)}\n{self._log_tail()}"
        except TimeoutError:
            return None
        return None

    def _log_tail(self) -> str:
        tails = [_tail(path) for path in self.log_files]
        if not any(tails):
            return f"its log is on node {self.node}, in {self.session_dir / 'logs'}, under worker-*-{self.pid}.err"
        return "\n".join(tail for tail in tails if tail)

    def stop(self) -> None:
        ray.kill(self.handle)


async def _within(waitable: Awaitable[T], deadline: float, what: str) -> T:
    try:
        return await asyncio.wait_for(waitable, deadline)
    except TimeoutError:
        raise WorkerLost(f"{what} did not answer within {deadline:g} s; see timeouts.* in the config") from None


def _reason(error: RayActorError) -> str:
    return str(error).splitlines()[0]


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"--- the end of {path.name} ---", *lines]) if lines else ""


def thread_environment(threads: int) -> dict[str, Any]:
    """One place that bounds the threads of a worker's process, before any library reads the environment."""
    count = str(threads)
    return {"env_vars": {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}}


def numbered(kind: str, count: int) -> list[str]:
    return [f"{kind}-{index}" for index in range(count)]


def values_of(settings: Any) -> ReuseKey:
    return tuple(asdict(settings).items())


async def from_actor(names: Sequence[str], handles: Sequence[Any], cluster: Cluster, deadline: float) -> list[Worker]:
    """Workers under names that people can read, once their processes are up."""
    pairs = zip(names, handles, strict=True)
    adopting = (Worker.from_actor(name, handle, cluster, deadline) for name, handle in pairs)
    return list(await asyncio.gather(*adopting))


async def call_all(workers: Sequence[Worker], method: str, *args: Any, deadline: float) -> list[Any]:
    return list(await asyncio.gather(*(worker.call(method, *args, deadline=deadline) for worker in workers)))
