"""What distillation and reinforcement share: trajectories stream through the pipeline, graded, scored and compared.

slots ─► rollouts ─► verifier? ─► scores? ─► groups ─► batches
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from learner.objectives import requirements
from learner.objectives.config import TaskRewardMix
from learner.records import Example
from orchestration.config.facts import teachers_of
from orchestration.pipeline.pipeline import Pipeline
from orchestration.pipeline.sources import TrajectorySource
from orchestration.pipeline.weighting import with_advantages
from orchestration.stages.training import TrainingStage
from rollout.grading import Grader
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import Origin, Trajectory


@dataclass
class OnPolicyStage(TrainingStage):
    """A stage whose slots roll out all through the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config, prepared = self.config, self.prepared
        self.needs = requirements(config.objective)
        engines = self.fleet.rollouts, self.fleet.teacher_rollouts
        candidates = self.needs.candidates
        if candidates:  # more than are compared where some have no equal at a teacher
            across = [teacher.twin_candidates for teacher in teachers_of(config).values() if teacher.cross_tokenizer]
            candidates = max([candidates, *across])
        self._source = TrajectorySource(config, prepared.train, candidates, *engines)
        self._grader = Grader(self.evaluator.verifier, prepared.train, prepared.tokenizer)
        self._compares_rewards = config.objective.task_reward.mix is not TaskRewardMix.none

    @cached_property
    def batches(self) -> Pipeline:
        pipeline, waits = self.config.pipeline, self._compares_rewards or self.waits_for_samples
        return Pipeline(
            self._roll_out,
            self.score,
            batch_size=pipeline.batch_size,
            max_staleness=pipeline.max_staleness,
            total_slots=pipeline.steps * pipeline.batch_size,
            clock=self.progress.clock,
            group_size=self.config.sampling.samples_per_prompt if waits else 1,
            keep=self.keep,
            max_replaced=pipeline.max_replaced_groups,
            cursor=self.progress.resumed_from,
            version=self.progress.version,
        )

    @property
    def waits_for_samples(self) -> bool:
        """Whether a response is scored only once all samples of its prompt are there."""
        return False

    def keep(self, group: Sequence[Example]) -> bool:
        """Whether a group of samples is worth training on."""
        return True

    @abstractmethod
    async def score(self, trajectory: Trajectory) -> TeacherSignal | None:
        """What another model says about a trajectory, if one is asked."""

    def graded(self, trajectory: Trajectory) -> None:
        """A response has its reward, and is about to be scored."""

    def weigh(self, batch: Sequence[Example]) -> list[Example]:
        """The batch with its weights and, where they are learned from, its task advantages."""
        weighed = super().weigh(batch)
        if not self._compares_rewards:
            return weighed
        task, samples = self.config.objective.task_reward, self.config.sampling.samples_per_prompt
        return with_advantages(weighed, samples, task.divide_by_deviation)

    async def _roll_out(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        async for graded in self._grader.grade_all(self._source.roll_out(slots)):
            if graded.origin is not Origin.DATASET:
                self.progress.tokens["rollout"] += len(graded.response_ids)
            self.graded(graded)
            yield graded
