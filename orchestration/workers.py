"""The three groups of workers behind one asynchronous face each: starting, calling, deadlines.

RolloutGroup   produces trajectories, waits for prompts and for new weights
ScoringGroup   produces teacher signals, waits for trajectories
LearnerGroup   produces policy versions, waits for batches; its ranks act in lockstep
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from learner.batch import Batch
from learner.config import WeightTransfer
from learner.evaluation import ExampleDivergence
from learner.examination import ExampleTokens
from learner.report import PublishReport, StepReport
from learner.worker import LearnerWorker
from orchestration.cluster import Cluster, Fitness, Worker, WorkerFailure
from orchestration.config import RunConfig, Stage
from orchestration.models import engine_fingerprint
from orchestration.needs import needs_reference_scorers, needs_teacher_rollouts
from orchestration.preparation import Prepared
from orchestration.streams import merged
from rollout.trajectory import RolloutRequest, Trajectory
from rollout.worker import RolloutWorker
from scoring.cache import CacheStats
from scoring.lm_head import LMHead
from scoring.quantization import QuantizationBias
from scoring.signal import ScoringRequest, TeacherSignal
from scoring.worker import ScoringWorker

SCORING, REFERENCE = "scoring", "reference"  # whom scoring workers speak for: the teacher, or another model


def _thread_environment(threads: int) -> dict[str, Any]:
    """One place that bounds the threads of a worker's process, before any library reads the environment."""
    count = str(threads)
    return {"env_vars": {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}}


def _values(settings: Any) -> Fitness:
    return tuple(asdict(settings).items())


async def _adopt(kind: str, handles: Sequence[Any], cluster: Cluster, deadline: float) -> list[Worker]:
    adopting = (Worker.adopt(f"{kind}-{i}", handle, cluster, deadline) for i, handle in enumerate(handles))
    return list(await asyncio.gather(*adopting))


async def _call_all(workers: Sequence[Worker], method: str, *args: Any, deadline: float) -> list[Any]:
    return list(await asyncio.gather(*(worker.call(method, *args, deadline=deadline) for worker in workers)))


class RolloutGroup:
    KIND = "rollout"

    def __init__(self, workers: list[Worker], fitness: Fitness, deadline: float) -> None:
        self.workers, self.fitness = workers, fitness
        self._deadline = deadline

    @classmethod
    async def start(
        cls,
        config: RunConfig,
        model_path: str,
        cluster: Cluster,
        name: str = "rollout",
        count: int | None = None,
    ) -> "RolloutGroup":
        settings, transfer, deadline = config.rollout, config.learner.weight_transfer.value, config.timeouts.start
        count = count or settings.workers
        fitness = (count, transfer, engine_fingerprint(model_path), *_values(settings))
        workers = cluster.take(cls.KIND, name, fitness)
        if workers:
            await _call_all(workers, "load", model_path, deadline=deadline)
        else:
            actor = ray.remote(RolloutWorker).options(
                num_cpus=settings.cpus_per_worker,
                num_gpus=settings.gpus_per_worker,
                runtime_env=_thread_environment(settings.threads),
            )
            handles = [actor.remote(model_path, settings, transfer, config.seed) for _ in range(count)]
            workers = await _adopt(name, handles, cluster, deadline)
        await _call_all(workers, "ready", deadline=deadline)
        return cls(workers, fitness, config.timeouts.rollout)

    async def set_idle(self, cluster: Cluster) -> None:
        """Keep the engines for whoever asks next; those that could not take another model are shut down."""
        transfer = self.fitness[1]
        if transfer == WeightTransfer.shared_memory.value:
            cluster.set_idle(self.KIND, self.fitness, self.workers)
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
        return await _call_all(self.workers, "prompt_logprobs", list(token_ids), deadline=self._deadline)

    async def stop(self) -> None:
        await _call_all(self.workers, "shutdown", deadline=self._deadline)
        for worker in self.workers:
            worker.stop()


class TeacherEngines:
    """The teacher's own engines before the workers start: they are there once somebody has asked for them."""

    def __init__(self, config: RunConfig, prepared: Prepared, cluster: Cluster) -> None:
        self._config, self._prepared, self._cluster = config, prepared, cluster
        self._group: RolloutGroup | None = None

    async def get(self) -> RolloutGroup:
        assert self._prepared.teacher_path is not None  # nobody asks where no teacher takes part
        if self._group is None:
            count = self._config.rollout.workers if self._config.stage is Stage.cold_start else 1
            path = self._prepared.teacher_path
            self._group = await RolloutGroup.start(self._config, path, self._cluster, "teacher-rollout", count)
        return self._group

    async def release(self) -> None:
        """Leave the engines to the workers that start now, as far as those can use them."""
        if self._group is not None:
            await self._group.set_idle(self._cluster)


class ScoringGroup:
    def __init__(self, workers: list[Worker], kind: str, fitness: Fitness, deadline: float) -> None:
        self.workers, self.kind, self.fitness = workers, kind, fitness
        self._deadline = deadline
        self._outstanding = [0] * len(workers)  # tokens

    @classmethod
    async def start(cls, config: RunConfig, model_path: str, cluster: Cluster, name: str) -> "ScoringGroup":
        settings, deadline = config.scoring, config.timeouts.start
        fitness = _values(settings)
        workers = cluster.take(name, name, fitness)
        if workers:
            await _call_all(workers, "load", model_path, config.teacher, deadline=deadline)
        else:
            actor = ray.remote(ScoringWorker).options(
                num_cpus=settings.cpus_per_worker,
                num_gpus=settings.gpus_per_worker,
                runtime_env=_thread_environment(settings.threads),
                max_concurrency=1000,
            )
            handles = [actor.remote(model_path, config.teacher, settings) for _ in range(settings.workers)]
            workers = await _adopt(name, handles, cluster, deadline)
        await _call_all(workers, "ready", deadline=deadline)
        return cls(workers, name, fitness, config.timeouts.scoring)

    def set_idle(self, cluster: Cluster) -> None:
        cluster.set_idle(self.kind, self.fitness, self.workers)

    async def load(self, model_path: str, config: RunConfig) -> None:
        """Go on with another teacher; nothing may be under way."""
        await _call_all(self.workers, "load", model_path, config.teacher, deadline=config.timeouts.start)

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Send the request to the worker with the fewest tokens waiting."""
        index = self._outstanding.index(min(self._outstanding))
        tokens = len(request.prompt_ids) + len(request.response_ids)
        self._outstanding[index] += tokens
        try:
            return await self.workers[index].call("score", request, deadline=self._deadline)
        finally:
            self._outstanding[index] -= tokens

    async def score_all(self, requests: Sequence[ScoringRequest]) -> list[TeacherSignal]:
        return list(await asyncio.gather(*(self.score(request) for request in requests)))

    async def plain_logprobs(self, requests: Sequence[ScoringRequest]) -> list[NDArray[np.float32]]:
        """What `score` should say of the tokens, [T] each: one sequence after the other, by plain means."""
        return await self.workers[0].call("plain_logprobs", list(requests), deadline=self._deadline)

    async def quantization_bias(self, requests: Sequence[ScoringRequest]) -> QuantizationBias | None:
        """Of the model, which all workers have; None: it is not quantised. Nothing else may be under way."""
        return await self.workers[0].call("quantization_bias", list(requests), deadline=self._deadline)

    async def cache_stats(self) -> CacheStats | None:
        """How often marks were there, of all workers together; None: none are kept."""
        found = await _call_all(self.workers, "cache_stats", deadline=self._deadline)
        return None if found[0] is None else sum(found, CacheStats())

    async def lm_head(self) -> LMHead:
        return await self.workers[0].call("lm_head", deadline=self._deadline)


class LearnerFailure(WorkerFailure):
    """An optimiser step failed: what the learner holds now must not be kept."""


class LearnerGroup:
    KIND = "learner"

    def __init__(self, workers: list[Worker], config: RunConfig) -> None:
        self.workers, self.fitness = workers, self._fitness(config)
        self._timeouts = config.timeouts

    @staticmethod
    def _fitness(config: RunConfig) -> Fitness:
        """Of the processes: a student and its settings are set up anew."""
        learner = config.learner
        return (learner.ranks, learner.cpus_per_rank, learner.gpus_per_rank, learner.threads)

    def set_idle(self, cluster: Cluster) -> None:
        cluster.set_idle(self.KIND, self.fitness, self.workers)

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "LearnerGroup":
        settings, deadline = config.learner, config.timeouts.start
        workers = cluster.take(cls.KIND, "learner", cls._fitness(config))
        if not workers:
            actor = ray.remote(LearnerWorker).options(
                num_cpus=settings.cpus_per_rank,
                num_gpus=settings.gpus_per_rank,
                runtime_env=_thread_environment(settings.threads),
            )
            handles = [actor.remote() for _ in range(settings.ranks)]
            workers = await _adopt("learner", handles, cluster, deadline)
        address = await workers[0].call("address", deadline=deadline)
        shared = (prepared.student_path, config.student, settings, config.objective, config.pipeline.steps)
        setups = (
            worker.call("setup", *shared, rank, settings.ranks, address, config.seed, deadline=deadline)
            for rank, worker in enumerate(workers)
        )
        await asyncio.gather(*setups)
        return cls(workers, config)

    async def connect(self, rollouts: RolloutGroup) -> None:
        handles = [worker.handle for worker in rollouts.workers]
        await self._all("connect", handles, self._timeouts.weight_sync, deadline=self._timeouts.start)

    async def step(self, batch: Batch) -> StepReport:
        try:
            reports = await self._all("step", ray.put(batch), deadline=self._timeouts.learning)
        except WorkerFailure as error:
            raise LearnerFailure(str(error)) from error
        return reports[0]

    async def publish(self, version: int, again: bool = False) -> PublishReport:
        reports = await self._all("publish", version, again, deadline=self._timeouts.weight_sync)
        return reports[0]

    async def logprobs(self, batch: Batch) -> list[NDArray[np.float32]]:
        """The student's log-probs of each example's loss tokens [T], in the order of the batch."""
        everywhere = await self._all("logprobs", ray.put(batch), deadline=self._timeouts.learning)
        found = sorted((record for records in everywhere for record in records), key=lambda r: r.example_index)
        return [record.values for record in found]

    async def perturb(self, seed: int, size: float) -> None:
        await self._all("perturb", seed, size, deadline=self._timeouts.learning)

    async def restore_weights(self) -> None:
        await self._all("restore_weights", deadline=self._timeouts.learning)

    async def evaluate(self, batch: Batch, teacher: str) -> list[ExampleDivergence]:
        """One record an example, in the order of the batch."""
        everywhere = await self._all("evaluate", ray.put(batch), teacher, deadline=self._timeouts.learning)
        return everywhere[0]

    async def examine(self, batch: Batch, k: int, teacher: str) -> list[ExampleTokens]:
        """One record an example, in the order of the batch, with the top `k` ids of student and teacher."""
        everywhere = await self._all("examine", ray.put(batch), k, teacher, deadline=self._timeouts.learning)
        return sorted((record for records in everywhere for record in records), key=lambda r: r.example_index)

    async def set_teacher_head(self, teacher: str, head: LMHead) -> None:
        await self._all("set_teacher_head", teacher, ray.put(head), deadline=self._timeouts.learning)

    async def save_checkpoint(self, directory: str) -> None:
        await self._all("save_checkpoint", directory, deadline=self._timeouts.checkpoint)

    async def load_checkpoint(self, directory: str, run_dir: str) -> None:
        await self._all("load_checkpoint", directory, run_dir, deadline=self._timeouts.checkpoint)

    async def export(self, directory: str) -> None:
        await self._all("export", directory, deadline=self._timeouts.checkpoint)

    async def _all(self, method: str, *args: Any, deadline: float) -> list[Any]:
        return await _call_all(self.workers, method, *args, deadline=deadline)


@dataclass(frozen=True)
class Workers:
    """Everybody at work; whoever may be None only where the stage and its objective need them."""

    cluster: Cluster
    rollouts: RolloutGroup
    scorers: ScoringGroup | None  # the teacher's marks
    learner: LearnerGroup
    teacher_rollouts: RolloutGroup | None = None  # sample the teacher's own sequences
    reference_scorers: ScoringGroup | None = None  # `scorers` themselves where the teacher is the reference

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "Workers":
        """Start all workers at once, or take those that an earlier run left idle.

        Raises:
            WorkerFailure: one of them could not start; the message has its last words.
        """
        cluster.dismiss_idle(but=_kinds(config, prepared))
        rollouts, scorers, learner, teacher_rollouts, reference_scorers = await asyncio.gather(
            RolloutGroup.start(config, prepared.student_path, cluster),
            _start_scorers(config, prepared, cluster),
            LearnerGroup.start(config, prepared, cluster),
            _start_teacher_rollouts(config, prepared, cluster),
            _start_reference_scorers(config, prepared, cluster),
        )
        if prepared.reference_path is not None and reference_scorers is None:
            reference_scorers = scorers
        return cls(cluster, rollouts, scorers, learner, teacher_rollouts, reference_scorers)

    async def connect(self, teacher: str) -> None:
        """Let the learner send weights to the engines, and give it the head of the teacher under this key, if any."""
        await self.learner.connect(self.rollouts)
        head: LMHead | None = await self.scorers.lm_head() if self.scorers is not None else None
        if head is not None:
            await self.learner.set_teacher_head(teacher, head)

    async def set_idle(self) -> None:
        """Keep whom a next run might use."""
        await self.rollouts.set_idle(self.cluster)
        self.learner.set_idle(self.cluster)
        if self.scorers is not None:
            self.scorers.set_idle(self.cluster)
        if self.reference_scorers is not None and self.reference_scorers is not self.scorers:
            self.reference_scorers.set_idle(self.cluster)
        if self.teacher_rollouts is not None:
            await self.teacher_rollouts.stop()  # one group of engines is kept

    async def obituaries(self) -> dict[str, str]:
        """The last words of every worker that is dead, by name."""
        found = await asyncio.gather(*(worker.obituary() for worker in self.all))
        return {worker.name: text for worker, text in zip(self.all, found, strict=True) if text is not None}

    @property
    def all(self) -> list[Worker]:
        found = [*self.rollouts.workers, *self.learner.workers]
        if self.scorers is not None:
            found += self.scorers.workers
        if self.teacher_rollouts is not None:
            found += self.teacher_rollouts.workers
        if self.reference_scorers is not None and self.reference_scorers is not self.scorers:
            found += self.reference_scorers.workers
        return found


def _kinds(config: RunConfig, prepared: Prepared) -> set[str]:
    """Of the workers that a run has and an earlier one may have left."""
    found = {RolloutGroup.KIND, LearnerGroup.KIND}
    if prepared.teacher_path is not None:
        found.add(SCORING)
    if needs_reference_scorers(config) and prepared.reference_path is not None:
        found.add(REFERENCE)
    return found


async def _start_scorers(config: RunConfig, prepared: Prepared, cluster: Cluster) -> ScoringGroup | None:
    if prepared.teacher_path is None:
        return None
    return await ScoringGroup.start(config, prepared.teacher_path, cluster, SCORING)


async def _start_teacher_rollouts(config: RunConfig, prepared: Prepared, cluster: Cluster) -> RolloutGroup | None:
    if not needs_teacher_rollouts(config) or prepared.teacher_path is None:
        return None
    return await RolloutGroup.start(config, prepared.teacher_path, cluster, name="teacher-rollout")


async def _start_reference_scorers(config: RunConfig, prepared: Prepared, cluster: Cluster) -> ScoringGroup | None:
    if not needs_reference_scorers(config) or prepared.reference_path is None:
        return None
    return await ScoringGroup.start(config, prepared.reference_path, cluster, REFERENCE)
