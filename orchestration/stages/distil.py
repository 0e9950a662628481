"""On-policy distillation: trajectories of the student, and of others where the objective mixes them in, are scored by
the teacher as each one finishes, and learned from.
"""

import asyncio
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from orchestration.stages.on_policy import REFERENCE, OnPolicyStage
from orchestration.stages.training import StageContext
from orchestration.views import make_views
from rollout.trajectory import Trajectory
from scoring.signal import ScoringRequest, TeacherSignal


class Distillation(OnPolicyStage):
    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        tokenizer = self.prepared.tokenizer
        readers = self.prepared.teacher_tokenizer or tokenizer
        self._views = make_views(self.config, self.requirements, tokenizer, readers)

    async def score(self, trajectory: Trajectory) -> TeacherSignal:
        """The teacher's marks, and a reference's log-probs where the objective extrapolates from one."""
        scorers = self.workers.scorers
        assert scorers is not None  # the stage refuses objectives without a teacher
        item = self._prompts[trajectory.prompt_id]
        view = self._views.of(item.prompt.teacher, item.teacher_ids, trajectory, item.teacher_follow_ups)
        signal, reference = await asyncio.gather(scorers.score(view.request), self._reference_logprobs(trajectory))
        self.tokens["scored"] += view.request.marked_tokens
        return replace(view.translate(signal), reference_logprobs=reference)

    async def _reference_logprobs(self, trajectory: Trajectory) -> NDArray[np.float32] | None:
        """[T]: of the response to the student's prompt, whatever the teacher sees of it."""
        if self.workers.reference_scorers is None:
            return None
        request = ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids)
        return (await self.workers.reference_scorers.score(request)).logprobs
