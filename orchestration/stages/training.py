"""What the stages share: a step of the learner, and where the weights come from and go to.

    next_batch ─► weigh ─► learn ─► publish ─► advance

`orchestration.runs.run` drives; a stage says where its batches come from and what each of their sequences weighs.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

from learner.packing import pack
from learner.records import Example, StepReport
from orchestration.config.schema import RunConfig
from orchestration.measure.evaluation import Evaluator
from orchestration.pipeline.fleet import Fleet
from orchestration.pipeline.progress import Cursor, RunProgress
from orchestration.pipeline.weighting import keeps, with_loss_reduction
from orchestration.prepare.inputs import Prepared
from orchestration.results.summary import Answers
from tutelage.errors import LearnerFailure, WorkerFailure
from tutelage.lm.packed import shares_prefixes
from tutelage.records.prompt import with_ids
from tutelage.worker import Worker, call_all

WHOLE_RUN = "run"  # beside the roles of workers, in the cluster's count of restarts
TEACHERS = "teachers"  # in a checkpoint: the averages of teachers that keep one


class Batches(Protocol):
    """Where the batches of a stage come from."""

    @property
    def cursor(self) -> Cursor:
        """What to resume from if the run stopped now, counting the batch in training as trained."""

    @property
    def ready(self) -> int:
        """Trajectories that could be trained now."""

    def start(self) -> None: ...

    async def next_batch(self) -> list[Example]:
        """The next `pipeline.batch_size` examples, ordered by slot."""

    def advance(self, version: int) -> None:
        """The batch is trained; the engines have the weights of `version` where they follow the learner."""

    async def close(self) -> None:
        """Give up what is being produced."""


@dataclass
class TrainingStage(ABC):
    """One run of a stage: the run's collaborators, and what the stage makes of them."""

    config: RunConfig
    prepared: Prepared
    fleet: Fleet
    evaluator: Evaluator
    progress: RunProgress
    run_dir: Path

    engines_follow: ClassVar[bool] = True  # every version is published; else only the ones to be evaluated

    def __post_init__(self) -> None:
        self._prompts = with_ids(self.prepared.train)
        self._engine_version = 0  # the engines start with the initial student
        self._readers = list(self.fleet.rollouts.workers)  # the engines that the learner sends its weights to
        self._skipped_in_a_row = 0
        self._weights = asyncio.Lock()  # held while they are made or sent
        self.fleet.rollouts.enlist_with = self._bring_up_to_date

    @property
    @abstractmethod
    def batches(self) -> Batches: ...

    def weigh(self, batch: Sequence[Example]) -> list[Example]:
        """The batch with the weights of its gates and of the average that the loss is."""
        objective = self.config.objective
        gated = [replace(e, weight=float(keeps(objective.gate, e.trajectory, self.has_context(e)))) for e in batch]
        return with_loss_reduction(gated, objective.loss_reduction, self.config.sampling.max_tokens)

    def has_context(self, example: Example) -> bool:
        """Whether the teacher saw more of its prompt than the student."""
        return self._prompts[example.trajectory.prompt_id].has_context

    def step_metrics(self, batch: Sequence[Example]) -> dict[str, float]:
        """What the stage itself has to say about a step."""
        restarts = self.fleet.cluster.restarts
        return {"rollout/restarts": float(self.fleet.rollouts.restarts), "run/restarts": float(restarts[WHOLE_RUN])}

    async def learn(self, batch: Sequence[Example]) -> StepReport:
        """Make the next version of the policy from a weighed batch."""
        learner, version = self.config.learner, self.progress.version
        share_prefixes, special_ids = shares_prefixes(learner.attention.value), self.prepared.special_ids
        packed = pack(batch, learner.ranks, learner.micro_batch_tokens, version, share_prefixes, special_ids)
        async with self._weights:
            with self.progress.clock.span("learning"):
                report = await self.fleet.learner.step(packed)
            self._check_skipped(report)
            self.progress.version = report.policy_version
        self.progress.tokens["trained"] += report.loss_tokens
        return report

    def _check_skipped(self, report: StepReport) -> None:
        """
        Raises:
            LearnerFailure: too many steps in a row were skipped.
        """
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if report.skipped else 0
        allowed = self.config.recovery.max_skipped_steps
        if self._skipped_in_a_row > allowed:
            raise LearnerFailure(
                f"step {report.policy_version}: {report.skipped} is not finite, and {allowed} steps before it were "
                "skipped for the like (recovery.max_skipped_steps); lower learner.learning_rate, or "
                "see in samples/ what it learned from"
            )

    async def publish(self) -> None:
        """Give the engines the learner's weights, unless they have them; those that die meanwhile are left out."""
        engines = self.fleet.rollouts
        with self.progress.clock.span("weight_sync"):
            while self._engine_version != self.progress.version:
                if not engines.workers:
                    await engines.present()  # who comes has them
                    continue
                try:
                    if self._readers_live:
                        async with self._weights:
                            await self.fleet.learner.publish(self.progress.version)
                        self._engine_version = self.progress.version
                    else:
                        # They hold requests and perhaps half of the weights until they are sent again.
                        await self._bring_up_to_date()
                except WorkerFailure:
                    await engines.strike_off_the_dead()
                    if self._readers_live:
                        raise

    @property
    def _readers_live(self) -> bool:
        """Whether nobody was struck off whom the learner sends its weights to."""
        return all(reader in self.fleet.rollouts.workers for reader in self._readers)

    async def _bring_up_to_date(self, *newcomers: Worker) -> None:
        """Send all engines the weights that the learner has, and enlist those that are new."""
        async with self._weights:
            self._readers = [*self.fleet.rollouts.workers, *newcomers]
            await self.fleet.connect_readers(*newcomers)
            await self.fleet.learner.publish(self.progress.version, again=True)
            self._engine_version = self.progress.version
            for worker in newcomers:
                self.fleet.rollouts.enlist(worker)

    async def evaluate(self) -> Answers:
        """The held-out prompts answered with the weights that the engines hold."""
        with self.progress.clock.span("evaluation"):
            return await self.evaluator.student(self.fleet, self.progress.version)

    # Where the weights come from and go to

    async def restore(self, checkpoint: Path | None) -> None:
        """Give learner and engines the weights that the run starts from, and the learner the teacher's head."""
        await self.fleet.connect()
        if checkpoint is not None:
            await self.fleet.learner.load_checkpoint(str(checkpoint / "learner"), str(self.run_dir))
            await self.fleet.teachers.restore(checkpoint / TEACHERS, self.config.timeouts.checkpoint)

    async def can_save(self, deadline: float) -> None:
        """
        Raises:
            WorkerFailure: one of those whose state a checkpoint has does not answer.
        """
        await self.fleet.learner.ping(deadline)
        for group in self.fleet.teachers.distinct.values():
            if group.averages:
                await call_all(await group.present(), "ping", deadline=deadline)

    async def save(self, folder: Path) -> None:
        """All that the workers know, into the folder of a checkpoint."""
        await self.fleet.learner.save_checkpoint(str(folder / "learner"))
        await self.fleet.teachers.save(folder / TEACHERS, self.config.timeouts.checkpoint)

    async def go_back(self, checkpoint: Path, version: int) -> None:
        """Give the learner the weights of an earlier version of this run; the engines keep the later ones."""
        await self.fleet.learner.load_checkpoint(str(checkpoint / "learner"), str(self.run_dir))
        self.progress.version = version
