"""On-policy distillation: trajectories of the student, and of others where the objective mixes them in, are scored by
their teachers as each one finishes, and learned from.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learner.batch import Example
from orchestration.marking import reference_request
from orchestration.readings import Readings
from orchestration.stages.on_policy import OnPolicyStage
from orchestration.stages.training import StageContext
from orchestration.teacher_views import TeacherViews
from rollout.trajectory import Trajectory
from scoring.signal import TeacherSignal


class Distillation(OnPolicyStage):
    def __init__(self, context: StageContext) -> None:
        self._views = TeacherViews(context.config, context.prepared)
        super().__init__(context, waits_for_samples=self._views.wait_for_samples)
        self._readings = Readings(context.config, context.prepared, self.requirements)

    def graded(self, trajectory: Trajectory) -> None:
        self._views.arrived(trajectory)

    async def score(self, trajectory: Trajectory) -> TeacherSignal:
        """The teacher's marks, and a reference's log-probs where the objective extrapolates from one."""
        teachers = self.workers.teachers
        assert teachers is not None  # the stage refuses objectives without a teacher
        item = self._prompts[trajectory.prompt_id]
        view = await self._views.of(trajectory, item)
        reading = self._readings.of(item, view.prompt_ids, trajectory)
        signal, reference = await asyncio.gather(
            teachers.score(reading.request, view.members), self._reference_logprobs(trajectory)
        )
        self.tokens["scored"] += reading.request.marked_tokens
        return replace(reading.translate(signal), reference_logprobs=reference, privileged=view.privileged)

    def has_context(self, example: Example) -> bool:
        return example.signal is not None and example.signal.privileged

    def step_metrics(self, batch: Sequence[Example]) -> dict[str, float]:
        assert self.workers.teachers is not None
        privileged = [example.signal is not None and example.signal.privileged for example in batch]
        return {**self.workers.teachers.step_metrics(), "teacher/privileged_share": float(np.mean(privileged))}

    async def _reference_logprobs(self, trajectory: Trajectory) -> NDArray[np.float32] | None:
        """[T]: of the response to the student's prompt, whatever the teacher sees of it."""
        if self.workers.reference_scorers is None:
            return None
        return (await self.workers.reference_scorers.score(reference_request(trajectory))).logprobs
