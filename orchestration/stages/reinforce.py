"""Reinforcement with a verifier: the samples of a prompt are a group, and learn from their rewards against its mean.

rollouts ─► verifier ─► reference? ─► group ─┬─ rewards differ ─► batch
                                             └─ they do not: dropped for the next prompt, within a limit, and counted

No teacher takes part. Where the objective compares the student with another model, that is `objective.reference.model`:
its marks stand where a teacher's do, so A = A_task + share (log ref - log p) pulls the student towards it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from learner.batch import Example
from orchestration.gates import have_spread
from orchestration.marking import REFERENCE
from orchestration.stages.on_policy import OnPolicyStage
from orchestration.stages.training import StageContext
from rollout.trajectory import Trajectory
from scoring.request import build_request
from scoring.signal import TeacherSignal

REPLACED = "groups_without_spread_replaced"  # among the run's counts


class Reinforcement(OnPolicyStage):
    def __init__(self, context: StageContext) -> None:
        super().__init__(context, keep=have_spread)

    def weigh(self, batch: Sequence[Example]) -> list[Example]:
        self.counts[REPLACED] = self.batches.replaced
        return super().weigh(batch)

    async def score(self, trajectory: Trajectory) -> TeacherSignal | None:
        """The reference's marks of the response to the student's prompt."""
        reference = self.workers.reference_scorers
        if reference is None:
            return None
        request = build_request(REFERENCE, trajectory.prompt_ids, trajectory, self.requirements)
        signal = await reference.score(request)
        self.tokens["scored"] += len(trajectory.response_ids)
        return replace(signal, reference_logprobs=signal.logprobs)

    async def restore(self, checkpoint: Path | None) -> None:
        """As every stage; an objective over the whole vocabulary gets the reference's head."""
        await super().restore(checkpoint)
        reference = self.workers.reference_scorers
        if reference is not None and self.requirements.hidden_states:
            head = await reference.lm_head()
            assert head is not None  # it is a model of our own
            await self.workers.learner.set_teacher_head(REFERENCE, head)
