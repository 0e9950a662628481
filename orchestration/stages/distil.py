"""On-policy distillation: trajectories of the student, and of others where the objective mixes them in, are scored by
the teacher as each one finishes, and learned from.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learner.batch import Example
from learner.objectives import build_objective
from learner.objectives.config import TaskRewardMix
from orchestration.gates import with_advantages
from orchestration.grading import Grader
from orchestration.pipeline import Pipeline
from orchestration.stages.training import StageContext, TrainingStage
from orchestration.states import StateSource
from rollout.trajectory import Origin, Trajectory
from scoring.request import build_request
from scoring.signal import ScoringRequest, TeacherSignal

REFERENCE = "reference"  # key of the model that rewards are extrapolated from


class Distillation(TrainingStage):
    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        config, workers = context.config, context.workers
        self._requirements = build_objective(config.objective).requirements
        self._states = StateSource(
            config, context.prepared.train, self._requirements.candidates, workers.rollouts, workers.teacher_rollouts
        )
        self._grader = Grader(context.verifier, context.prepared.train, context.prepared.tokenizer)
        self._compares_rewards = config.objective.task_reward.mix is not TaskRewardMix.none
        self._pipeline = Pipeline(
            self._roll_out,
            self._score,
            batch_size=config.pipeline.batch_size,
            max_staleness=config.pipeline.max_staleness,
            total_slots=config.pipeline.steps * config.pipeline.batch_size,
            clock=context.clock,
            group_size=config.sampling.samples_per_prompt if self._compares_rewards else 1,
            cursor=context.cursor,
            version=context.version,
        )

    @property
    def batches(self) -> Pipeline:
        return self._pipeline

    def weigh(self, batch: Sequence[Example]) -> list[Example]:
        """The batch with the weights of its gates and, where they are learned from, its task advantages."""
        weighed = super().weigh(batch)
        samples = self.config.sampling.samples_per_prompt
        return with_advantages(weighed, samples) if self._compares_rewards else weighed

    # What the pipeline calls

    async def _roll_out(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        async for trajectory in self._states.roll_out(slots):
            if trajectory.origin is not Origin.DATASET:
                self.tokens["rollout"] += len(trajectory.response_ids)
            yield await self._grader.grade(trajectory)

    async def _score(self, trajectory: Trajectory) -> TeacherSignal:
        scorers = self.workers.scorers
        assert scorers is not None  # the stage refuses objectives without a teacher
        item = self._prompts[trajectory.prompt_id]
        request = build_request(item.prompt.teacher, item.teacher_ids, trajectory, self._requirements)
        signal, reference = await asyncio.gather(scorers.score(request), self._reference_logprobs(trajectory))
        self.tokens["scored"] += len(trajectory.response_ids)
        return replace(signal, reference_logprobs=reference)

    async def _reference_logprobs(self, trajectory: Trajectory) -> NDArray[np.float32] | None:
        """[T]: of the response to the student's prompt, whatever the teacher sees of it."""
        if self.workers.reference_scorers is None:
            return None
        request = ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids)
        return (await self.workers.reference_scorers.score(request)).logprobs
