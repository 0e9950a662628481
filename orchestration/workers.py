"""The groups of workers behind one asynchronous face each: starting, calling, deadlines.

RolloutGroup   produces trajectories, waits for prompts and for new weights
TeacherPool    produces teacher signals, waits for trajectories (orchestration/teachers.py)
LearnerGroup   produces policy versions, waits for batches; its ranks act in lockstep
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
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
from orchestration.actors import adopt, call_all, numbered, thread_environment, values_of
from orchestration.cluster import Cluster, Fitness, Worker, WorkerFailure
from orchestration.config import BaseDivergence, RunConfig, Stage
from orchestration.models import engine_fingerprint
from orchestration.needs import needs_reference_scorers, needs_teacher_rollouts
from orchestration.preparation import Prepared
from orchestration.routing import teachers_of
from orchestration.scoring_group import ScoringGroup
from orchestration.streams import merged
from orchestration.teacher_rules import TEACHER
from orchestration.teachers import TeacherPool, group_name, needed_groups
from rollout.trajectory import RolloutRequest, Trajectory
from rollout.worker import RolloutWorker
from scoring.config import Quantization, TeacherBackend, TeacherConfig, TeacherWeights
from scoring.lm_head import LMHead, MixedHead

REFERENCE, BASE = "reference", "base"  # whom scoring workers speak for, if not for a teacher


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
        fitness = (count, transfer, engine_fingerprint(model_path), *values_of(settings))
        workers = cluster.take(cls.KIND, name, fitness)
        if workers:
            await call_all(workers, "load", model_path, deadline=deadline)
        else:
            actor = ray.remote(RolloutWorker).options(
                num_cpus=settings.cpus_per_worker,
                num_gpus=settings.gpus_per_worker,
                runtime_env=thread_environment(settings.threads),
            )
            handles = [actor.remote(model_path, settings, transfer, config.seed) for _ in range(count)]
            workers = await adopt(numbered(name, count), handles, cluster, deadline)
        await call_all(workers, "ready", deadline=deadline)
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
        return await call_all(self.workers, "prompt_logprobs", list(token_ids), deadline=self._deadline)

    async def stop(self) -> None:
        await call_all(self.workers, "shutdown", deadline=self._deadline)
        for worker in self.workers:
            worker.stop()


class TeacherEngines:
    """The teachers' own engines before the workers start, one at a time: they are there once somebody has asked."""

    def __init__(self, config: RunConfig, prepared: Prepared, cluster: Cluster) -> None:
        self._config, self._prepared, self._cluster = config, prepared, cluster
        self._group: RolloutGroup | None = None
        self._path: str | None = None

    async def get(self, key: str = TEACHER) -> RolloutGroup:
        path = self._prepared.teachers[key].path
        if self._group is None or self._path != path:
            await self.release()
            count = self._config.rollout.workers if self._config.stage is Stage.cold_start else 1
            self._group = await RolloutGroup.start(self._config, path, self._cluster, "teacher-rollout", count)
            self._path = path
        return self._group

    async def release(self) -> None:
        """Leave the engines to whoever starts now, as far as they can be used."""
        if self._group is not None:
            await self._group.set_idle(self._cluster)
            self._group = None


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
                runtime_env=thread_environment(settings.threads),
            )
            handles = [actor.remote() for _ in range(settings.ranks)]
            workers = await adopt(numbered("learner", settings.ranks), handles, cluster, deadline)
        address = await workers[0].call("address", deadline=deadline)
        shared = (prepared.student_path, config.student, settings, config.objective, config.pipeline.steps)
        setups = (
            worker.call("setup", *shared, rank, settings.ranks, address, config.seed, deadline=deadline)
            for rank, worker in enumerate(workers)
        )
        await asyncio.gather(*setups)
        return cls(workers, config)

    async def connect(self, readers: Sequence[Worker]) -> None:
        """Let rank 0 send weights to engines and to whoever else follows the student."""
        handles = [worker.handle for worker in readers]
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

    async def set_teacher_head(self, teacher: str, head: LMHead | MixedHead) -> None:
        await self._all("set_teacher_head", teacher, ray.put(head), deadline=self._timeouts.learning)

    async def save_checkpoint(self, directory: str) -> None:
        await self._all("save_checkpoint", directory, deadline=self._timeouts.checkpoint)

    async def load_checkpoint(self, directory: str, run_dir: str) -> None:
        await self._all("load_checkpoint", directory, run_dir, deadline=self._timeouts.checkpoint)

    async def export(self, directory: str) -> None:
        await self._all("export", directory, deadline=self._timeouts.checkpoint)

    async def _all(self, method: str, *args: Any, deadline: float) -> list[Any]:
        return await call_all(self.workers, method, *args, deadline=deadline)


@dataclass(frozen=True)
class Workers:
    """Everybody at work; whoever may be None only where the stage and its objective need them."""

    cluster: Cluster
    rollouts: RolloutGroup
    teachers: TeacherPool | None
    learner: LearnerGroup
    teacher_rollouts: RolloutGroup | None = None  # sample the teacher's own sequences
    reference_scorers: ScoringGroup | None = None  # a teacher's own group where it is the reference
    base_scorers: ScoringGroup | None = None  # the initial student; perhaps one of the other groups

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "Workers":
        """Start all workers at once, or take those that an earlier run left idle.

        Raises:
            WorkerFailure: one of them could not start; the message has its last words.
        """
        cluster.dismiss_idle(but=_kinds(config, prepared))
        rollouts, teachers, learner, teacher_rollouts, reference, base = await asyncio.gather(
            RolloutGroup.start(config, prepared.student_path, cluster),
            _start_teachers(config, prepared, cluster),
            LearnerGroup.start(config, prepared, cluster),
            _start_teacher_rollouts(config, prepared, cluster),
            start_reference(config, prepared, cluster),
            _start_base(config, prepared, cluster),
        )
        groups = teachers.groups if teachers is not None else {}
        if prepared.reference_path is not None and reference is None:
            reference = groups[TEACHER]
        serving = base_group(config, prepared)
        base = base or (reference if serving == REFERENCE else groups.get(serving or ""))
        return cls(cluster, rollouts, teachers, learner, teacher_rollouts, reference, base)

    @property
    def scorers(self) -> ScoringGroup | None:
        """Of the teacher that every run has; None where none of its prompts are this teacher's."""
        return None if self.teachers is None else self.teachers.groups.get(TEACHER)

    async def connect(self) -> None:
        """Let the learner send weights to those that follow it, and give it the heads of all who show theirs."""
        followers = [] if self.teachers is None else self.teachers.followers
        await self.learner.connect([*self.rollouts.workers, *followers])
        await self.send_heads()
        if self.base_scorers is not None:
            await self._send_head(BASE, await self.base_scorers.lm_head())

    async def send_heads(self) -> None:
        """The teachers' heads as they are now; of one whose weights move, again before each evaluation."""
        if self.teachers is not None:
            for key in self.teachers.keys:
                await self._send_head(key, await self.teachers.lm_head(key))

    async def _send_head(self, key: str, head: LMHead | MixedHead | None) -> None:
        if head is not None:
            await self.learner.set_teacher_head(key, head)

    async def set_idle(self) -> None:
        """Keep whom a next run might use."""
        await self.rollouts.set_idle(self.cluster)
        self.learner.set_idle(self.cluster)
        for group in self._scoring_groups:
            group.set_idle()
        if self.teacher_rollouts is not None:
            await self.teacher_rollouts.stop()  # one group of engines is kept

    async def obituaries(self) -> dict[str, str]:
        """The last words of every worker that is dead, by name."""
        found = await asyncio.gather(*(worker.obituary() for worker in self.all))
        return {worker.name: text for worker, text in zip(self.all, found, strict=True) if text is not None}

    @property
    def all(self) -> list[Worker]:
        found = [*self.rollouts.workers, *self.learner.workers]
        for group in self._scoring_groups:
            found += group.workers
        if self.teacher_rollouts is not None:
            found += self.teacher_rollouts.workers
        return found

    @property
    def _scoring_groups(self) -> list[ScoringGroup]:
        """Each once."""
        groups = [] if self.teachers is None else list(self.teachers.groups.values())
        others = [group for group in (self.reference_scorers, self.base_scorers) if group is not None]
        return list({id(group): group for group in (*groups, *others)}.values())


def _kinds(config: RunConfig, prepared: Prepared) -> set[str]:
    """Of the workers that a run has and an earlier one may have left."""
    found = {RolloutGroup.KIND, LearnerGroup.KIND, *map(group_name, needed_groups(config, prepared))}
    if needs_reference_scorers(config) and prepared.reference_path is not None:
        found.add(REFERENCE)
    if base_group(config, prepared) == BASE:
        found.add(BASE)
    return found


async def _start_teachers(config: RunConfig, prepared: Prepared, cluster: Cluster) -> TeacherPool | None:
    return await TeacherPool.start(config, prepared, cluster) if prepared.teachers else None


async def _start_teacher_rollouts(config: RunConfig, prepared: Prepared, cluster: Cluster) -> RolloutGroup | None:
    if not needs_teacher_rollouts(config) or prepared.teacher_path is None:
        return None
    return await RolloutGroup.start(config, prepared.teacher_path, cluster, name="teacher-rollout")


async def start_reference(config: RunConfig, prepared: Prepared, cluster: Cluster) -> ScoringGroup | None:
    if not needs_reference_scorers(config) or prepared.reference_path is None:
        return None
    return await ScoringGroup.start(config, prepared.reference_path, cluster, REFERENCE, _plain(config))


async def _start_base(config: RunConfig, prepared: Prepared, cluster: Cluster) -> ScoringGroup | None:
    if base_group(config, prepared) != BASE:
        return None
    return await ScoringGroup.start(config, prepared.student_path, cluster, BASE, _plain(config), occasional=True)


def _plain(config: RunConfig) -> TeacherConfig:
    """Of a model that is no teacher and only scores."""
    return TeacherConfig(trust_remote_code=config.teacher.trust_remote_code)


def base_group(config: RunConfig, prepared: Prepared) -> str | None:
    """Whose workers hold the initial student for evaluations: a teacher's key, REFERENCE, or BASE for some of its own.

    None where the divergence from it is not measured.
    """
    wanted = config.evaluation.base_kl
    if wanted is BaseDivergence.never:
        return None
    settings = teachers_of(config)
    for key in needed_groups(config, prepared):
        if prepared.teachers[key].path == prepared.student_path and holds_checkpoint(settings[key]):
            return key
    if needs_reference_scorers(config) and prepared.reference_path == prepared.student_path:
        return REFERENCE
    return BASE if wanted is BaseDivergence.always else None


def can_answer(teacher: TeacherConfig) -> bool:
    """Whether a teacher's own answers can be had from an engine that is started for it."""
    return not teacher.mixture and teacher.backend in (TeacherBackend.transformers, TeacherBackend.vllm)


def holds_checkpoint(teacher: TeacherConfig) -> bool:
    """Whether a teacher's workers have the checkpoint's own weights throughout, whole."""
    own = teacher.backend is TeacherBackend.transformers and teacher.quantization is Quantization.none
    return own and teacher.weights is TeacherWeights.fixed
