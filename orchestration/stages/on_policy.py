"""What distillation and reinforcement share: trajectories stream through the pipeline, graded, scored and compared.

slots ─► rollouts ─► verifier? ─► scores? ─► groups ─► batches
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence

from learner.objectives import requirements
from learner.objectives.config import TaskRewardMix
from learner.records import Example
from orchestration.config.facts import sampled_candidates
from orchestration.pipeline.pipeline import Keep, Pipeline
from orchestration.pipeline.sources import TrajectorySource
from orchestration.pipeline.weighting import with_advantages
from orchestration.stages.training import StageContext, TrainingStage
from rollout.verifiers import Grader
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import Origin, Trajectory


class OnPolicyStage(TrainingStage):
    """
    Args:
        keep: whether a group of samples is worth training on; None: all are.
        waits_for_samples: a response is scored only once all samples of its prompt are there.
    """

    def __init__(self, context: StageContext, keep: Keep | None = None, waits_for_samples: bool = False) -> None:
        super().__init__(context)
        config, prepared, workers = context.config, context.prepared, context.workers
        self.requirements = requirements(config.objective)
        candidates = sampled_candidates(config)
        self._states = TrajectorySource(config, prepared.train, candidates, workers.rollouts, workers.teacher_rollouts)
        self._grader = Grader(context.verifier, prepared.train, prepared.tokenizer)
        self._compares_rewards = config.objective.task_reward.mix is not TaskRewardMix.none
        self._pipeline = Pipeline(
            self._roll_out,
            self.score,
            batch_size=config.pipeline.batch_size,
            max_staleness=config.pipeline.max_staleness,
            total_slots=config.pipeline.steps * config.pipeline.batch_size,
            clock=context.clock,
            group_size=config.sampling.samples_per_prompt if self._compares_rewards or waits_for_samples else 1,
            keep=keep,
            max_replaced=config.pipeline.max_replaced_groups,
            cursor=context.cursor,
            version=context.version,
        )

    @property
    def batches(self) -> Pipeline:
        return self._pipeline

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
        async for trajectory in self._states.roll_out(slots):
            if trajectory.origin is not Origin.DATASET:
                self.tokens["rollout"] += len(trajectory.response_ids)
            graded = await self._grader.grade(trajectory)
            self.graded(graded)
            yield graded
