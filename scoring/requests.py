"""What to ask a teacher about a trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.chat import after_answer
from tutelage.records.signal import ScoringRequest, SignalNeeds, TeacherSignal
from tutelage.records.trajectory import STUDENT_ROLE, FollowUp, Trajectory
from tutelage.stops import Swap


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
        support_ids=student_candidates(trajectory, k)[:, :k] if (k := needs.candidates) else None,
        top_k=needs.teacher_top_k,
        entropy=needs.teacher_entropy,
        hidden_states=needs.hidden_states,
    )


def student_candidates(trajectory: Trajectory, at_least: int = 0) -> NDArray[np.int32]:
    """[T, K]: the engine's most likely ids, most likely first; all that it named.

    Raises:
        ValueError: they are fewer than `at_least`.
    """
    count = 0 if trajectory.candidate_ids is None else trajectory.candidate_ids.shape[1]
    if trajectory.candidate_ids is None or count < at_least:
        raise ValueError(
            f"the trajectory of prompt {trajectory.prompt_id!r} has {count} candidate ids a position and the "
            f"objective needs {at_least}; roll out with RolloutRequest.candidates={at_least}"
        )
    return trajectory.candidate_ids


class TeacherRequest(Protocol):
    """What to ask a teacher about a trajectory, and how to read its answer as the student's tokens."""

    @property
    def request(self) -> ScoringRequest:
        """What to ask the teacher."""

    def to_student_tokens(self, signal: TeacherSignal) -> TeacherSignal:
        """The answer to `request`, with T rows, one for each token of the student's response."""


@dataclass(frozen=True)
class SameTokens:
    """The teacher has the student's ids: row m of its answer is about the m-th token that is learned from.

    Where one tokenizer has a few tokens more, those are left out: the teacher reads on as if they had not been there,
    and no support holds them.
    """

    request: ScoringRequest
    scored: NDArray[np.bool_]  # [T]
    swap: Swap | None = None  # of two ends, already made in the request
    uncommon: NDArray[np.int32] | None = None  # ids that only one of the two has; None: both have the same
    support: NDArray[np.int32] | None = None  # [T, K] where some are uncommon, which are -1

    def to_student_tokens(self, signal: TeacherSignal) -> TeacherSignal:
        if self.swap is not None:
            support, top = (None if x is None else self.swap.of(x) for x in (signal.support_ids, signal.top_ids))
            signal = replace(signal, support_ids=support, top_ids=top)
        signal = signal if self.scored.all() else signal.spread(self.scored)
        if self.uncommon is None:
            return signal
        arrays: dict[str, Any] = {}
        if self.support is not None and signal.support_logprobs is not None:
            logprobs = np.where(self.support < 0, -np.inf, signal.support_logprobs)
            arrays |= {"support_ids": self.support, "support_logprobs": logprobs.astype(np.float32)}
        if signal.top_ids is not None and signal.top_logprobs is not None:
            left_out = np.isin(signal.top_ids, self.uncommon)
            arrays["top_ids"] = np.where(left_out, -1, signal.top_ids).astype(np.int32)
            arrays["top_logprobs"] = np.where(left_out, -np.inf, signal.top_logprobs).astype(np.float32)
        return replace(signal, known=self.scored, **arrays)


def same_tokens_request(
    request: ScoringRequest,
    trajectory: Trajectory,
    follow_ups: Sequence[FollowUp],
    swap: Swap | None = None,
    uncommon: NDArray[np.int32] | None = None,
) -> SameTokens:
    """Ask about the tokens that are learned from.

    Args:
        swap: of the student's end and the teacher's in what the student wrote or named.
        uncommon: ids that only one of the two tokenizers has; None: both have the same.
    """
    common, support = np.ones(len(trajectory.response_ids), np.bool_), None
    if uncommon is not None:
        common = ~np.isin(trajectory.response_ids, uncommon)
    scored = trajectory.loss_mask & common
    if request.support_ids is not None and uncommon is not None:
        left_out = np.isin(request.support_ids, uncommon)
        support = np.where(left_out, -1, request.support_ids).astype(np.int32)
        # The teacher is asked for some id that it has; what it says of that is left out again.
        request = replace(request, support_ids=np.maximum(support, 0))
    if swap is not None:
        asked = None if request.support_ids is None else swap.of(request.support_ids)
        trajectory = replace(trajectory, response_ids=swap.of(trajectory.response_ids))
        request = replace(request, response_ids=trajectory.response_ids, support_ids=asked)
    if request.support_ids is not None:
        request = replace(request, support_ids=request.support_ids[scored])
    if trajectory.turns or not common.all():
        kept = [np.flatnonzero(common[answer]) + answer.start for answer in trajectory.answers]
        answers, masks = [trajectory.response_ids[own] for own in kept], [scored[own] for own in kept]
        response_ids, scored_mask = conversation_of(trajectory, answers, masks, follow_ups)
        request = replace(request, response_ids=response_ids, scored_mask=scored_mask)
    elif not scored.all():
        request = replace(request, scored_mask=scored)
    return SameTokens(request, scored, swap, uncommon, support)


def conversation_of(
    trajectory: Trajectory,
    answers: Sequence[NDArray[np.int32]],
    masks: Sequence[NDArray[np.bool_]],
    follow_ups: Sequence[FollowUp],
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """All turns in the teacher's ids [L], and which of them are scored [L]."""
    if not trajectory.turns:
        return answers[0], masks[0]
    own, others = zip(answers, masks, strict=True), iter(follow_ups)
    ids, scored_mask = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.bool_)]
    for turn in trajectory.turns:
        if turn.role == STUDENT_ROLE:
            answer, mask = next(own)
        else:
            answer = after_answer(ids[-1], next(others))
            mask = np.zeros(len(answer), dtype=np.bool_)
        ids.append(answer)
        scored_mask.append(mask)
    return np.concatenate(ids).astype(np.int32), np.concatenate(scored_mask)
