"""All workers of a run: starting them, connecting them, keeping them for the next run.

RolloutGroup   produces trajectories, waits for prompts and for new weights
TeacherPool    produces teacher signals, waits for trajectories
LearnerGroup   produces policy versions, waits for batches; its ranks act in lockstep
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from learner.config import LearnerSetup
from learner.group import LearnerGroup
from orchestration.config.facts import needs_teacher_rollouts, weight_transfer
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.plan import learner_placement
from orchestration.prepare.teachers import uncommon_ids
from rollout.group import RolloutGroup
from scoring.config import TEACHER
from scoring.pool import BASE, TeacherPool
from tutelage.aio import together
from tutelage.cluster import Cluster
from tutelage.settings import Placement
from tutelage.stops import Swap, TurnEnds
from tutelage.worker import Worker


async def start_engines(
    config: RunConfig,
    model_path: str,
    cluster: Cluster,
    ends: TurnEnds,
    name: str = "rollout",
    count: int | None = None,
    placement: Placement = Placement.spread,
) -> RolloutGroup:
    """Start a run's rollout engines with a checkpoint, or take idle ones.

    Args:
        ends: of the run's turns.
        count: of workers; None: as many as the configuration says.
    """
    settings = config.rollout if count is None else replace(config.rollout, workers=count)
    transfer = weight_transfer(config)
    return await RolloutGroup.start(
        model_path, settings, transfer, config.seed, config.timeouts, cluster, config.recovery, name, ends, placement
    )


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
            count = self._config.rollout.workers if STAGES[self._config.stage].collects else 1
            ends = self._prepared.ends
            self._group = await start_engines(self._config, path, self._cluster, ends, "teacher-rollout", count)
            self._path = path
        return self._group

    async def release(self) -> None:
        """Leave the engines to whoever starts now, as far as they can be used."""
        if self._group is not None:
            await self._group.set_idle()
            self._group = None


@dataclass(frozen=True)
class Fleet:
    """Everybody at work in a run."""

    cluster: Cluster
    rollouts: RolloutGroup
    teachers: TeacherPool  # empty where nothing is scored
    learner: LearnerGroup
    teacher_rollouts: RolloutGroup | None = None  # sample the teacher's own sequences, where they are learned from
    swaps: Mapping[str, Swap] = field(default_factory=dict)  # of ends, by key of a teacher
    # ids that only one of two tokenizers has, by the keys of the teachers, where there are some
    uncommon: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "Fleet":
        """Start all workers at once, or take those that an earlier run left idle.

        Raises:
            WorkerFailure: one of them could not start; the message has the end of its log.
        """
        roles = prepared.roles
        cluster.dismiss_idle(but={RolloutGroup.KIND, LearnerGroup.KIND, *(scorer.name for scorer in roles.groups)})
        setup = LearnerSetup(
            prepared.student_path,
            config.student,
            replace(config.learner, weight_transfer=weight_transfer(config)),
            config.objective,
            config.pipeline.steps,
            config.seed,
            config.rollout.max_model_len,
            prepared.ends,
        )
        timeouts, recovery, placement = config.timeouts, config.recovery, config.cluster.placement
        learners_go = learner_placement(config, roles, cluster.nodes(free=True))
        learner, rollouts, teachers, teacher_rollouts = await together(
            LearnerGroup.start(setup, timeouts, cluster, recovery.wait_for_node, learners_go),  # others go by it
            start_engines(config, prepared.student_path, cluster, prepared.ends, placement=placement.engines),
            TeacherPool.start(roles.scorers, roles.mixtures, config.scoring, timeouts, cluster, recovery),
            _start_teacher_rollouts(config, prepared, cluster),
        )
        swaps, uncommon = prepared.ends.swaps, uncommon_ids(config, prepared)
        return cls(cluster, rollouts, teachers, learner, teacher_rollouts, swaps, uncommon)

    async def connect(self) -> None:
        """Let the learner send weights to those that follow it, and give it the heads of all who show theirs."""
        await self.connect_readers()
        await self.send_heads()
        if BASE in self.teachers:
            await self.send_head(BASE)

    async def connect_readers(self, *newcomers: Worker) -> None:
        """Let the learner send weights to all that follow it, newcomers among the engines too."""
        await self.learner.connect([*self.rollouts.workers, *newcomers, *self.teachers.followers])

    async def send_heads(self) -> None:
        """The teachers' heads as they are now; of one whose weights move, again before each evaluation."""
        for key in (*self.teachers.teachers, *self.teachers.mixtures):
            await self.send_head(key)

    async def send_head(self, role: str) -> None:
        """Give the learner the head behind a role's hidden states, if there is one."""
        head = await self.teachers.lm_head(role)
        if head is not None and role in self.swaps:
            head = head.swapped(self.swaps[role])
        if head is not None and role in self.uncommon:  # both softmaxes leave out what lies behind the shorter head
            head = head.shortened(int(self.uncommon[role].min()))
        if head is not None:
            await self.learner.set_teacher_head(role, head)

    async def set_idle(self) -> None:
        """Keep whom a next run might use."""
        await self.rollouts.set_idle()
        self.learner.set_idle(self.cluster)
        self.teachers.set_idle()
        if self.teacher_rollouts is not None:
            await self.teacher_rollouts.stop()  # one group of engines is kept

    async def hand_over(self) -> None:
        """Keep the workers for another start of this run that can take part in it; whoever else is left is ended.

        The learner's ranks are not kept: what they hold is of no version that is saved.
        """
        if self.teacher_rollouts is not None:
            await self.teacher_rollouts.disband()
        if await self.rollouts.disband():
            await self.rollouts.set_idle()
        for group in self.teachers.distinct.values():
            if await group.disband():
                group.set_idle()
        self.cluster.dismiss_all_but_idle()

    async def death_reports(self) -> dict[str, str]:
        """Who died and what it last printed, by the name of every worker that is dead."""
        workers = self.all  # once: some are struck off and replaced while they are asked
        reports = await asyncio.gather(*(worker.death_report() for worker in workers))
        return {worker.name: text for worker, text in zip(workers, reports, strict=True) if text is not None}

    @property
    def all(self) -> list[Worker]:
        others = [] if self.teacher_rollouts is None else self.teacher_rollouts.workers
        return [*self.rollouts.workers, *self.learner.workers, *self.teachers.workers, *others]


async def _start_teacher_rollouts(config: RunConfig, prepared: Prepared, cluster: Cluster) -> RolloutGroup | None:
    if not needs_teacher_rollouts(config) or prepared.teacher_path is None:
        return None
    return await start_engines(config, prepared.teacher_path, cluster, prepared.ends, "teacher-rollout")
