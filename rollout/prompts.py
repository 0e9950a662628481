"""The record of a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
    teacher: str = ""  # key of the teacher that marks it; empty until somebody decides
    privileged_context: str | None = None  # a system prompt that only the teacher sees
    completion: str | None = None  # the data's own response
    follow_ups: tuple[Message, ...] = ()  # what is said after each answer but the last
