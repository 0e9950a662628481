"""What to ask a teacher about a trajectory."""

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rollout.trajectory import Trajectory
from scoring.signal import ScoringRequest


class SignalNeeds(Protocol):
    """What an objective needs besides the log-probs of the sampled tokens, which always come."""

    @property
    def candidates(self) -> int:
        """How many of the student's own most likely ids the teacher must mark at each position."""

    @property
    def teacher_top_k(self) -> int:
        """How many of the teacher's own most likely ids to return."""

    @property
    def teacher_entropy(self) -> bool:
        """Whether the teacher's entropy decides what is learned from."""

    @property
    def hidden_states(self) -> bool:
        """Whether the full vocabulary is wanted."""


def build_request(
    teacher: str, prompt_ids: NDArray[np.int32], trajectory: Trajectory, needs: SignalNeeds
) -> ScoringRequest:
    """The request that gives an objective what it needs about one trajectory.

    Args:
        teacher: key of the teacher.
        prompt_ids: [P], the teacher's rendering of the trajectory's prompt.
        needs: of the objective.

    Raises:
        ValueError: the rollout brought fewer candidate ids than the objective needs.
    """
    return ScoringRequest(
        teacher=teacher,
        prompt_ids=prompt_ids,
        response_ids=trajectory.response_ids,
        support_ids=_support(trajectory, needs.candidates) if needs.candidates else None,
        top_k=needs.teacher_top_k,
        entropy=needs.teacher_entropy,
        hidden_states=needs.hidden_states,
    )


def with_monitored(request: ScoringRequest, k: int, entropy: bool) -> ScoringRequest:
    """The request, also for what is watched: the teacher's `k` most likely ids, and its entropy if it can tell.

    Hidden states tell the ids, and more, without being asked. The k that the objective asked for, if fewer, are the
    first of them.
    """
    top_k = request.top_k if request.hidden_states else max(request.top_k, k)
    return replace(request, top_k=top_k, entropy=request.entropy or entropy)


def _support(trajectory: Trajectory, k: int) -> NDArray[np.int32]:
    """[T, k]"""
    return student_candidates(trajectory, k)[:, :k]


def student_candidates(trajectory: Trajectory, at_least: int = 0) -> NDArray[np.int32]:
    """[T, K]: the engine's most likely ids, most likely first; all that it named.

    Raises:
        ValueError: they are fewer than `at_least`.
    """
    found = 0 if trajectory.candidate_ids is None else trajectory.candidate_ids.shape[1]
    if trajectory.candidate_ids is None or found < at_least:
        raise ValueError(
            f"the trajectory of prompt {trajectory.prompt_id!r} has {found} candidate ids a position and the "
            f"objective needs {at_least}; roll out with RolloutRequest.candidates={at_least}"
        )
    return trajectory.candidate_ids
