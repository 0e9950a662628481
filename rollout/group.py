"""The rollout workers as one: requests in, trajectories out as they finish."""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from rollout.config import RolloutConfig
from rollout.worker import RolloutWorker
from tutelage.aio import merged
from tutelage.cluster import PING_SECONDS, Cluster, Resources, ReuseKey, Worker, call_all, numbered, values_of
from tutelage.errors import WorkerFailure, WorkerLost
from tutelage.records.trajectory import RolloutRequest, Trajectory
from tutelage.settings import RecoveryConfig, TimeoutConfig, WeightTransfer
from tutelage.stops import AS_THEY_ARE, TurnEnds, generation_ends

log = logging.getLogger("tutelage")
_FIRST_PAUSE = 1.0  # seconds before a worker that could not be started is tried again; then twice as long each time


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
        workers: list[Worker],
        hire: Callable[[Sequence[str]], Awaitable[list[Worker]]],
        reuse_key: ReuseKey,
        timeouts: TimeoutConfig,
        recovery: RecoveryConfig,
    ) -> None:
        """
        Args:
            hire: starts a worker of each name, with the group's checkpoint.
        """
        self.workers, self.reuse_key = list(workers), reuse_key
        self.restarts = 0  # workers that were replaced
        self.enlist_with: Callable[[Worker], Awaitable[None]] | None = None
        self._name, self._count, self._hire = name, len(workers), hire
        self._timeouts, self._recovery = timeouts, recovery
        self._replacing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._failure: WorkerFailure | None = None

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
    ) -> "RolloutGroup":
        """Start `settings.workers` engines with a checkpoint, or take those that an earlier run left idle.

        Args:
            ends: what ends a turn beside the ends of the checkpoint.
        """
        count, deadline = settings.workers, timeouts.start
        reuse_key = (count, transfer.value, engine_fingerprint(model_path), ends, *values_of(settings))

        async def hire(names: Sequence[str]) -> list[Worker]:
            workers = await cluster.start(
                RolloutWorker,
                model_path,
                settings,
                transfer.value,
                seed,
                ends,
                names=names,
                resources=Resources(settings.cpus_per_worker, settings.gpus_per_worker, settings.threads),
                deadline=deadline,
            )
            await call_all(workers, "ready", deadline=deadline)
            return workers

        workers = cluster.reuse(cls.KIND, name, reuse_key)
        if workers:
            await call_all(workers, "load", model_path, deadline=deadline)
            await call_all(workers, "ready", deadline=deadline)
        else:
            workers = await hire(numbered(name, count))
        return cls(name, workers, hire, reuse_key, timeouts, recovery)

    async def set_idle(self, cluster: Cluster) -> None:
        """Keep the engines for whoever asks next; those that could not take another model are shut down."""
        if self._can_join_later and len(self.workers) == self._count:
            cluster.set_idle(self.KIND, self.reuse_key, self.workers)
        else:
            await self.stop()

    async def roll_out(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        """Yield each trajectory as it finishes, whichever worker it comes from; each request has a slot of its own.

        Raises:
            WorkerFailure: a request was refused, or no worker is left and none may be replaced any more.
        """
        workers = await self._present()
        shares = [list(requests[i :: len(workers)]) for i in range(len(workers))]
        streams = [self._serve(worker, share) for worker, share in zip(workers, shares, strict=True) if share]
        async for trajectory in merged(streams):
            yield trajectory

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Ask each worker's engine for log-probs at temperature 1 of all given tokens but the first, [N - 1]."""
        return await call_all(self.workers, "prompt_logprobs", list(token_ids), deadline=self._timeouts.rollout)

    async def stop(self) -> None:
        """End the engines and their workers."""
        for task in self._replacing:
            task.cancel()
        await call_all(self.workers, "shutdown", deadline=self._timeouts.rollout)
        for worker in self.workers:
            worker.stop()

    # Workers that are lost, and those that come instead

    def enlist(self, worker: Worker) -> None:
        """Ask a worker from now on; it has the weights of the others."""
        self.workers.append(worker)
        self._changed.set()

    async def strike_off_the_dead(self) -> list[str]:
        """Ask all workers whether they live, and replace those that do not say so; returns their names."""
        asked = list(self.workers)
        answers = await asyncio.gather(
            *(worker.call("ready", deadline=PING_SECONDS) for worker in asked), return_exceptions=True
        )
        lost = [
            (worker, answer) for worker, answer in zip(asked, answers, strict=True) if isinstance(answer, WorkerLost)
        ]
        for worker, error in lost:
            self._lose(worker, error)
        return [worker.name for worker, _ in lost]

    async def wait_for_one(self) -> None:
        """Wait until there is a worker.

        Raises:
            WorkerFailure: there is none, and none may come any more.
        """
        await self._present()

    @property
    def _can_join_later(self) -> bool:
        """Whether an engine can be connected with a learner that others are connected with."""
        return WeightTransfer(self.reuse_key[1]) is WeightTransfer.shared_memory

    async def _present(self) -> list[Worker]:
        while not self.workers:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()  # starting a worker has a deadline
        return list(self.workers)

    async def _serve(self, worker: Worker, share: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        delivered: set[int] = set()
        try:
            async for trajectory in worker.stream("generate", list(share), deadline=self._timeouts.rollout):
                delivered.add(trajectory.slot)
                yield trajectory
        except WorkerLost as error:
            self._lose(worker, error)
        else:
            return
        # All of them once more: engines repeat their arithmetic bit for bit only in a batch of the same size.
        async for trajectory in self.roll_out(share):
            if trajectory.slot not in delivered:
                yield trajectory

    def _lose(self, worker: Worker, error: WorkerLost) -> None:
        """Strike a worker off and look for another one, once however many requests it leaves behind."""
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        worker.stop()  # it may only be late
        log.warning("%s", error)
        task = asyncio.create_task(self._replace(error))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, error: WorkerFailure) -> None:
        """Start another worker; one that cannot be had is tried again, with growing pauses."""
        for attempt in itertools.count():
            if not self._can_join_later or self.restarts == self._recovery.max_restarts:
                why = f"{self._recovery.max_restarts} workers were replaced already (recovery.max_restarts)"
                if not self._can_join_later:
                    why = f"no engine can join later with learner.weight_transfer={self.reuse_key[1]}"
                self._failure = WorkerFailure(f"{error}\n{self._name}: {why}")
                self._changed.set()
                return
            self.restarts += 1
            name = f"{self._name}-{self._count + self.restarts - 1}"
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) if attempt else 0)
            hired: list[Worker] = []
            try:
                hired = await self._hire([name])
                for worker in hired:
                    if self.enlist_with is None:
                        self.enlist(worker)
                    else:
                        await self.enlist_with(worker)
            except WorkerFailure as another:
                for worker in hired:
                    worker.stop()  # it lives, and nobody would ever ask it
                error = another
                continue
            log.warning("%s takes the place of the one that was lost", name)
            return
