"""The record of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.records.trajectory import FollowUp


@dataclass(frozen=True)
class Message:
    role: str  # "system", "user" or "assistant"
    content: str


@dataclass(frozen=True)
class Prompt:
    """One question to the student, and what its verifier and its teacher need to know."""

    id: str  # unique within its source, stable across runs
    messages: tuple[Message, ...]
    answer: str | None = None  # for the verifier
    metadata: Mapping[str, Any] = field(default_factory=dict)  # for the verifier
    domain: str = ""
    teacher: str = ""  # key of the teacher that scores it; empty until somebody decides
    privileged_context: str | None = None  # a system prompt that only the teacher sees
    completion: str | None = None  # the data's own response
    follow_ups: tuple[Message, ...] = ()  # what is said after each answer but the last
    further_answers: tuple[str, ...] = ()  # for the verifier: any of them is right, too


def normalised(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    """What equal prompts have in common: their messages without differences of case and white space."""
    return tuple((message.role, " ".join(message.content.split()).casefold()) for message in prompt.messages)


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the student and as its teacher see it."""

    prompt: Prompt
    student_ids: NDArray[np.int32]  # [P]
    teacher_ids: NDArray[np.int32]  # [P'], privileged context included; of a mixture's longest view
    completion_ids: NDArray[np.int32] | None = None  # [T], the data's own response, where it is learned from
    views: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)  # of a mixture's teachers, by key, [P'] each
    follow_ups: tuple[FollowUp, ...] = ()  # what is put to the student after each answer but the last
    teacher_follow_ups: tuple[NDArray[np.int32], ...] = ()  # the same as the teacher reads them
    told: bool | None = None  # the teacher sees more; None: as the ids say, which are of one tokenizer

    @property
    def has_context(self) -> bool:
        """Whether the teacher sees more than the student."""
        if self.told is not None:
            return self.told
        seen = self.views.values() if self.views else (self.teacher_ids,)
        return any(not np.array_equal(self.student_ids, ids) for ids in seen)


def with_ids(items: Sequence[RenderedPrompt]) -> dict[str, RenderedPrompt]:
    return {item.prompt.id: item for item in items}


def teacher_view(item: RenderedPrompt) -> RenderedPrompt:
    """The same prompt rendered for the teacher on both sides: for the teacher's own answers."""
    return replace(item, student_ids=item.teacher_ids)
