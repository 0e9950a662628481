"""What a teacher's backend can give, and what of a run's needs it cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from scoring.config import TeacherBackend, TeacherConfig


class Wanted(Protocol):
    """What is asked about each marked token, besides its log-prob."""

    @property
    def candidates(self) -> int:
        """Given ids a position."""

    @property
    def teacher_top_k(self) -> int: ...

    @property
    def teacher_entropy(self) -> bool: ...

    @property
    def hidden_states(self) -> bool: ...


@dataclass(frozen=True)
class Capabilities:
    """The log-prob of the token that came is given by all; so is the tail mass of the ids that are."""

    given_ids: bool = True
    max_top_k: int | None = None  # None: up to the whole vocabulary
    entropy: bool = True
    hidden_states: bool = True  # with the LM head, so the whole distribution
    new_responses: bool = True  # marks what it was never asked about; all above holds for what it can mark


def capabilities(teacher: TeacherConfig, gpus: float) -> Capabilities:
    """Of a teacher's backend.

    Args:
        gpus: of a scoring worker; vLLM scores given ids on GPUs only.
    """
    computes = teacher.backend is not TeacherBackend.cache
    if teacher.backend is TeacherBackend.server or (not computes and teacher.server.url):  # which filled the cache
        limit = teacher.server.max_top_k
        return Capabilities(False, max_top_k=limit, entropy=False, hidden_states=False, new_responses=computes)
    if teacher.backend is TeacherBackend.vllm:
        return Capabilities(given_ids=gpus > 0, max_top_k=None, entropy=False, hidden_states=False)
    return Capabilities(new_responses=computes)


def shortfalls(wanted: Wanted, given: Capabilities) -> Iterator[str]:
    """What is wanted and not given, in words."""
    if wanted.candidates and not given.given_ids:
        yield f"the log-probs of {wanted.candidates} given ids at each position (the student's most likely ones)"
    if given.max_top_k is not None and wanted.teacher_top_k > given.max_top_k:
        yield f"its {wanted.teacher_top_k} most likely ids (it gives {given.max_top_k} at most)"
    if wanted.teacher_entropy and not given.entropy:
        yield "its exact entropy"
    if wanted.hidden_states and not given.hidden_states:
        yield "its distribution over the whole vocabulary (final states and LM head)"
