"""The rollout workers as one: requests in, trajectories out as they finish."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from rollout.config import RolloutConfig
from rollout.worker import RolloutWorker
from tutelage.aio import merged
from tutelage.cluster import Cluster, Resources, ReuseKey, Worker, call_all, numbered, values_of
from tutelage.records.trajectory import RolloutRequest, Trajectory
from tutelage.settings import TimeoutConfig, WeightTransfer
from tutelage.stops import AS_THEY_ARE, TurnEnds, generation_ends


def engine_fingerprint(path: str) -> str:
    """Describe all in a checkpoint but its weights that an engine is built from.

    Engines of checkpoints that are described alike can take each other's weights.
    """
    config, _ = PreTrainedConfig.get_config_dict(path)  # as written: code that comes with a model is not run for it
    for key in ("_name_or_path", "transformers_version", "dtype"):  # say where it comes from; the engine sets the type
        config.pop(key, None)
    # The engine also ends a response with the tokenizer's EOS, which it reads once.
    tokenizer = Path(path, "tokenizer_config.json")
    eos = json.loads(tokenizer.read_text(encoding="utf-8")).get("eos_token") if tokenizer.is_file() else None
    return json.dumps([config, sorted(generation_ends(path)), eos], sort_keys=True, default=str)


class RolloutGroup:
    """The engines of one policy, each in a worker of its own."""

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
        ends: TurnEnds = AS_THEY_ARE,
    ) -> "RolloutGroup":
        """Start `settings.workers` engines with a checkpoint, or take those that an earlier run left idle.

        Args:
            ends: what ends a turn beside the ends of the checkpoint.
        """
        count, deadline = settings.workers, timeouts.start
        reuse_key = (count, transfer.value, engine_fingerprint(model_path), ends, *values_of(settings))
        workers = cluster.reuse(cls.KIND, name, reuse_key)
        if workers:
            await call_all(workers, "load", model_path, deadline=deadline)
        else:
            workers = await cluster.start(
                RolloutWorker,
                model_path,
                settings,
                transfer.value,
                seed,
                ends,
                names=numbered(name, count),
                resources=Resources(settings.cpus_per_worker, settings.gpus_per_worker, settings.threads),
                deadline=deadline,
            )
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
        """Ask each worker's engine for log-probs at temperature 1 of all given tokens but the first, [N - 1]."""
        return await call_all(self.workers, "prompt_logprobs", list(token_ids), deadline=self._deadline)

    async def stop(self) -> None:
        """End the engines and their workers."""
        await call_all(self.workers, "shutdown", deadline=self._deadline)
        for worker in self.workers:
            worker.stop()
