"""What student and teacher share of their most likely ids at each position, at temperature 1.

Shape suffixes: C positions, K most likely ids of each model, V vocabulary.

Definitions: Rethinking On-Policy Distillation, arXiv 2604.13016; S^p and S^q are the top k of student and teacher.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.base import LOG_ZERO
from learner.rowwise import row_blocks, row_dots
from tutelage.lm.top_k import top_k


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
