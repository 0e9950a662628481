"""Ratio of the current policy to the distribution that a token was sampled from.

Shape suffixes: C positions.

With p the student now and p_T the same at the sampling temperature, the ratio has two factors:

    p / p_rollout = (p / p_T) (p_T / p_rollout)

The first is the temperature's, known exactly, and no reason to distrust a token; the second is how far the weights have
moved since the rollout, and 1 where they have not. A truncated weight bounds their product. PPO's clip is about the
second alone, and the first weighs the token.

Truncated importance weights: Ionides, "Truncated Importance Sampling", 2008. Clipped surrogate: Schulman et al.,
"Proximal Policy Optimization Algorithms", arXiv 1707.06347; separate bounds: Yu et al., "DAPO", arXiv 2503.14476;
dual clip: Ye et al., "Mastering Complex Control in MOBA Games", arXiv 1912.09729.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.config import Importance, TermConfig
from learner.objectives.spans import Actions


@dataclass(frozen=True)
class Weighted:
    """A sampled token's policy-gradient loss."""

    loss: Tensor  # [C]
    grad: Tensor  # [C], g on the log-prob of the sampled token
    metrics: dict[str, Tensor]  # [C] each


def truncated_weight(term: TermConfig, logp: Tensor, sampling_logp: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """min(ratio, cap), detached, [C]; ones if the term does not weigh."""
    if term.importance is not Importance.truncated:
        return torch.ones_like(logp), {}
    ratio = (logp - sampling_logp).exp()
    clipped = (ratio > term.ratio_cap).to(logp.dtype)
    return ratio.clamp(max=term.ratio_cap), {"importance_ratio": ratio, "importance_ratio_clipped": clipped}


def policy_gradient(term: TermConfig, advantage: Tensor, action: Actions) -> Weighted:
    """-sg(w A) log p, or the clipped surrogate; all [C]."""
    if term.importance is Importance.ppo_clip:
        return _clipped_surrogate(term, advantage, action)
    weight, metrics = truncated_weight(term, action.student, action.sampling)
    grad = -weight * advantage
    return Weighted(grad * action.student, grad, metrics)


def _clipped_surrogate(term: TermConfig, advantage: Tensor, action: Actions) -> Weighted:
    """-c min(r A, clip(r) A) with r = p_T / p_rollout and c = p / p_T.

    Where A < 0 the minimum is at least dual_clip A. The gradient is -c r A on log p where nothing binds: on policy that
    of the samples' own importance weights, at every temperature.
    """
    ratio, weight = (action.tempered - action.sampling).exp(), (action.student - action.tempered).exp()
    free = ratio * advantage
    bounded = ratio.clamp(1 - term.clip_low, 1 + term.clip_high) * advantage
    surrogate = torch.minimum(free, bounded)
    if term.dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, term.dual_clip * advantage), surrogate)
    active = surrogate == free
    metrics = {
        "importance_ratio": ratio,
        "importance_ratio_clipped": (~active).to(ratio.dtype),
        "temperature_weight": weight,
    }
    return Weighted(-weight * surrogate, torch.where(active, -weight * free, torch.zeros_like(free)), metrics)
