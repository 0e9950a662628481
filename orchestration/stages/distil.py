"""On-policy distillation: trajectories of the student, and of others where the objective mixes them in, are scored by
the teacher as each one finishes, and learned from.
"""

import asyncio
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from orchestration.stages.on_policy import REFERENCE, OnPolicyStage
from rollout.trajectory import Trajectory
from scoring.capabilities import capabilities
from scoring.request import build_request, with_monitored
from scoring.signal import ScoringRequest, TeacherSignal


class Distillation(OnPolicyStage):
    @property
    def _tells_entropy(self) -> bool:
        return capabilities(self.config.teacher, self.config.scoring.gpus_per_worker).entropy

    async def score(self, trajectory: Trajectory) -> TeacherSignal:
        """The teacher's marks, and a reference's log-probs where the objective extrapolates from one."""
        scorers = self.workers.scorers
        assert scorers is not None  # the stage refuses objectives without a teacher
        item = self._prompts[trajectory.prompt_id]
        request = build_request(item.prompt.teacher, item.teacher_ids, trajectory, self.requirements)
        request = with_monitored(request, self.config.learner.overlap_k, entropy=self._tells_entropy)
        signal, reference = await asyncio.gather(scorers.score(request), self._reference_logprobs(trajectory))
        self.tokens["scored"] += len(trajectory.response_ids)
        return replace(signal, reference_logprobs=reference)

    async def _reference_logprobs(self, trajectory: Trajectory) -> NDArray[np.float32] | None:
        """[T]: of the response to the student's prompt, whatever the teacher sees of it."""
        if self.workers.reference_scorers is None:
            return None
        request = ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids)
        return (await self.workers.reference_scorers.score(request)).logprobs
