"""What student and teacher say at every loss token of a response, one by one: for diagnosis, not for training.

Shape suffixes: R loss tokens of a micro-batch, T loss tokens of an example, C positions of a chunk, K most likely
ids, V vocabulary, d hidden size.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learner.head.overlap import Top, overlap
from learner.records import ExampleDivergence, ExampleLogprobs, ExampleTokens
from learner.rowwise import log_softmax_, row_blocks, row_dots, write_rows
from tutelage.lm.head import Head, TeacherHead

# A probability of zero: far below any log-prob, and finite, so that 0 * log 0 is 0.
_LOG_NOTHING = torch.finfo(torch.float32).min / 2
_LOG_NOTHING = torch.finfo(torch.float32).min / 2  # of a probability of zero: finite, so that 0 * log 0 is 0
TOPS = (
    "student_top_ids",
    "student_top_logprobs",
    "teacher_logprobs_at_student_top",
    "teacher_top_ids",
    "teacher_top_logprobs",
    "student_logprobs_at_teacher_top",
)


def examine_rows(
    student: Head,
    hidden_Rd: Tensor,
    teacher: TeacherHead,
    teacher_hidden_Rd: Tensor,
    targets_R: Tensor,
    k: int,
    chunk_tokens: int,
) -> dict[str, Tensor]:
    """The values of `ExampleTokens` at R positions: [R], and [R, K] for its tops.

    Ids beyond the shorter of the two heads are padding rows that no tokenizer emits; both softmaxes leave them out.

    Args:
        targets_R: the tokens that came.
    """
    shared = min(len(student), len(teacher))
    heads = student.shortened(shared), teacher.shortened(shared)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, max(len(hidden_Rd), 1), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        logp_CV, logq_CV = (
            log_softmax_(head.logits(states.float(), out=states.new_empty(len(states), shared).float()), _LOG_NOTHING)
            for head, states in zip(heads, (hidden_Rd[rows], teacher_hidden_Rd[rows]), strict=True)
        )
        parts.append(_examine(logp_CV, logq_CV, targets_R[rows], k))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _examine(logp_CV: Tensor, logq_CV: Tensor, targets_C: Tensor, k: int) -> dict[str, Tensor]:
    student_top, teacher_top = logp_CV.topk(k, dim=-1), logq_CV.topk(k, dim=-1)
    tops = Top(student_top.indices, student_top.values), Top(teacher_top.indices, teacher_top.values)
    return {
        "student_logprob": logp_CV.gather(1, targets_C[:, None])[:, 0],
        "teacher_logprob": logq_CV.gather(1, targets_C[:, None])[:, 0],
        "student_entropy": -row_dots(logp_CV.exp(), logp_CV),
        **compare(logp_CV, logq_CV),
        **overlap(*tops),
        "student_top_ids": tops[0].ids,
        "student_top_logprobs": tops[0].logprobs,
        "teacher_logprobs_at_student_top": logq_CV.gather(1, tops[0].ids),
        "teacher_top_ids": tops[1].ids,
        "teacher_top_logprobs": tops[1].logprobs,
        "student_logprobs_at_teacher_top": logp_CV.gather(1, tops[1].ids),
    }


def by_example(found: Mapping[str, Tensor], example_index_R: Tensor, positions_R: Tensor) -> list[ExampleTokens]:
    """One record for each example that has rows here."""
    owners, positions = example_index_R.cpu().numpy(), positions_R.cpu().numpy().astype(np.int32)
    arrays = {name: value.cpu().numpy() for name, value in found.items()}
    records = []
    for example in np.unique(owners):
        rows = np.flatnonzero(owners == example)
        rows = rows[np.argsort(positions[rows])]
        tops = {
            name: arrays[name][rows].astype(np.int32 if name.endswith("_ids") else np.float32, copy=False)
            for name in TOPS
        }
        values = {name: arrays[name][rows].astype(np.float32, copy=False) for name in arrays if name not in TOPS}
        records.append(ExampleTokens(int(example), positions[rows], values, **tops))
    return records


_SUMS = ("reverse_kl", "forward_kl", "overlap_ratio")  # the last one where it is measured


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


def token_logprobs(
    head: Head, hidden_Rd: Tensor, targets_R: Tensor, temperatures_R: Tensor, chunk_tokens: int
) -> Tensor:
    """Log-probs [R] of the targets, each at its temperature."""
    found = [hidden_Rd.new_empty(0, dtype=torch.float32)]
    for start in range(0, len(hidden_Rd), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        states_Cd = hidden_Rd[rows].float()
        logits_CV = head.logits(states_Cd, out=states_Cd.new_empty(len(states_Cd), len(head)))
        logprobs_CV = (logits_CV / temperatures_R[rows, None]).log_softmax(-1)
        found.append(logprobs_CV.gather(1, targets_R[rows, None])[:, 0])
    return torch.cat(found)


def split_by_example(values_R: Tensor, example_index_R: Tensor, positions_R: Tensor) -> list[ExampleLogprobs]:
    """One record for each example that has rows here, in the order of its response."""
    values, owners, positions = (x.cpu().numpy() for x in (values_R, example_index_R, positions_R))
    records = []
    for example in np.unique(owners):
        rows = np.flatnonzero(owners == example)
        records.append(ExampleLogprobs(int(example), values[rows[np.argsort(positions[rows])]].astype(np.float32)))
    return records
