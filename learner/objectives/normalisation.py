"""What is made of two distributions on a support, and how gradients come back from there.

Shape suffixes: C positions, K ids of a support, V vocabulary.

A divergence is taken between `Normalised` log-probs. Its g on those becomes g on the student's own log-probs by
the chain rule:

    renormalised   log p' = log p - log M_S(p)     g_v = g'_v - p'_v sum(g')
    tail           one more column log(1 - M_S)    g_v = g'_v on S; for ids off S, g'_tail p_v / (1 - M_S)

The tail's gradient is spread over the ids off S in proportion to p instead of being taken from those on S (the two
differ by a multiple of p, which the softmax cancels): nothing large is subtracted when 1 - M_S is tiny.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.base import LOG_ZERO, StudentChunk
from learner.objectives.config import Normalisation
from learner.objectives.supports import SupportChunk


@dataclass(frozen=True)
class Normalised:
    """Log-probs to compare; [C, K], with a tail [C, K + 1]."""

    student: Tensor
    teacher: Tensor
    present: Tensor


@dataclass(frozen=True)
class Tail:
    """The gradient of the outcome "none of the support's ids"."""

    support: SupportChunk
    grad: Tensor  # [C], on its log-prob
    mass: Tensor  # [C], the student's probability of it


def normalise(kind: Normalisation, support: SupportChunk, student: StudentChunk) -> Normalised:
    """Make of both models' log-probs on a support what is to be compared."""
    if kind is Normalisation.renormalised:
        return Normalised(
            _renormalise(support.student, support.present),
            _renormalise(support.teacher, support.present),
            support.present,
        )
    if kind is Normalisation.tail:
        log_tail_p = student_tail_mass(support, student).clamp(min=0).log().clamp(min=LOG_ZERO)
        return _with_tail(support, log_tail_p)
    return Normalised(support.student, support.teacher, support.present)


def present_sum(values: Tensor, present: Tensor) -> Tensor:
    """Sum over the last dimension of what is present; 0 if nothing is."""
    return values.masked_fill(~present, 0.0).sum(-1)


def mass(logprobs: Tensor, present: Tensor) -> Tensor:
    """Probability of the support, [C]; rounding may carry it above 1."""
    return present_sum(logprobs.exp(), present)


def student_tail_mass(support: SupportChunk, student: StudentChunk) -> Tensor:
    """The student's probability off the support, [C], summed there: 1 - M_S would be all rounding near 0."""
    p_CK = student.probs.gather(1, support.ids)
    student.probs.scatter_(1, support.ids, p_CK.masked_fill(support.inside(), 0.0))
    outside = student.probs.sum(-1)
    student.probs.scatter_(1, support.ids, p_CK)
    return outside


def log_tail(logprobs: Tensor, present: Tensor) -> Tensor:
    """log(1 - M_S), [C], from the log-probs of S alone: below the rounding of M_S it counts as that rounding."""
    rounding = torch.finfo(logprobs.dtype).eps
    return (1 - mass(logprobs, present)).clamp(min=rounding).log()


def _renormalise(logprobs: Tensor, present: Tensor) -> Tensor:
    log_mass = logprobs.masked_fill(~present, -torch.inf).logsumexp(-1, keepdim=True)
    return logprobs - log_mass.masked_fill(~present.any(-1, keepdim=True), 0.0)


def _with_tail(support: SupportChunk, log_tail_p: Tensor) -> Normalised:
    return Normalised(
        torch.cat([support.student, log_tail_p[:, None]], dim=1),
        torch.cat([support.teacher, log_tail(support.teacher, support.present)[:, None]], dim=1),
        torch.cat([support.present, torch.ones_like(support.present[:, :1])], dim=1),
    )
