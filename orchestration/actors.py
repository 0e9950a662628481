"""Starting Ray actors and calling several of them at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orchestration.cluster import Cluster, Fitness, Worker


def thread_environment(threads: int) -> dict[str, Any]:
    """One place that bounds the threads of a worker's process, before any library reads the environment."""
    count = str(threads)
    return {"env_vars": {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}}


def numbered(kind: str, count: int) -> list[str]:
    return [f"{kind}-{index}" for index in range(count)]


def values_of(settings: Any) -> Fitness:
    return tuple(asdict(settings).items())


async def adopt(names: Sequence[str], handles: Sequence[Any], cluster: Cluster, deadline: float) -> list[Worker]:
    """Workers under names that people can read, once their processes are up."""
    pairs = zip(names, handles, strict=True)
    adopting = (Worker.adopt(name, handle, cluster, deadline) for name, handle in pairs)
    return list(await asyncio.gather(*adopting))


async def call_all(workers: Sequence[Worker], method: str, *args: Any, deadline: float) -> list[Any]:
    return list(await asyncio.gather(*(worker.call(method, *args, deadline=deadline) for worker in workers)))
