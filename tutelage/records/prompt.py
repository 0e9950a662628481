"""The record of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.records.trajectory import FollowUp


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, as chat templates read it."""

    role: str  # "system", "developer", "user", "assistant" or "tool"
    content: str
    # what else it has, under the names that templates know: tool_calls, reasoning_content, name, tool_call_id
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)


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
    completion_more: Mapping[str, Any] = field(default_factory=dict)  # what else its message has, as `Message.more`
    follow_ups: tuple[Message, ...] = ()  # what is said after each answer but the last
    further_answers: tuple[str, ...] = ()  # for the verifier: any of them is right, too
    tools: tuple[Mapping[str, Any], ...] = ()  # JSON schemas of what the student may call, for chat templates
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # what else the chat templates are told


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
    teacher_follow_ups: tuple[FollowUp, ...] = ()  # the same as the teacher reads them
    has_context: bool = False  # the teacher is told more than the student; another template alone tells it nothing


def with_ids(items: Sequence[RenderedPrompt]) -> dict[str, RenderedPrompt]:
    return {item.prompt.id: item for item in items}


def teacher_view(item: RenderedPrompt) -> RenderedPrompt:
    """The same prompt rendered for the teacher on both sides: for the teacher's own answers."""
    return replace(item, student_ids=item.teacher_ids)
