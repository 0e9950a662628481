"""Reinforcement with a verifier: the samples of a prompt are a group, and learn from their rewards against its mean.

rollouts ─► verifier ─► reference? ─► group ─┬─ rewards differ ─► batch
                                             └─ they do not: dropped for the next prompt, within a limit, and counted

No teacher takes part. Where the objective compares the student with another model, that is `objective.reference.model`:
its scores stand where a teacher's do, so A = A_task + share (log ref - log p) pulls the student towards it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from learner.records import Example
from orchestration.pipeline.weighting import have_spread
from orchestration.stages.on_policy import OnPolicyStage
from scoring.pool import REFERENCE
from scoring.requests import build_request
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import Trajectory

REPLACED = "groups_without_spread_replaced"  # among the run's counts


@dataclass
class Reinforcement(OnPolicyStage):
    """Learn from a verifier's rewards."""

    def keep(self, group: Sequence[Example]) -> bool:
        return have_spread(group)

    def weigh(self, batch: Sequence[Example]) -> list[Example]:
        self.progress.counts[REPLACED] = self.batches.replaced
        return super().weigh(batch)

    async def score(self, trajectory: Trajectory) -> TeacherSignal | None:
        """The reference's scores of the response to the student's prompt."""
        if REFERENCE not in self.fleet.teachers:
            return None
        request = build_request(REFERENCE, trajectory.prompt_ids, trajectory, self.needs)
        signal = await self.fleet.teachers.score(request)
        self.progress.tokens["scored"] += len(trajectory.response_ids)
        return replace(signal, reference_logprobs=signal.logprobs)

    async def restore(self, checkpoint: Path | None) -> None:
        """As every stage; an objective over the whole vocabulary gets the reference's head."""
        await super().restore(checkpoint)
        if REFERENCE in self.fleet.teachers and self.needs.hidden_states:
            await self.fleet.send_head(REFERENCE)
