"""Ratio of the current policy to the distribution that a token was sampled from.

Shape suffixes: C positions.

Truncated importance weights: Ionides, "Truncated Importance Sampling", 2008. Clipped surrogate: Schulman et al.,
"Proximal Policy Optimization Algorithms", arXiv 1707.06347; separate bounds: Yu et al., "DAPO", arXiv 2503.14476;
dual clip: Ye et al., "Mastering Complex Control in MOBA Games", arXiv 1912.09729.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.config import Importance, TermConfig


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


def policy_gradient(term: TermConfig, advantage: Tensor, logp: Tensor, sampling_logp: Tensor) -> Weighted:
    """-sg(w A) log p, or the clipped surrogate; all [C]."""
    if term.importance is Importance.ppo_clip:
        return _clipped_surrogate(term, advantage, (logp - sampling_logp).exp())
    weight, metrics = truncated_weight(term, logp, sampling_logp)
    grad = -weight * advantage
    return Weighted(grad * logp, grad, metrics)


def _clipped_surrogate(term: TermConfig, advantage: Tensor, ratio: Tensor) -> Weighted:
    """-min(ratio A, clip(ratio) A), at most -dual_clip A where A < 0; the gradient is -ratio A where neither binds."""
    free = ratio * advantage
    bounded = ratio.clamp(1 - term.clip_low, 1 + term.clip_high) * advantage
    surrogate = torch.minimum(free, bounded)
    if term.dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, term.dual_clip * advantage), surrogate)
    active = surrogate == free
    metrics = {"importance_ratio": ratio, "importance_ratio_clipped": (~active).to(ratio.dtype)}
    return Weighted(-surrogate, torch.where(active, -free, torch.zeros_like(free)), metrics)
