"""The rollout workers as one: requests in, trajectories out as they finish."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from rollout.config import RolloutConfig
from rollout.worker import RolloutWorker
from tutelage.aio import merged
from tutelage.cluster import Cluster, ReuseKey, values_of
from tutelage.crew import Crew
from tutelage.errors import WorkerFailure, WorkerLost
from tutelage.placement import Resources
from tutelage.records.trajectory import RolloutRequest, Trajectory
from tutelage.settings import Placement, RecoveryConfig, TimeoutConfig, WeightTransfer
from tutelage.stops import AS_THEY_ARE, TurnEnds, generation_ends
from tutelage.worker import PING_SECONDS, Worker, call_all


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


class RolloutGroup(Crew):
    """The engines of one policy, each in a worker of its own; what they are asked survives the death of one.

        request ─► an engine ─► trajectory
                     └─ dies or misses its deadline ─► another one, or the one that replaces it, with the same seed

    A newcomer has the weights of the checkpoint. Where they have moved on, `enlist_with` is whoever gives it those that
    the others have, and only then enlists it.
    """

    KIND = "rollout"

    def __init__(
        self,
        name: str,
        workers: Sequence[Worker],
        hire: Callable[[Sequence[str]], Awaitable[list[Worker]]],
        reuse_key: ReuseKey,
        timeouts: TimeoutConfig,
        cluster: Cluster,
        recovery: RecoveryConfig,
        needs: Resources,
        placement: Placement = Placement.spread,
        most: int = 0,
    ) -> None:
        """
        Args:
            hire: starts a worker of each name, with the group's checkpoint.
        """
        super().__init__(name, hire, cluster, recovery, needs, placement, most)
        self.workers.extend(workers)
        self.reuse_key = reuse_key
        self.enlist_with: Callable[[Worker], Awaitable[None]] | None = None
        self._count, self._timeouts = len(workers), timeouts

    @classmethod
    async def start(
        cls,
        model_path: str,
        settings: RolloutConfig,
        transfer: WeightTransfer,
        seed: int,
        timeouts: TimeoutConfig,
        cluster: Cluster,
        recovery: RecoveryConfig,
        name: str = "rollout",
        ends: TurnEnds = AS_THEY_ARE,
        placement: Placement = Placement.spread,
    ) -> "RolloutGroup":
        """Start `settings.workers` engines with a checkpoint, or take those that an earlier run left idle.

        Args:
            ends: what ends a turn beside the ends of the checkpoint.
        """
        count, deadline = settings.workers, timeouts.start
        reuse_key = (count, transfer.backend, engine_fingerprint(model_path), ends, *values_of(settings))

        async def hire(names: Sequence[str]) -> list[Worker]:
            workers = await cluster.start(
                RolloutWorker,
                model_path,
                settings,
                transfer.backend,
                seed,
                ends,
                names=names,
                resources=settings.needs,
                deadline=deadline,
                patience=recovery.wait_for_node,
                placement=placement,
            )
            await call_all(workers, "ready", deadline=deadline)
            return workers

        workers = cluster.reuse(cls.KIND, name, reuse_key)
        if workers:
            await call_all(workers, "load", model_path, deadline=deadline)
            await call_all(workers, "ready", deadline=deadline)
        else:
            workers = await hire(cluster.names(name, count))
        most = settings.max_workers or 0
        group = cls(name, workers, hire, reuse_key, timeouts, cluster, recovery, settings.needs, placement, most)
        group.begin_watch()
        return group

    async def set_idle(self) -> None:
        """Keep the engines for whoever asks next; those that could not take another model are shut down."""
        self.end_watch()
        if self.irreplaceable is None and len(self.workers) >= self._count:
            for worker in self.workers[self._count :]:
                worker.stop()
            self._cluster.set_idle(self.KIND, self.reuse_key, self.workers[: self._count])
        else:
            await self.stop()

    async def roll_out(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        """Yield each trajectory as it finishes, whichever worker it comes from; each request has a slot of its own.

        Raises:
            WorkerFailure: a request was refused, or no worker is left and none may be replaced any more.
        """
        workers = await self.present()
        shares = [list(requests[i :: len(workers)]) for i in range(len(workers))]
        streams = [self._serve(worker, share) for worker, share in zip(workers, shares, strict=True) if share]
        async for trajectory in merged(streams):
            yield trajectory

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Ask each worker's engine for log-probs at temperature 1 of all given tokens but the first, [N - 1]."""
        return await call_all(self.workers, "prompt_logprobs", list(token_ids), deadline=self._timeouts.rollout)

    async def stop(self) -> None:
        """End the engines and their workers."""
        self.end_watch()
        for task in self._hiring:
            task.cancel()
        await call_all(self.workers, "shutdown", deadline=self._timeouts.rollout)
        for worker in self.workers:
            worker.stop()

    # Workers that are lost, and those that come instead

    async def disband(self) -> bool:
        if not await super().disband() or self.irreplaceable is not None:
            return False
        try:
            return all(await call_all(self.workers, "drop_requests", deadline=PING_SECONDS))
        except WorkerFailure:
            return False

    async def join(self, worker: Worker) -> None:
        if self.enlist_with is None:
            self.enlist(worker)
        else:
            await self.enlist_with(worker)

    @property
    def irreplaceable(self) -> str | None:
        transfer = self.reuse_key[1]
        if transfer == WeightTransfer.shared_memory.backend:
            return None
        return f"no engine can join later with learner.weight_transfer={transfer}"

    async def _serve(self, worker: Worker, share: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        delivered: set[int] = set()
        try:
            async for trajectory in worker.stream("generate", list(share), deadline=self._timeouts.rollout):
                delivered.add(trajectory.slot)
                yield trajectory
        except WorkerLost as error:
            self.lose(worker, error)
        else:
            return
        # All of them once more: engines repeat their arithmetic bit for bit only in a batch of the same size.
        async for trajectory in self.roll_out(share):
            if trajectory.slot not in delivered:
                yield trajectory
