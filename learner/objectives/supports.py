"""The ids at a position that a term compares, with both models' log-probs of them.

Shape suffixes: C positions, K ids of a support (twice k for a union), V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.base import StudentChunk, teacher_floor
from learner.objectives.config import Support
from learner.records import Rows


@dataclass(frozen=True)
class SupportChunk:
    """A support at C positions. Slots that are not `present` stand for nothing, whatever their id."""

    ids: Tensor  # [C, K]
    present: Tensor  # [C, K] bool; the present ids of a position are distinct
    student: Tensor  # [C, K] log-probs
    teacher: Tensor  # [C, K] log-probs, at least LOG_ZERO

    def inside(self) -> Tensor:
        """[C, K]: whether the slot's id is one of the support's, the slot present or not."""
        return _among(self.ids, self.ids, self.present)


@dataclass(frozen=True)
class _TopK:
    ids: Tensor  # [C, k]
    present: Tensor  # [C, k], ids that the student's head has
    teacher: Tensor  # [C, k]


def build_support(kind: Support, k: int, student: StudentChunk, rows: Rows) -> SupportChunk:
    """Gather a support of few ids.

    Raises:
        ValueError: the rows lack one of the top-k lists, or it is shorter than k.
    """
    vocabulary = student.logprobs.shape[1]
    if kind is Support.student_topk:
        chosen = _top("support", rows.support(), k, vocabulary)
    elif kind is Support.teacher_topk:
        chosen = _top("teacher_top", rows.teacher_top(), k, vocabulary)
    else:
        first = _top("support", rows.support(), k, vocabulary)
        second = _top("teacher_top", rows.teacher_top(), k, vocabulary)
        chosen = _COMBINATIONS[kind](first, second)
    return SupportChunk(chosen.ids, chosen.present, student.logprobs_of(chosen.ids), chosen.teacher)


def top_overlap(k: int, rows: Rows) -> Tensor:
    """Share of the teacher's k most likely ids that are among the student's k, [C]."""
    student_ids, teacher_ids = rows.require("support_ids")[:, :k], rows.require("teacher_top_ids")[:, :k]
    return _among(teacher_ids, student_ids, torch.ones_like(student_ids, dtype=torch.bool)).double().mean(-1)


def _top(field: str, top: tuple[Tensor, Tensor], k: int, vocabulary: int) -> _TopK:
    ids_CK, logq_CK = (x[:, :k] for x in top)
    if len(ids_CK) and ids_CK.shape[1] < k:  # an idle rank's batch has no rows of any width
        raise ValueError(f"objective.k={k}: the batch has only {ids_CK.shape[1]} ids a position in Rows.{field}_ids")
    present_CK = (ids_CK >= 0) & (ids_CK < vocabulary)  # the heads may be padded to different lengths
    return _TopK(ids_CK.clamp(0, vocabulary - 1), present_CK, teacher_floor(logq_CK))


def _among(ids: Tensor, others: Tensor, present: Tensor) -> Tensor:
    """[C, K]: whether each id is one of `others` [C, J] that are `present` [C, J]."""
    return ((ids[:, :, None] == others[:, None, :]) & present[:, None, :]).any(-1)


def _intersection(first: _TopK, second: _TopK) -> _TopK:
    return _TopK(first.ids, first.present & _among(first.ids, second.ids, second.present), first.teacher)


def _union(first: _TopK, second: _TopK) -> _TopK:
    new = second.present & ~_among(second.ids, first.ids, first.present)
    return _join(first, first.present, second, new)


def _symmetric_difference(first: _TopK, second: _TopK) -> _TopK:
    only_first = first.present & ~_among(first.ids, second.ids, second.present)
    only_second = second.present & ~_among(second.ids, first.ids, first.present)
    return _join(first, only_first, second, only_second)


def _join(first: _TopK, keep_first: Tensor, second: _TopK, keep_second: Tensor) -> _TopK:
    return _TopK(
        torch.cat([first.ids, second.ids], dim=1),
        torch.cat([keep_first, keep_second], dim=1),
        torch.cat([first.teacher, second.teacher], dim=1),
    )


_COMBINATIONS = {
    Support.intersection: _intersection,
    Support.union: _union,
    Support.symmetric_difference: _symmetric_difference,
}
