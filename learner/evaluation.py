"""Exact divergences of student and teacher on given tokens.

Shape suffixes: R response tokens, C positions of a chunk, V vocabulary, d hidden size.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from learner.head import chunk_logits

OVERLAP_K = 16
_SUMS = ("reverse_kl", "forward_kl", "overlap_ratio")


@dataclass(frozen=True)
class ExampleDivergence:
    """How far apart student and teacher are on one response: exact, *sums* over its loss tokens."""

    example_index: int  # which example of the batch
    tokens: int
    reverse_kl: float  # KL(student || teacher), full vocabulary, nats
    forward_kl: float  # KL(teacher || student), full vocabulary, nats
    overlap_ratio: float  # share of the two top-16 that coincides


@dataclass(frozen=True)
class TeacherHead:
    """A teacher's LM head in float32."""

    weight: Tensor  # [V, d of the teacher]
    bias: Tensor | None  # [V]


def divergences(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher: TeacherHead,
    chunk_tokens: int,
) -> dict[str, Tensor]:
    """Full-vocabulary reverse KL, forward KL (nats) and top-16 overlap ratio of each token, [R] each.

    Ids beyond the shorter of the two heads are padding rows that no tokenizer emits; both softmaxes leave
    them out.

    Args:
        hidden: [R, d] the student's states, `weight` and `bias` its head.
        teacher_hidden: [R, d of the teacher].
    """
    shared = min(len(weight), len(teacher.weight))
    student_head = weight[:shared].float(), None if bias is None else bias[:shared].float()
    teacher_head = teacher.weight[:shared], None if teacher.bias is None else teacher.bias[:shared]
    parts = []
    for start in range(0, max(len(hidden), 1), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        logp_CV = _logprobs(hidden[chunk], *student_head)
        logq_CV = _logprobs(teacher_hidden[chunk], *teacher_head)
        parts.append(_compare(logp_CV, logq_CV))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _logprobs(hidden_Cd: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits_CV = weight.new_empty(len(hidden_Cd), len(weight))
    logprobs_CV = torch.log_softmax(chunk_logits(hidden_Cd.float(), weight, bias, out=logits_CV), dim=-1)
    return logprobs_CV.clamp_(min=torch.finfo(logprobs_CV.dtype).min / 2)  # 0 * log 0 is 0


def _compare(logp_CV: Tensor, logq_CV: Tensor) -> dict[str, Tensor]:
    k = min(OVERLAP_K, logp_CV.shape[1])
    top_p, top_q = (logprobs.topk(k, dim=-1).indices for logprobs in (logp_CV, logq_CV))
    log_ratio_CV = logp_CV - logq_CV
    return {
        "reverse_kl": (logp_CV.exp() * log_ratio_CV).sum(-1),
        "forward_kl": -(logq_CV.exp() * log_ratio_CV).sum(-1),
        "overlap_ratio": (top_p[:, :, None] == top_q[:, None, :]).any(-1).float().mean(-1),
    }


class ExampleSums:
    """Token values summed by example, on every rank the same once reduced."""

    def __init__(self, examples: int, device: torch.device) -> None:
        self._sums = torch.zeros(examples, 1 + len(_SUMS), dtype=torch.float64, device=device)

    def add(self, values: dict[str, Tensor], example_index: Tensor) -> None:
        """Add token values [R], each to its example [R]."""
        columns = [torch.ones_like(values["reverse_kl"]), *(values[name] for name in _SUMS)]
        self._sums.index_add_(0, example_index, torch.stack(columns, dim=1).double())

    def reduce(self) -> list[ExampleDivergence]:
        """One record an example, in order. A collective: every rank must call it."""
        dist.all_reduce(self._sums)
        rows = self._sums.tolist()
        return [ExampleDivergence(index, int(tokens), *sums) for index, (tokens, *sums) in enumerate(rows)]
