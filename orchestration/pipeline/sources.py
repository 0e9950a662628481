"""Where the states come from that the student learns in: sequences of its own, its teacher's, or the data's.

    slot ─ schedule ─┬─ the student's ─► rollout workers ───────────────┐
                     └─ another's ─┬─► the teacher's own engine ────────┼─► trajectories, as they come
                                   └─► the prompt's completion ─────────┘

Mixing in others' sequences is GKD's λ (arXiv 2306.13649). They begin with the student's prompt whoever wrote them.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from learner.objectives.config import OtherSource
from orchestration.config.schema import RunConfig
from orchestration.pipeline.requests import rollout_request
from orchestration.pipeline.schedule import PromptSchedule
from rollout.group import RolloutGroup
from tutelage.aio import merged
from tutelage.records.prompt import RenderedPrompt
from tutelage.records.trajectory import FinishReason, Origin, RolloutRequest, Trajectory, foreign_trajectory


class TrajectorySource:
    """Turns slots into trajectories.

    Args:
        candidates: how many of its most likely ids the student's engine must return.
        rollouts: engines that hold the student; None where none of its sequences are learned from.
        teacher_rollouts: engines that hold the teacher; None where none of its sequences are learned from.
    """

    def __init__(
        self,
        config: RunConfig,
        prompts: Sequence[RenderedPrompt],
        candidates: int,
        rollouts: RolloutGroup | None,
        teacher_rollouts: RolloutGroup | None,
    ) -> None:
        self._sampling = config.sampling
        self._others = config.objective.sequences.other_source
        self._prompts = prompts
        self._candidates = candidates
        self._rollouts, self._teacher_rollouts = rollouts, teacher_rollouts
        self._schedule = PromptSchedule(
            len(prompts),
            config.sampling.samples_per_prompt,
            config.seed,
            config.data.shuffle,
            config.objective.sequences.on_policy_fraction,
        )

    def foreign(self, slots: Sequence[int]) -> list[int]:
        """The slots whose sequences are not the student's."""
        return [slot for slot in slots if not self._schedule.plan(slot).student]

    async def roll_out(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        """One trajectory a slot, in the order in which they are finished."""
        own = [slot for slot in slots if self._schedule.plan(slot).student]
        others = self.foreign(slots)
        streams = []
        if own:
            assert self._rollouts is not None  # started where the config asks for them
            streams.append(self._rollouts.roll_out([self._request(slot) for slot in own]))
        if others:
            from_teacher = self._others is OtherSource.teacher
            streams.append(self._teacher_answers(others) if from_teacher else self._completions(others))
        async for trajectory in merged(streams):
            yield trajectory

    async def _teacher_answers(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        assert self._teacher_rollouts is not None  # started where the config asks for them
        own = {slot: self._request(slot) for slot in slots}
        asked = [
            replace(own[slot], prompt_ids=self._prompt(slot).teacher_ids, candidates=0, follow_ups=()) for slot in slots
        ]
        async for answer in self._teacher_rollouts.roll_out(asked):
            yield foreign_trajectory(own[answer.slot], answer.response_ids, answer.finish_reason, Origin.TEACHER)

    async def _completions(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        for slot in slots:
            completion_ids = self._prompt(slot).completion_ids
            assert completion_ids is not None  # preparation refuses prompts without one
            kept = completion_ids[: self._sampling.max_tokens]
            reason = FinishReason.STOP if len(kept) == len(completion_ids) else FinishReason.LENGTH
            yield foreign_trajectory(self._request(slot), kept, reason, Origin.DATASET)

    def _prompt(self, slot: int) -> RenderedPrompt:
        return self._prompts[self._schedule.plan(slot).prompt_index]

    def _request(self, slot: int) -> RolloutRequest:
        plan, item, sampling = self._schedule.plan(slot), self._prompt(slot), self._sampling
        request = rollout_request(
            item,
            slot,
            plan.seed,
            sampling.max_tokens,
            sample_index=plan.sample_index,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        return replace(request, candidates=self._candidates, follow_ups=item.follow_ups)
