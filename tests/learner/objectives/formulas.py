"""The objectives as their formulas read, on one position at a time, for autograd to differentiate.

Nothing here is shared with the code under test: supports are Python sets, distributions are normalised by hand, and
advantages come from differentiating the divergence.

Shape suffixes: S ids of a support, V vocabulary.
"""

import torch
from torch import Tensor

from learner.objectives.config import Gradient, Normalisation, Shaping, Support, TermConfig

SHAPES = {
    Shaping.none: lambda a, low, high: a,
    Shaping.clip: lambda a, low, high: a.clamp(low, high),
    Shaping.log: lambda a, low, high: a.sign() * (1 + a.abs()).log(),
    Shaping.tanh: lambda a, low, high: a.tanh(),
}


def support_of(kind: Support, k: int, logp_V: Tensor, logq_V: Tensor) -> list[int]:
    ours, theirs = (set(x.topk(min(k, len(x))).indices.tolist()) for x in (logp_V, logq_V))
    return sorted(
        {
            Support.student_topk: ours,
            Support.teacher_topk: theirs,
            Support.intersection: ours & theirs,
            Support.union: ours | theirs,
            Support.symmetric_difference: ours ^ theirs,
            Support.full: set(range(len(logp_V))),
        }[kind]
    )


def divergence_sum(term: TermConfig, logp_S: Tensor, logq_S: Tensor) -> Tensor:
    p, q, beta, alpha = logp_S.exp(), logq_S.exp(), term.beta, term.alpha
    reverse, forward = (p * (logp_S - logq_S)).sum(), (q * (logq_S - logp_S)).sum()
    if term.divergence == "reverse_kl":
        return reverse
    if term.divergence == "forward_kl":
        return forward
    if term.divergence == "jsd":
        if beta in (0, 1):
            return reverse if beta else forward
        m = beta * q + (1 - beta) * p
        return beta * (q * (q / m).log()).sum() + (1 - beta) * (p * (p / m).log()).sum()
    if term.divergence == "skewed_reverse_kl":
        return (p * (p / ((1 - alpha) * q + alpha * p)).log()).sum()
    return (q * (q / (alpha * q + (1 - alpha) * p)).log()).sum()


def mass_coefficient(term: TermConfig) -> float:
    """What the truncated sum pulls on its own support's mass with where p = q (forward KL keeps its pull)."""
    if term.divergence == "jsd":
        return 1.0 if term.beta == 1 else 0.0
    return {
        "reverse_kl": 1.0,
        "forward_kl": 0.0,
        "skewed_reverse_kl": 1 - term.alpha,
        "skewed_forward_kl": term.alpha - 1,
    }[term.divergence]


def without_mass_gradient(term: TermConfig, logp_S: Tensor, logq_S: Tensor) -> Tensor:
    """The sum with its value, and without the gradient of the support's mass."""
    mass = logp_S.exp().sum()
    return divergence_sum(term, logp_S, logq_S) - mass_coefficient(term) * (mass - mass.detach())


def normalised(kind: Normalisation, logp_S: Tensor, logq_S: Tensor) -> tuple[Tensor, Tensor]:
    if kind is Normalisation.renormalised:
        return tuple((x.exp() / x.exp().sum()).log() for x in (logp_S, logq_S))  # type: ignore[return-value]
    if kind is Normalisation.tail:
        return tuple(torch.cat([x, (1 - x.exp().sum()).log()[None]]) for x in (logp_S, logq_S))  # type: ignore[return-value]
    return logp_S, logq_S


def advantages(term: TermConfig, logp_S: Tensor, logq_S: Tensor) -> Tensor:
    """A = -g / p with g differentiated, as if the log-probs were free variables."""
    free = logp_S.detach().requires_grad_()
    (g_S,) = torch.autograd.grad(without_mass_gradient(term, free, logq_S), free)
    return -g_S / free.detach().exp()


def position_loss(term: TermConfig, logp_V: Tensor, logq_V: Tensor) -> Tensor:
    """The loss of a term on more than the sampled token; its autograd is the gradient that the term must have."""
    ids = support_of(term.support, term.k, logp_V.detach(), logq_V)
    if not ids:
        return logp_V.sum() * 0
    logp, logq = normalised(term.normalisation, logp_V[ids], logq_V[ids])
    if term.gradient is Gradient.policy_gradient:
        shape = SHAPES[term.shaping]
        weights = logp.exp() * shape(advantages(term, logp, logq), term.shaping_low, term.shaping_high)
        loss = -(weights.detach() * logp).sum()
    elif term.normalisation in (Normalisation.raw, Normalisation.averaged):
        loss = without_mass_gradient(term, logp, logq)
    else:
        loss = divergence_sum(term, logp, logq)
    averaged = term.normalisation is Normalisation.averaged
    return loss / logp_V[ids].exp().sum().detach() if averaged else loss


def losses(term: TermConfig, logp_CV: Tensor, logq_CV: Tensor) -> Tensor:
    """[C]"""
    return torch.stack([position_loss(term, p, q) for p, q in zip(logp_CV, logq_CV, strict=True)])
