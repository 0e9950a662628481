"""What a teacher's backend can give, and what of a run's needs it cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scoring.config import Quantization, TeacherBackend, TeacherConfig, TeacherWeights
from tutelage.records.signal import SignalNeeds


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


def shortfalls(needs: SignalNeeds, given: Capabilities) -> Iterator[str]:
    """What is wanted and not given, in words."""
    if needs.candidates and not given.given_ids:
        yield f"the log-probs of {needs.candidates} given ids at each position (the student's most likely ones)"
    if given.max_top_k is not None and needs.teacher_top_k > given.max_top_k:
        yield f"its {needs.teacher_top_k} most likely ids (it gives {given.max_top_k} at most)"
    if needs.teacher_entropy and not given.entropy:
        yield "its exact entropy"
    if needs.hidden_states and not given.hidden_states:
        yield "its distribution over the whole vocabulary (final states and LM head)"
