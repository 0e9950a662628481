"""What a teacher's backend can give, and what of a run's needs it cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from scoring.config import Quantization, TeacherBackend, TeacherConfig, TeacherWeights


@dataclass(frozen=True)
class Capabilities:
    """The log-prob of the token that came is given by all; so is the tail mass of the ids that are."""

    given_ids: bool = True
    max_top_k: int | None = None  # None: up to the whole vocabulary
    entropy: bool = True
    hidden_states: bool = True  # with the LM head, so the whole distribution
    new_responses: bool = True  # scores what it was never asked about; all above holds for what it can score


def mixed(parts: Sequence[Capabilities]) -> Capabilities:
    """What a mixture gives: what all of its teachers do, but for its entropy, which theirs do not tell."""
    given_ids = all(part.given_ids for part in parts)
    return Capabilities(
        given_ids=given_ids,
        max_top_k=None if given_ids else 0,  # sought among given ids
        entropy=False,
        hidden_states=all(part.hidden_states for part in parts),
        new_responses=all(part.new_responses for part in parts),
    )


def can_answer(teacher: TeacherConfig) -> bool:
    """Whether a teacher's own answers can be had from an engine that is started for it."""
    return not teacher.mixture and teacher.backend in (TeacherBackend.transformers, TeacherBackend.vllm)


def holds_checkpoint(teacher: TeacherConfig) -> bool:
    """Whether a teacher's workers have the checkpoint's own weights throughout, whole."""
    own = can_answer(teacher) and teacher.quantization is Quantization.none
    return own and teacher.weights is TeacherWeights.fixed


def shows_states(teacher: TeacherConfig) -> bool:
    """Whether a teacher's workers give the final states and the LM head, so its whole distribution."""
    return capabilities(teacher, gpus=0).hidden_states


class Wanted(Protocol):
    """What is asked about each scored token, besides its log-prob."""

    @property
    def candidates(self) -> int:
        """Given ids a position."""

    @property
    def teacher_top_k(self) -> int: ...

    @property
    def teacher_entropy(self) -> bool: ...

    @property
    def hidden_states(self) -> bool: ...


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
