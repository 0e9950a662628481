"""A student's trajectory as its teacher sees it, and the teacher's scores as the student's tokens.

    trajectory ─► request in the teacher's ids ─► teacher ─► signal ─► a row for each response token

The teacher reads its own prompt, then every answer of the student's, and between two answers what its own template
makes of the others' turns. Only answers are scored. With the student's tokenizer an answer is the student's ids as they
are; with another one it is the same bytes in the teacher's tokens (`scoring.cross_tokenizer.byte_alignment`).

Shape suffixes: T response tokens of the student, L of the teacher, M of those that are scored, K ids of a support.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scoring.cross_tokenizer.byte_alignment import NO_SPAN, Aligner, ByteAlignment
from scoring.requests import conversation_of, student_candidates
from tutelage.records.per_token import spread
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.records.trajectory import FollowUp, Trajectory


@dataclass(frozen=True)
class OtherTokens:
    """The teacher has a tokenizer of its own: scores of a span are shared by the student's tokens in it."""

    request: ScoringRequest
    spans: NDArray[np.int64]  # [T], NO_SPAN: none
    scored_spans: NDArray[np.int64]  # [M]
    state_rows: NDArray[np.int64]  # [T], the row whose state the student's token begins in; -1: none
    support_ids: NDArray[np.int32] | None  # [T, K] of the student's, -1: fewer have an equal in the teacher's

    def to_student_tokens(self, signal: TeacherSignal) -> TeacherSignal:
        """A span's log-prob comes in equal shares, one for each of its tokens in the student's response."""
        known = self.spans != NO_SPAN
        count = int(max(self.spans.max(initial=-1), self.scored_spans.max(initial=-1))) + 1
        teacher_tokens = np.bincount(self.scored_spans, minlength=count)
        student_tokens = np.bincount(self.spans[known], minlength=count)
        totals = np.bincount(self.scored_spans, signal.logprobs.astype(np.float64), minlength=count)
        shares = (totals / np.maximum(student_tokens, 1)).astype(np.float32)
        several = (student_tokens > 1) | (teacher_tokens > 1)
        return TeacherSignal(
            teacher=signal.teacher,
            logprobs=spread(shares[self.spans[known]], known, np.nan),
            entropy=None if signal.entropy is None else self._at_states(signal.entropy, np.nan),
            support_ids=self.support_ids,
            support_logprobs=self._support(signal),
            known=known,
            spans=self.spans,
            merged=spread(several[self.spans[known]], known, False),
        )

    def _at_states(self, rows: NDArray[np.float32], elsewhere: float) -> NDArray[np.float32]:
        """Spread rows [M, …] over the student's tokens [T, …]."""
        has_state = self.state_rows >= 0
        return spread(rows[self.state_rows[has_state]], has_state, elsewhere)

    def _support(self, signal: TeacherSignal) -> NDArray[np.float32] | None:
        """[T, K], -inf where there is no id."""
        if self.support_ids is None or signal.support_logprobs is None:
            return None
        logprobs = self._at_states(signal.support_logprobs, -np.inf)
        logprobs[self.support_ids < 0] = -np.inf
        return logprobs


def other_tokens_request(
    request: ScoringRequest,
    trajectory: Trajectory,
    candidates: int,
    follow_ups: Sequence[FollowUp],
    aligner: Aligner,
    max_tokens: int | None,
) -> OtherTokens:
    alignments = [aligner.align(trajectory.response_ids[answer].tolist()) for answer in trajectory.answers]
    masks = [alignment.teacher_spans != NO_SPAN for alignment in alignments]
    response_ids, scored_mask = conversation_of(trajectory, [a.teacher_ids for a in alignments], masks, follow_ups)
    spans, scored_spans = _numbered(trajectory, alignments)
    has_bytes = np.concatenate([a.teacher_has_bytes[mask] for a, mask in zip(alignments, masks, strict=True)])
    if max_tokens is not None and len(request.prompt_ids) + len(response_ids) > max_tokens:
        room = max(max_tokens - len(request.prompt_ids), 0)
        beyond = scored_spans[np.flatnonzero(scored_mask) >= room]
        kept = ~np.isin(scored_spans, beyond)
        spans = np.where(np.isin(spans, beyond), NO_SPAN, spans)
        scored_mask[scored_mask] = kept
        response_ids, scored_mask = response_ids[:room], scored_mask[:room]
        scored_spans, has_bytes = scored_spans[kept], has_bytes[kept]
    state_rows = _state_rows(spans, scored_spans, has_bytes)
    request = replace(request, response_ids=response_ids, scored_mask=scored_mask, support_ids=None)
    if not candidates:
        return OtherTokens(request, spans, scored_spans, state_rows, None)
    support, twins = _twins(trajectory, candidates, alignments, aligner, state_rows)
    asked = np.zeros((len(scored_spans), candidates), dtype=np.int32)
    there = state_rows >= 0
    asked[state_rows[there]] = np.maximum(twins[there], 0)
    return OtherTokens(replace(request, support_ids=asked), spans, scored_spans, state_rows, support)


def _numbered(
    trajectory: Trajectory, alignments: Sequence[ByteAlignment]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spans of all answers, each with a number of its own: of the student's tokens [T], of the scored ones [M]."""
    spans = np.full(len(trajectory.response_ids), NO_SPAN, dtype=np.int64)
    scored_spans: list[NDArray[np.int64]] = []
    first = 0
    for alignment, answer in zip(alignments, trajectory.answers, strict=True):
        teacher_spans = alignment.teacher_spans[alignment.teacher_spans != NO_SPAN] + first
        spans[answer] = np.where(alignment.spans == NO_SPAN, NO_SPAN, alignment.spans + first)
        scored_spans.append(teacher_spans)
        first = int(max(first - 1, spans.max(initial=-1), teacher_spans.max(initial=-1))) + 1
    return spans, np.concatenate(scored_spans)


def _state_rows(
    spans: NDArray[np.int64], scored_spans: NDArray[np.int64], has_bytes: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """[T]: for the first token of each span the scored row at which the teacher has read the same bytes; else -1."""
    rows = np.full(len(spans), -1, dtype=np.int64)
    known, firsts = np.unique(spans, return_index=True)
    row_of: dict[int, int] = {}
    for row in np.flatnonzero(has_bytes):
        row_of.setdefault(int(scored_spans[row]), int(row))
    for span, position in zip(known.tolist(), firsts.tolist(), strict=True):
        if span != NO_SPAN:
            rows[position] = row_of.get(span, -1)
    return rows


def _twins(
    trajectory: Trajectory, k: int, alignments: Sequence[ByteAlignment], aligner: Aligner, state_rows: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The student's k most likely ids that the teacher has an equal of, and those equals, [T, K] each; -1: fewer."""
    ids = student_candidates(trajectory)
    twins = _lookup(aligner.twins, ids)
    for alignment, answer in zip(alignments, trajectory.answers, strict=True):
        if answer.stop > answer.start:
            first = aligner.first_twins_after_space if alignment.begins_with_space else aligner.first_twins
            twins[answer.start] = _lookup(first, ids[answer.start])
    twins[state_rows < 0] = -1
    twins[_repeated(twins)] = -1
    order = np.argsort(twins < 0, axis=1, kind="stable")[:, :k]
    twins, ids = (np.take_along_axis(rows, order, axis=1) for rows in (twins, ids))
    return np.where(twins < 0, -1, ids).astype(np.int32), twins.astype(np.int32)


def _repeated(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[T, K]: whether an id stands further left in its row; -1 never does.

    Several ids of a student may stand for one of the teacher's, as two ends of an answer do: the most likely of them
    does, so that the teacher's probability is not counted twice.
    """
    order = np.argsort(ids, axis=1, kind="stable")
    in_order = np.take_along_axis(ids, order, axis=1)
    again = np.zeros(ids.shape, dtype=np.bool_)
    again[:, 1:] = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated


def _lookup(table: NDArray[np.int32], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """-1 for ids that are none of the tokenizer's, such as padding rows of a head."""
    inside = (ids >= 0) & (ids < len(table))
    return np.where(inside, table[np.where(inside, ids, 0)], -1).astype(np.int32)
