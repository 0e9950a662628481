"""The rollout workers as one: requests in, trajectories out as they finish."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray
from transformers import AutoConfig

from rollout.config import RolloutConfig
from rollout.worker import RolloutWorker
from tutelage.aio import merged
from tutelage.cluster import Cluster, ReuseKey, Worker, call_all, from_actor, numbered, thread_environment, values_of
from tutelage.records.trajectory import RolloutRequest, Trajectory
from tutelage.settings import TimeoutConfig, WeightTransfer


def engine_fingerprint(path: str) -> str:
    """Of all in a checkpoint but its weights that an engine is built from: two alike can take each other's place."""
    config = AutoConfig.from_pretrained(path).to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype"):  # say where it comes from; the engine sets the type
        config.pop(key, None)
    generation = Path(path, "generation_config.json")
    ends = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    return json.dumps([config, ends], sort_keys=True, default=str)


class RolloutGroup:
    KIND = "rollout"

    def __init__(self, workers: list[Worker], reuse_key: ReuseKey, deadline: float) -> None:
        self.workers, self.reuse_key = workers, reuse_key
        self._deadline = deadline

    @classmethod
    async def start(
        cls,
        model_path: str,
        settings: RolloutConfig,
        transfer: WeightTransfer,
        seed: int,
        timeouts: TimeoutConfig,
        cluster: Cluster,
        name: str = "rollout",
    ) -> "RolloutGroup":
        """Start `settings.workers` engines with a checkpoint, or take those that an earlier run left idle."""
        count, deadline = settings.workers, timeouts.start
        reuse_key = (count, transfer.value, engine_fingerprint(model_path), *values_of(settings))
        workers = cluster.reuse(cls.KIND, name, reuse_key)
        if workers:
            await call_all(workers, "load", model_path, deadline=deadline)
        else:
            actor = ray.remote(RolloutWorker).options(
                num_cpus=settings.cpus_per_worker,
                num_gpus=settings.gpus_per_worker,
                runtime_env=thread_environment(settings.threads),
            )
            handles = [actor.remote(model_path, settings, transfer.value, seed) for _ in range(count)]
            workers = await from_actor(numbered(name, count), handles, cluster, deadline)
        await call_all(workers, "ready", deadline=deadline)
        return cls(workers, reuse_key, timeouts.rollout)

    async def set_idle(self, cluster: Cluster) -> None:
        """Keep the engines for whoever asks next; those that could not take another model are shut down."""
        transfer = self.reuse_key[1]
        if transfer == WeightTransfer.shared_memory.value:
            cluster.set_idle(self.KIND, self.reuse_key, self.workers)
        else:
            await self.stop()

    async def roll_out(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        """Yield each trajectory as it finishes, whichever worker it comes from."""
        shares = [list(requests[i :: len(self.workers)]) for i in range(len(self.workers))]
        streams = [
            worker.stream("generate", share, deadline=self._deadline)
            for worker, share in zip(self.workers, shares, strict=True)
            if share
        ]
        async for trajectory in merged(streams):
            yield trajectory

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """What each worker's engine says of given tokens: log-probs at temperature 1 of all but the first, [N - 1]."""
        return await call_all(self.workers, "prompt_logprobs", list(token_ids), deadline=self._deadline)

    async def stop(self) -> None:
        await call_all(self.workers, "shutdown", deadline=self._deadline)
        for worker in self.workers:
            worker.stop()
