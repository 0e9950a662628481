"""What a teacher sees of the prompt when it scores a response: rendered beforehand, or once the response is there.

static template    the prepared view of the prompt
{attempt} …        rendered for this response
{sibling}          waits for the prompt's other samples, then rendered with the first correct one of them
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from scoring.config import TeacherConfig
from scoring.context import SIBLING, ContextTemplate, static_values
from tutelage.chat import Chat, seen_by_teacher
from tutelage.records.prompt import RenderedPrompt
from tutelage.records.trajectory import CORRECT, Trajectory


@dataclass(frozen=True)
class PromptView:
    """What a prompt's teacher sees of it when it scores one response."""

    prompt_ids: NDArray[np.int32]  # [P'], of the prompt's teacher; of a mixture's longest
    members: Mapping[str, NDArray[np.int32]]  # of a mixture's teachers, by key
    privileged: bool  # somebody sees more of it than the student


class DynamicContext:
    """Fills the teachers' contexts once a response is there."""

    def __init__(
        self,
        teachers: Mapping[str, TeacherConfig],
        chats: Mapping[str, Chat],
        student: PreTrainedTokenizerBase,
        samples_per_prompt: int,
        max_tokens: int,
        system_prompt: str | None = None,
    ) -> None:
        """
        Args:
            teachers: by key, mixtures included.
            chats: how the teachers that answer for themselves read conversations, by key.
            student: the student's tokenizer.
            max_tokens: of prompt and response together; a context that does not fit is left out.
            system_prompt: of the data, for student and teacher alike.
        """
        self._chats, self._student, self._system_prompt = chats, student, system_prompt
        self._templates = {
            key: template
            for key, teacher in teachers.items()
            if teacher.context is not None and (template := ContextTemplate(teacher.context)).waits_for
        }
        self._samples = _Samples(samples_per_prompt)
        self._limit = max_tokens

    @property
    def wait_for_samples(self) -> bool:
        """Whether a response is scored only once all samples of its prompt are there."""
        return any(SIBLING in template.waits_for for template in self._templates.values())

    def arrived(self, trajectory: Trajectory) -> None:
        """A graded response, before anybody asks for its view."""
        if self.wait_for_samples:
            self._samples.add(trajectory)

    async def of(self, trajectory: Trajectory, item: RenderedPrompt) -> PromptView:
        if not self._templates:
            return PromptView(item.teacher_ids, item.views, item.has_context)
        members = item.views or {item.prompt.teacher: item.teacher_ids}
        sibling = await self._samples.sibling(trajectory) if self.wait_for_samples else None
        told = {key: await self._told(key, trajectory, item, sibling) for key in members if key in self._templates}
        views = dict(members) | {key: ids for key, ids in told.items() if ids is not None}
        privileged = any(ids is not None for ids in told.values()) or item.has_context
        return PromptView(max(views.values(), key=len), views if item.views else {}, privileged)

    async def _told(
        self, key: str, trajectory: Trajectory, item: RenderedPrompt, sibling: Trajectory | None
    ) -> NDArray[np.int32] | None:
        """[P'], the prompt with the context; None where that cannot be filled or does not fit beside the response."""
        template = self._templates[key]
        is_correct = trajectory.reward is not None and trajectory.reward >= CORRECT
        feedback = "correct" if is_correct else "incorrect"
        values = static_values(item.prompt) | {"attempt": self._text(trajectory), "feedback": feedback}
        if sibling is not None:
            values[SIBLING] = self._text(sibling)
        if not all(name in values for name in template.fields):
            return None
        seen = replace(seen_by_teacher(item.prompt, template.filled(values), self._system_prompt), follow_ups=())
        (rendering,) = await asyncio.to_thread(self._chats[key].render, [seen])
        ids = rendering.ids
        return ids if len(ids) + len(trajectory.response_ids) <= self._limit else None

    def _text(self, trajectory: Trajectory) -> str:
        return self._student.decode(trajectory.response_ids, skip_special_tokens=True)


class _Samples:
    """The samples of each prompt that are under way, until all of a group have been asked about."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._groups: dict[int, dict[int, Trajectory]] = {}  # group -> slot -> sample
        self._complete: dict[int, asyncio.Event] = {}
        self._answered: dict[int, int] = {}

    def add(self, trajectory: Trajectory) -> None:
        group = self._group(trajectory)
        self._groups.setdefault(group, {})[trajectory.slot] = trajectory
        self._complete.setdefault(group, asyncio.Event())
        if len(self._groups[group]) == self._size:
            self._complete[group].set()

    async def sibling(self, trajectory: Trajectory) -> Trajectory | None:
        """The first correct one among the other samples of the same prompt; None if there is none."""
        group = self._group(trajectory)
        await self._complete[group].wait()  # the rollout of each sample has a deadline
        samples = sorted(self._groups[group].values(), key=lambda item: item.slot)
        others = [item for item in samples if item.slot != trajectory.slot]
        correct = [item for item in others if item.reward is not None and item.reward >= CORRECT]
        self._answered[group] = self._answered.get(group, 0) + 1
        if self._answered[group] == self._size:
            del self._groups[group], self._complete[group], self._answered[group]
        return next(iter(correct), None)

    def _group(self, trajectory: Trajectory) -> int:
        return trajectory.slot // self._size
