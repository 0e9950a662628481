"""What student and teacher say at every loss token of a response, one by one: for diagnosis, not for training.

Shape suffixes: R loss tokens of a micro-batch, T loss tokens of an example, C positions of a chunk, K most likely
ids, V vocabulary, d hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.evaluation import compare
from learner.lm_head import Head, TeacherHead
from learner.overlap import Top, overlap
from learner.rowwise import log_softmax_, row_dots

_LOG_NOTHING = torch.finfo(torch.float32).min / 2  # of a probability of zero: finite, so that 0 * log 0 is 0
TOPS = (
    "student_top_ids",
    "student_top_logprobs",
    "teacher_logprobs_at_student_top",
    "teacher_top_ids",
    "teacher_top_logprobs",
    "student_logprobs_at_teacher_top",
)


@dataclass(frozen=True)
class ExampleTokens:
    """One response under both models at temperature 1, in nats; T is the number of its loss tokens.

    `values` has [T] of each of: "student_logprob" and "teacher_logprob" of the token, "student_entropy",
    "teacher_entropy", "reverse_kl" KL(student || teacher), "forward_kl", and what `learner.overlap.overlap` tells
    ("overlap_token_advantage" is NaN where fewer than two ids are shared).
    """

    example_index: int  # which example of the batch
    positions: NDArray[np.int32]  # [T], places in the response, from 0
    values: Mapping[str, NDArray[np.float32]]  # [T] each
    student_top_ids: NDArray[np.int32]  # [T, K], most likely first
    student_top_logprobs: NDArray[np.float32]  # [T, K]
    teacher_logprobs_at_student_top: NDArray[np.float32]  # [T, K]
    teacher_top_ids: NDArray[np.int32]  # [T, K], most likely first
    teacher_top_logprobs: NDArray[np.float32]  # [T, K]
    student_logprobs_at_teacher_top: NDArray[np.float32]  # [T, K]


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
