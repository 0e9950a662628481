"""Reinforcement with a verifier: the samples of a prompt are a group, and learn from their rewards against its mean.

rollouts ─► verifier ─► reference? ─► group ─┬─ rewards differ ─► batch
                                             └─ they do not: dropped for the next prompt, within a limit, and counted

No teacher takes part. Where the objective compares the student with another model, that is `objective.reference.model`:
its scores stand where a teacher's do, so A = A_task + share (log ref - log p) pulls the student towards it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from learner.records import Example
from orchestration.pipeline.weighting import have_spread
from orchestration.stages.on_policy import OnPolicyStage
from orchestration.stages.training import StageContext
from scoring.pool import REFERENCE
from scoring.requests import build_request
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import Trajectory

REPLACED = "groups_without_spread_replaced"  # among the run's counts


class Reinforcement(OnPolicyStage):
    def __init__(self, context: StageContext) -> None:
        super().__init__(context, keep=have_spread)

    def weigh(self, batch: Sequence[Example]) -> list[Example]:
        self.counts[REPLACED] = self.batches.replaced
        return super().weigh(batch)

    async def score(self, trajectory: Trajectory) -> TeacherSignal | None:
        """The reference's scores of the response to the student's prompt."""
        if REFERENCE not in self.workers.teachers:
            return None
        request = build_request(REFERENCE, trajectory.prompt_ids, trajectory, self.requirements)
        signal = await self.workers.teachers.score(request)
        self.tokens["scored"] += len(trajectory.response_ids)
        return replace(signal, reference_logprobs=signal.logprobs)

    async def restore(self, checkpoint: Path | None) -> None:
        """As every stage; an objective over the whole vocabulary gets the reference's head."""
        await super().restore(checkpoint)
        if REFERENCE in self.workers.teachers and self.requirements.hidden_states:
            await self.workers.send_reference_head()
