"""A student's trajectory as its teacher sees it, and the teacher's marks as the student's tokens.

    trajectory ─ view ─► request in the teacher's ids ─► teacher ─► signal ─ translate ─► a row for each response token

The teacher reads its own prompt, then every answer of the student's, and between two answers what its own template
makes of the others' turns. Only answers are marked. With the student's tokenizer an answer is the student's ids as they
are; with another one it is the same bytes in the teacher's tokens (`scoring.byte_alignment`).

Shape suffixes: T response tokens of the student, L of the teacher, M of those that are marked, K ids of a support.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rollout.rendering import after_answer
from rollout.trajectory import STUDENT_ROLE, Trajectory
from scoring.byte_alignment import NO_SPAN, Aligner, Alignment
from scoring.request import SignalNeeds, build_request, student_candidates, with_monitored
from scoring.signal import ScoringRequest, TeacherSignal
from scoring.token_bytes import TokenBytes


class TeacherView(Protocol):
    @property
    def request(self) -> ScoringRequest:
        """What to ask the teacher."""

    def translate(self, signal: TeacherSignal) -> TeacherSignal:
        """The answer to `request`, with T rows, one for each token of the student's response."""


@dataclass(frozen=True)
class SameTokens:
    """The teacher has the student's ids: row m of its answer is about the m-th token that is learned from."""

    request: ScoringRequest
    loss_mask: NDArray[np.bool_]  # [T]

    def translate(self, signal: TeacherSignal) -> TeacherSignal:
        if self.loss_mask.all():
            return signal
        rows = {name: value for name, value in vars(signal).items() if isinstance(value, np.ndarray)}
        spread: dict[str, Any] = {name: self._spread(value) for name, value in rows.items()}
        return replace(signal, **spread)

    def _spread(self, rows: NDArray) -> NDArray:
        """[T, …] from [M, …]; NaN, and 0 where there is no NaN, at what is not learned from."""
        filler = np.nan if np.issubdtype(rows.dtype, np.floating) else 0
        whole = np.full((len(self.loss_mask), *rows.shape[1:]), filler, dtype=rows.dtype)
        whole[self.loss_mask] = rows
        return whole


@dataclass(frozen=True)
class OtherTokens:
    """The teacher has a tokenizer of its own: marks of a span are shared by the student's tokens in it."""

    request: ScoringRequest
    spans: NDArray[np.int64]  # [T], NO_SPAN: none
    marked_spans: NDArray[np.int64]  # [M]
    state_rows: NDArray[np.int64]  # [T], the row whose state the student's token begins in; -1: none
    support_ids: NDArray[np.int32] | None  # [T, K] of the student's, -1: fewer have an equal in the teacher's

    def translate(self, signal: TeacherSignal) -> TeacherSignal:
        """A span's log-prob comes in equal shares, one for each of its tokens in the student's response."""
        known, count = (
            self.spans != NO_SPAN,
            int(max(self.spans.max(initial=-1), self.marked_spans.max(initial=-1))) + 1,
        )
        theirs = np.bincount(self.marked_spans, minlength=count)
        ours = np.bincount(self.spans[known], minlength=count)
        totals = np.bincount(self.marked_spans, signal.logprobs.astype(np.float64), minlength=count)
        logprobs = np.full(len(known), np.nan, dtype=np.float32)
        logprobs[known] = (totals / np.maximum(ours, 1))[self.spans[known]]
        merged = known.copy()
        merged[known] = ((ours > 1) | (theirs > 1))[self.spans[known]]
        return TeacherSignal(
            teacher=signal.teacher,
            logprobs=logprobs,
            entropy=None if signal.entropy is None else self._at_states(signal.entropy, np.nan),
            support_ids=self.support_ids,
            support_logprobs=self._support(signal),
            known=known,
            spans=self.spans,
            merged=merged,
        )

    def _at_states(self, rows: NDArray[np.float32], elsewhere: float) -> NDArray[np.float32]:
        """[T, …] from [M, …]."""
        there = self.state_rows >= 0
        whole = np.full((len(there), *rows.shape[1:]), elsewhere, dtype=np.float32)
        whole[there] = rows[self.state_rows[there]]
        return whole

    def _support(self, signal: TeacherSignal) -> NDArray[np.float32] | None:
        """[T, K], -inf where there is no id."""
        if self.support_ids is None or signal.support_logprobs is None:
            return None
        logprobs = self._at_states(signal.support_logprobs, -np.inf)
        logprobs[self.support_ids < 0] = -np.inf
        return logprobs


class Views:
    """How one teacher sees the trajectories of a run."""

    def __init__(
        self,
        needs: SignalNeeds,
        overlap_k: int,
        aligner: Aligner | None = None,
        entropy: bool = True,
        max_tokens: int | None = None,
    ) -> None:
        """
        Args:
            needs: of the objective.
            overlap_k: most likely ids of the teacher that are watched; with another tokenizer none are.
            aligner: of a teacher with another tokenizer; None: it has the student's.
            entropy: whether the teacher is asked for its own, which is watched.
            max_tokens: of prompt and response that the teacher can read, where its tokens may be more than the
                student's: what lies beyond is not marked.
        """
        self._needs, self._aligner, self._entropy = needs, aligner, entropy
        self._max_tokens = max_tokens
        self._overlap_k = 0 if aligner else overlap_k

    def of(
        self,
        teacher: str,
        prompt_ids: NDArray[np.int32],
        trajectory: Trajectory,
        follow_ups: Sequence[NDArray[np.int32]] = (),
    ) -> TeacherView:
        """
        Args:
            prompt_ids: [P], the teacher's rendering of the trajectory's prompt.
            follow_ups: the teacher's rendering of each turn that is not the student's (`rollout.rendering`).

        Raises:
            ValueError: the rollout brought fewer candidate ids than the objective needs, or turns lack a rendering.
        """
        others = sum(turn.role != STUDENT_ROLE for turn in trajectory.turns)
        if len(follow_ups) < others:
            raise ValueError(
                f"the trajectory of prompt {trajectory.prompt_id!r} has {others} turns of others, and the teacher's "
                f"rendering has {len(follow_ups)}"
            )
        request = build_request(teacher, prompt_ids, trajectory, self._needs)
        request = with_monitored(request, self._overlap_k, self._entropy)
        if self._aligner is None:
            return _same_tokens(request, trajectory, follow_ups)
        return _other_tokens(request, trajectory, self._needs.candidates, follow_ups, self._aligner, self._max_tokens)


def make_aligner(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, key: str = "teacher.tokenizer"
) -> Aligner:
    """Between two tokenizers.

    Args:
        key: full name of the setting that chose the teacher's, for messages.

    Raises:
        ValueError: one of them does not tell the bytes of its tokens.
    """
    return Aligner(TokenBytes(student, "student.model"), TokenBytes(teacher, key))


def _same_tokens(
    request: ScoringRequest, trajectory: Trajectory, follow_ups: Sequence[NDArray[np.int32]]
) -> SameTokens:
    mask = trajectory.loss_mask
    if request.support_ids is not None:
        request = replace(request, support_ids=request.support_ids[mask])
    if trajectory.turns:
        answers = [trajectory.response_ids[answer] for answer in trajectory.answers]
        masks = [mask[answer] for answer in trajectory.answers]
        response_ids, marked = _conversation(trajectory, answers, masks, follow_ups)
        request = replace(request, response_ids=response_ids, marked=marked)
    elif not mask.all():
        request = replace(request, marked=mask)
    return SameTokens(request, mask)


def _conversation(
    trajectory: Trajectory,
    answers: Sequence[NDArray[np.int32]],
    masks: Sequence[NDArray[np.bool_]],
    follow_ups: Sequence[NDArray[np.int32]],
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """All turns in the teacher's ids [L], and which of them are marked [L]."""
    if not trajectory.turns:
        return answers[0], masks[0]
    own, others = zip(answers, masks, strict=True), iter(follow_ups)
    ids, marked = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.bool_)]
    for turn in trajectory.turns:
        if turn.role == STUDENT_ROLE:
            answer, mask = next(own)
        else:
            answer = after_answer(ids[-1], next(others))
            mask = np.zeros(len(answer), dtype=np.bool_)
        ids.append(answer)
        marked.append(mask)
    return np.concatenate(ids).astype(np.int32), np.concatenate(marked)


def _other_tokens(
    request: ScoringRequest,
    trajectory: Trajectory,
    candidates: int,
    follow_ups: Sequence[NDArray[np.int32]],
    aligner: Aligner,
    max_tokens: int | None,
) -> OtherTokens:
    found = [aligner.align(trajectory.response_ids[answer].tolist()) for answer in trajectory.answers]
    masks = [alignment.teacher_spans != NO_SPAN for alignment in found]
    response_ids, marked = _conversation(trajectory, [a.teacher_ids for a in found], masks, follow_ups)
    spans, marked_spans = _numbered(trajectory, found)
    has_bytes = np.concatenate([a.teacher_has_bytes[mask] for a, mask in zip(found, masks, strict=True)])
    if max_tokens is not None and len(request.prompt_ids) + len(response_ids) > max_tokens:
        room = max(max_tokens - len(request.prompt_ids), 0)
        beyond = marked_spans[np.flatnonzero(marked) >= room]
        kept = ~np.isin(marked_spans, beyond)
        spans = np.where(np.isin(spans, beyond), NO_SPAN, spans)
        marked[marked] = kept
        response_ids, marked = response_ids[:room], marked[:room]
        marked_spans, has_bytes = marked_spans[kept], has_bytes[kept]
    state_rows = _state_rows(spans, marked_spans, has_bytes)
    request = replace(request, response_ids=response_ids, marked=marked, support_ids=None)
    if not candidates:
        return OtherTokens(request, spans, marked_spans, state_rows, None)
    support, twins = _twins(trajectory, candidates, found, aligner, state_rows)
    asked = np.zeros((len(marked_spans), candidates), dtype=np.int32)
    there = state_rows >= 0
    asked[state_rows[there]] = np.maximum(twins[there], 0)
    return OtherTokens(replace(request, support_ids=asked), spans, marked_spans, state_rows, support)


def _numbered(trajectory: Trajectory, alignments: Sequence[Alignment]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spans of all answers, each with a number of its own: of the student's tokens [T], of the marked ones [M]."""
    spans = np.full(len(trajectory.response_ids), NO_SPAN, dtype=np.int64)
    marked: list[NDArray[np.int64]] = []
    first = 0
    for alignment, answer in zip(alignments, trajectory.answers, strict=True):
        theirs = alignment.teacher_spans[alignment.teacher_spans != NO_SPAN] + first
        spans[answer] = np.where(alignment.spans == NO_SPAN, NO_SPAN, alignment.spans + first)
        marked.append(theirs)
        first = int(max(first - 1, spans.max(initial=-1), theirs.max(initial=-1))) + 1
    return spans, np.concatenate(marked)


def _state_rows(
    spans: NDArray[np.int64], marked_spans: NDArray[np.int64], has_bytes: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """[T]: for the first token of each span the marked row at which the teacher has read the same bytes; else -1."""
    rows = np.full(len(spans), -1, dtype=np.int64)
    known, firsts = np.unique(spans, return_index=True)
    row_of: dict[int, int] = {}
    for row in np.flatnonzero(has_bytes):
        row_of.setdefault(int(marked_spans[row]), int(row))
    for span, place in zip(known.tolist(), firsts.tolist(), strict=True):
        if span != NO_SPAN:
            rows[place] = row_of.get(span, -1)
    return rows


def _twins(
    trajectory: Trajectory,
    k: int,
    alignments: Sequence[Alignment],
    aligner: Aligner,
    state_rows: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The student's k most likely ids that the teacher has an equal of, and those equals, [T, K] each; -1: fewer."""
    ids = student_candidates(trajectory)
    twins = _lookup(aligner.twins, ids)
    for alignment, answer in zip(alignments, trajectory.answers, strict=True):
        if alignment.begins_with_space and answer.stop > answer.start:
            twins[answer.start] = _lookup(aligner.twins_after_space, ids[answer.start])
    twins[state_rows < 0] = -1
    order = np.argsort(twins < 0, axis=1, kind="stable")[:, :k]
    twins, ids = (np.take_along_axis(rows, order, axis=1) for rows in (twins, ids))
    return np.where(twins < 0, -1, ids).astype(np.int32), twins.astype(np.int32)


def _lookup(table: NDArray[np.int32], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """-1 for ids that are none of the tokenizer's, such as padding rows of a head."""
    inside = (ids >= 0) & (ids < len(table))
    return np.where(inside, table[np.where(inside, ids, 0)], -1).astype(np.int32)
