"""Exact divergences of student and teacher on given tokens.

Shape suffixes: R response tokens, C positions of a chunk, V vocabulary, d hidden size.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from learner.lm_head import Head, TeacherHead
from learner.overlap import Top, overlap
from learner.rowwise import log_softmax_, row_blocks, write_rows

_SUMS = ("reverse_kl", "forward_kl", "overlap_ratio")  # the last one where it is measured
# A probability of zero: far below any log-prob, and finite, so that 0 * log 0 is 0.
_LOG_NOTHING = torch.finfo(torch.float32).min / 2


@dataclass(frozen=True)
class ExampleDivergence:
    """How far apart student and teacher are on one response: exact, *sums* over its loss tokens."""

    example_index: int  # which example of the batch
    tokens: int
    reverse_kl: float  # KL(student || teacher), full vocabulary, nats
    forward_kl: float  # KL(teacher || student), full vocabulary, nats
    overlap_ratio: float | None = None  # share of the two top k that coincides; None: not measured


def divergences(
    student: Head, hidden: Tensor, teacher: TeacherHead, teacher_hidden: Tensor, chunk_tokens: int, overlap_k: int = 0
) -> dict[str, Tensor]:
    """What `compare` says of each token, and with `overlap_k` what `overlap` says of the two top k, [R] each.

    Ids beyond the shorter of the two heads are padding rows that no tokenizer emits; both softmaxes leave
    them out.

    Args:
        hidden: [R, d] the student's states.
        teacher_hidden: [R, d of the teacher].
    """
    shared = min(len(student), len(teacher))
    chunk = min(chunk_tokens, max(len(hidden), 1))
    buffers = student.weight.new_empty(2, chunk, shared)
    sides = ((student.shortened(shared), hidden), (teacher.shortened(shared), teacher_hidden))
    values: dict[str, Tensor] = {}
    for start in range(0, max(len(hidden), 1), chunk):
        rows = slice(start, min(start + chunk, len(hidden)))
        logp_CV, logq_CV = (
            log_softmax_(head.logits(states[rows].float(), out=buffer[: rows.stop - start]), _LOG_NOTHING)
            for (head, states), buffer in zip(sides, buffers, strict=True)
        )
        shared_top = overlap(Top.of(logp_CV, overlap_k), Top.of(logq_CV, overlap_k)) if overlap_k else {}
        write_rows(values, rows, compare(logp_CV, logq_CV) | shared_top, len(hidden))
    return values


def compare(logp_CV: Tensor, logq_CV: Tensor, probs_CV: Tensor | None = None) -> dict[str, Tensor]:
    """Values of [C] positions over the whole vocabulary, from finite log-probs, which are left as they are.

    Args:
        probs_CV: exp(logp_CV) where the caller has it.

    Returns:
        "reverse_kl" KL(p || q) and "forward_kl" KL(q || p), "teacher_entropy" of q, all in nats.
    """
    values: dict[str, Tensor] = {}
    for block in row_blocks(logp_CV):
        logp = logp_CV[block]
        probs = logp.exp() if probs_CV is None else probs_CV[block]
        write_rows(values, block, _compare(logp, logq_CV[block], probs), len(logp_CV))
    return values


def _compare(logp: Tensor, logq: Tensor, p: Tensor) -> dict[str, Tensor]:
    log_ratio, q = logp - logq, logq.exp()
    return {
        "reverse_kl": (p * log_ratio).sum(-1),
        "forward_kl": -(q * log_ratio).sum(-1),
        "teacher_entropy": -(q * logq).sum(-1),
    }


class ExampleSums:
    """Token values summed by example, on every rank the same once reduced."""

    def __init__(self, examples: int, device: torch.device, overlap: bool) -> None:
        """`overlap`: whether the values have an overlap ratio."""
        self._names = _SUMS if overlap else _SUMS[:-1]
        self._sums = torch.zeros(examples, 1 + len(self._names), dtype=torch.float64, device=device)

    def add(self, values: dict[str, Tensor], example_index: Tensor) -> None:
        """Add token values [R], each to its example [R]."""
        columns = [torch.ones_like(values["reverse_kl"]), *(values[name] for name in self._names)]
        self._sums.index_add_(0, example_index, torch.stack(columns, dim=1).double())

    def reduce(self) -> list[ExampleDivergence]:
        """One record an example, in order. A collective: every rank must call it."""
        dist.all_reduce(self._sums)
        rows = self._sums.tolist()
        return [ExampleDivergence(index, int(tokens), *sums) for index, (tokens, *sums) in enumerate(rows)]
