"""On-policy distillation: trajectories of the student, and of others where the objective mixes them in, are scored by
their teachers as each one finishes, and learned from.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learner.records import Example
from orchestration.prepare.teachers import make_dynamic_context, make_request_builder
from orchestration.stages.on_policy import OnPolicyStage
from scoring.pool import REFERENCE
from tutelage.errors import WorkerFailure
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.records.trajectory import Trajectory


@dataclass
class Distillation(OnPolicyStage):
    """Learn from the teachers' scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._context = make_dynamic_context(self.config, self.prepared)
        self._builder = make_request_builder(self.config, self.prepared)

    @property
    def waits_for_samples(self) -> bool:
        return self._context.wait_for_samples

    def graded(self, trajectory: Trajectory) -> None:
        self._context.arrived(trajectory)

    async def score(self, trajectory: Trajectory) -> TeacherSignal:
        """The teacher's scores, and a reference's log-probs where the objective extrapolates from one."""
        item = self._prompts[trajectory.prompt_id]
        view = await self._context.of(trajectory, item)
        asked = self._builder.build(item.prompt.teacher, view.prompt_ids, trajectory, item.teacher_follow_ups)
        signal, reference = await asyncio.gather(
            self.fleet.teachers.score(asked.request, view.members), self._reference_logprobs(trajectory)
        )
        if np.isnan(signal.logprobs).any():
            raise WorkerFailure(
                f"the teacher {item.prompt.teacher!r} gave log-probs that are no numbers (NaN) on a response to prompt "
                f"{trajectory.prompt_id!r}; its weights are damaged or too large for scoring.dtype="
                f"{self.config.scoring.dtype.value}: set float32, or choose another teacher.model"
            )
        self.progress.tokens["scored"] += asked.request.num_scored
        return replace(asked.to_student_tokens(signal), reference_logprobs=reference, privileged=view.privileged)

    def has_context(self, example: Example) -> bool:
        return example.signal is not None and example.signal.privileged

    def step_metrics(self, batch: Sequence[Example]) -> dict[str, float]:
        privileged = float(np.mean([self.has_context(example) for example in batch]))
        teachers = self.fleet.teachers.step_metrics()
        return {**super().step_metrics(batch), **teachers, "teacher/privileged_share": privileged}

    async def _reference_logprobs(self, trajectory: Trajectory) -> NDArray[np.float32] | None:
        """[T]: of the response to the student's prompt, whatever the teacher sees of it."""
        if REFERENCE not in self.fleet.teachers:
            return None
        request = ScoringRequest(
            REFERENCE, trajectory.prompt_ids, trajectory.response_ids, stops=self.prepared.ends.merged
        )
        return (await self.fleet.teachers.score(request)).logprobs
