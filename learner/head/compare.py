"""What student and teacher say at every loss token of a response, one by one: measured, not learned from.

Shape suffixes: R loss tokens of a micro-batch, T loss tokens of an example, C positions of a chunk, K most likely
ids, V vocabulary, d hidden size.

Overlap of the most likely ids: Rethinking On-Policy Distillation, arXiv 2604.13016; S^p and S^q are the top k of
student and teacher, at temperature 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from learner.objectives.base import LOG_ZERO
from learner.records import ExampleDivergence, ExampleTokens, Rows
from learner.rowwise import log_softmax_, row_blocks, row_dots, slices, write_rows
from tutelage.lm.head import Head, TeacherHead
from tutelage.lm.top_k import top_k
from tutelage.stops import StopClass

# A probability of zero: far below any log-prob, and finite, so that 0 * log 0 is 0.
_LOG_NOTHING = torch.finfo(torch.float32).min / 2
_TOPS = (
    "student_top_ids",
    "student_top_logprobs",
    "teacher_logprobs_at_student_top",
    "teacher_top_ids",
    "teacher_top_logprobs",
    "student_logprobs_at_teacher_top",
)
_SUMS = ("reverse_kl", "forward_kl", "overlap_ratio")  # the last one where it is measured


def _by_chunk(
    sides: Sequence[tuple[TeacherHead, Tensor]],
    chunk_tokens: int,
    work: Callable[..., dict[str, Tensor]],
    stops: StopClass | None,
) -> dict[str, Tensor]:
    """Values [R, …] by name, a chunk of positions at a time.

    Args:
        sides: heads of one vocabulary, each with the states [R, d] that enter it.
        work: makes the values [C, …] of the chunk's slice of rows and the logits [C, V] of each side, which it may
            overwrite.
        stops: ids that are one action.
    """
    total = len(sides[0][1])
    chunk = min(chunk_tokens, max(total, 1))
    buffers = [states.new_empty(chunk, len(head), dtype=torch.float32) for head, states in sides]
    values: dict[str, Tensor] = {}
    for rows in slices(total, chunk):
        logits = [
            head.logits(states[rows].float(), out=buffer[: rows.stop - rows.start])
            for (head, states), buffer in zip(sides, buffers, strict=True)
        ]
        if stops is not None:
            for logits_CV in logits:
                stops.merge_(logits_CV)
        write_rows(values, rows, work(rows, *logits), total)
    return values


def _both(
    student: Head,
    hidden_Rd: Tensor,
    teacher: TeacherHead,
    teacher_hidden_Rd: Tensor,
    chunk_tokens: int,
    work: Callable[[slice, Tensor, Tensor], dict[str, Tensor]],
    stops: StopClass | None,
) -> dict[str, Tensor]:
    """What `work` makes of each chunk's rows and the log-probs [C, V] of student and teacher, all finite.

    Ids beyond the shorter of the two heads are padding rows that no tokenizer emits; both softmaxes leave them out.
    """
    shared = min(len(student), len(teacher))
    sides = ((student.shortened(shared), hidden_Rd), (teacher.shortened(shared), teacher_hidden_Rd))

    def normalised(rows: slice, *both: Tensor) -> dict[str, Tensor]:
        return work(rows, *(log_softmax_(logits, _LOG_NOTHING) for logits in both))

    return _by_chunk(sides, chunk_tokens, normalised, stops)


def examine_rows(
    student: Head,
    hidden_Rd: Tensor,
    teacher: TeacherHead,
    teacher_hidden_Rd: Tensor,
    targets_R: Tensor,
    k: int,
    chunk_tokens: int,
    stops: StopClass | None = None,
) -> dict[str, Tensor]:
    """The values of `ExampleTokens` at R positions: [R], and [R, K] for its tops.

    Args:
        targets_R: the tokens that came.
        stops: ids that are one action.
    """
    if stops is not None:
        targets_R = stops.renamed(targets_R)

    def work(rows: slice, logp_CV: Tensor, logq_CV: Tensor) -> dict[str, Tensor]:
        target_C1 = targets_R[rows, None]
        ours, theirs = (Top(top.indices, top.values) for top in (logp_CV.topk(k, dim=-1), logq_CV.topk(k, dim=-1)))
        return {
            "student_logprob": logp_CV.gather(1, target_C1)[:, 0],
            "teacher_logprob": logq_CV.gather(1, target_C1)[:, 0],
            "student_entropy": -row_dots(logp_CV.exp(), logp_CV),
            **compare(logp_CV, logq_CV),
            **overlap(ours, theirs),
            "student_top_ids": ours.ids,
            "student_top_logprobs": ours.logprobs,
            "teacher_logprobs_at_student_top": logq_CV.gather(1, ours.ids),
            "teacher_top_ids": theirs.ids,
            "teacher_top_logprobs": theirs.logprobs,
            "student_logprobs_at_teacher_top": logp_CV.gather(1, theirs.ids),
        }

    return _both(student, hidden_Rd, teacher, teacher_hidden_Rd, chunk_tokens, work, stops)


def divergences(
    student: Head,
    hidden: Tensor,
    teacher: TeacherHead,
    teacher_hidden: Tensor,
    chunk_tokens: int,
    k: int = 0,
    stops: StopClass | None = None,
) -> dict[str, Tensor]:
    """What `compare` says of each token, and with `k` what `overlap` says of the two top k, [R] each.

    Args:
        hidden: [R, d] the student's states.
        teacher_hidden: [R, d of the teacher].
        stops: ids that are one action.
    """

    def work(_rows: slice, logp_CV: Tensor, logq_CV: Tensor) -> dict[str, Tensor]:
        shared_top = overlap(Top.of(logp_CV, k), Top.of(logq_CV, k)) if k else {}
        return compare(logp_CV, logq_CV) | shared_top

    return _both(student, hidden, teacher, teacher_hidden, chunk_tokens, work, stops)


def token_logprobs(
    head: Head,
    hidden_Rd: Tensor,
    targets_R: Tensor,
    temperatures_R: Tensor,
    chunk_tokens: int,
    stops: StopClass | None = None,
) -> dict[str, Tensor]:
    """The "logprob" [R] of each target, at its temperature; `stops` are ids that are one action."""
    if stops is not None:
        targets_R = stops.renamed(targets_R)

    def work(rows: slice, logits_CV: Tensor) -> dict[str, Tensor]:
        logprobs_CV = logits_CV.div_(temperatures_R[rows, None]).log_softmax(-1)
        return {"logprob": logprobs_CV.gather(1, targets_R[rows, None])[:, 0]}

    return _by_chunk([(head, hidden_Rd)], chunk_tokens, work, stops)


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


@dataclass(frozen=True)
class Top:
    """The most likely ids of a model at C positions, in any order."""

    ids: Tensor  # [C, K]
    logprobs: Tensor  # [C, K]

    @classmethod
    def of(cls, logprobs_CV: Tensor, k: int) -> "Top":
        logprobs_CK, ids_CK = top_k(logprobs_CV, k, in_order=False)
        return cls(ids_CK, logprobs_CK)


def top_and_entropy(logits_CV: Tensor, k: int) -> tuple[Top, Tensor]:
    """The top k and the exact entropy [C] in nats of the softmax of logits, which are left as they are."""
    tops, entropies = [], []
    for block in row_blocks(logits_CV):
        logprobs = logits_CV[block].log_softmax(-1).clamp_(min=LOG_ZERO)
        tops.append(Top.of(logprobs, k))
        entropies.append(-row_dots(logprobs.exp(), logprobs))
    return Top(torch.cat([t.ids for t in tops]), torch.cat([t.logprobs for t in tops])), torch.cat(entropies)


def overlap(student: Top, teacher: Top) -> dict[str, Tensor]:
    """Statistics of S^p ∩ S^q, [C] each; ids that only one of the models has count as not shared.

    Returns:
        "overlap_ratio" |S^p ∩ S^q| / k; "overlap_mass_student" and "overlap_mass_teacher", what p and q give to
        the intersection; "overlap_token_advantage", the mean over its ids of p̄ (log q̄ - log p̄) in nats, with
        both renormalised on it, NaN where fewer than two ids are shared; "overlap_undefined_share", 1 there.
    """
    same_CKK = student.ids[:, :, None] == teacher.ids[:, None, :]
    absent_CK = ~same_CKK.any(-1)
    logq_CK = teacher.logprobs.gather(1, same_CKK.byte().argmax(-1))
    logp_CK, logq_CK = (x.clamp(min=LOG_ZERO).masked_fill(absent_CK, -torch.inf) for x in (student.logprobs, logq_CK))
    log_mass_p, log_mass_q = logp_CK.logsumexp(-1, keepdim=True), logq_CK.logsumexp(-1, keepdim=True)
    logp_CK, logq_CK = logp_CK - log_mass_p, logq_CK - log_mass_q
    shared_C = (~absent_CK).sum(-1, dtype=logp_CK.dtype)
    advantage_C = (logp_CK.exp() * (logq_CK - logp_CK)).masked_fill(absent_CK, 0.0).sum(-1) / shared_C
    undefined_C = shared_C < 2
    return {
        "overlap_ratio": shared_C / absent_CK.shape[1],
        "overlap_mass_student": log_mass_p[:, 0].exp(),
        "overlap_mass_teacher": log_mass_q[:, 0].exp(),
        "overlap_token_advantage": advantage_C.masked_fill(undefined_C, torch.nan),
        "overlap_undefined_share": undefined_C.to(logp_CK.dtype),
    }


def by_example(values: Mapping[str, Tensor], rows: Rows) -> dict[int, dict[str, NDArray[Any]]]:
    """The values [T, …] of each example that has rows here, in the order of its response; with its "positions" [T]."""
    owners, positions = rows.require("example_index").cpu().numpy(), rows.require("positions").cpu().numpy()
    arrays = {name: tensor.cpu().numpy() for name, tensor in values.items()} | {"positions": positions}
    arrays = {name: a.astype(np.int32 if a.dtype.kind == "i" else np.float32, copy=False) for name, a in arrays.items()}
    records = {}
    for example in np.unique(owners):
        own = np.flatnonzero(owners == example)
        own = own[np.argsort(positions[own])]
        records[int(example)] = {name: array[own] for name, array in arrays.items()}
    return records


def example_tokens(values: Mapping[str, Tensor], rows: Rows) -> list[ExampleTokens]:
    """What `examine_rows` told, one record for each example that has rows here."""
    records = []
    for example, arrays in by_example(values, rows).items():
        positions, tops = arrays.pop("positions"), {name: arrays.pop(name) for name in _TOPS}
        records.append(ExampleTokens(example, positions, arrays, **tops))
    return records


class ExampleSums:
    """Token values summed by example, on every rank the same once reduced."""

    def __init__(self, examples: int, device: torch.device) -> None:
        self._measured: tuple[str, ...] = _SUMS
        self._sums = torch.zeros(examples, 1 + len(_SUMS), dtype=torch.float64, device=device)

    def add(self, values: dict[str, Tensor], example_index: Tensor) -> None:
        """Add token values [R], each to its example [R]."""
        self._measured = tuple(name for name in _SUMS if name in values)
        ones = torch.ones_like(values["reverse_kl"])
        columns = [ones, *(values.get(name, ones) for name in _SUMS)]
        self._sums.index_add_(0, example_index, torch.stack(columns, dim=1).double())

    def reduce(self) -> list[ExampleDivergence]:
        """One record an example, in order. A collective: every rank must call it."""
        dist.all_reduce(self._sums)
        return [
            ExampleDivergence(
                index, int(tokens), **{k: v for k, v in zip(_SUMS, sums, strict=True) if k in self._measured}
            )
            for index, (tokens, *sums) in enumerate(self._sums.tolist())
        ]
