"""Divergences of student p and teacher q as sums over ids, each with its gradient on the student's log-probs.

`terms` gives, id by id, the summand and g = d loss / d log p as if the log-probs were free variables. On the whole
vocabulary g is exact up to multiples of p, which the softmax cancels. On a part of it g is chosen so that the mass
of the part gets no gradient of its own (the "stop-gradient" form); the full derivative of the truncated sum is
g + `excess` * p.

`advantage` is -g / p: the policy gradient with it has g as its expectation.

All inputs are finite log-probs in nats of one shape, which is also the shape of the results; at least LOG_ZERO,
so that every ratio of probabilities is a finite float32.

Sources: generalised JSD: Agarwal et al., "On-Policy Distillation of Language Models", arXiv 2306.13649; skewed
divergences: Ko et al., "DistiLLM", arXiv 2402.03898.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from learner.objectives.config import Divergence, TermConfig


class PointwiseDivergence(Protocol):
    @property
    def excess(self) -> float:
        """What a truncated sum's own derivative has besides g, over p."""

    @property
    def baseline(self) -> float:
        """Expectation of the advantage under p where p = q."""

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        """Summand and g."""

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        """-g / p."""


@dataclass(frozen=True)
class ReverseKL:
    """p log(p/q); g = p log(p/q)."""

    excess: float = 1.0
    baseline: float = 0.0

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        value = logp.exp() * (logp - logq)
        return value, value

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return logq - logp


@dataclass(frozen=True)
class ForwardKL:
    """q log(q/p); g = -q."""

    excess: float = 0.0
    baseline: float = 1.0

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        q = logq.exp()
        return q * (logq - logp), -q

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (logq - logp).exp()


@dataclass(frozen=True)
class GeneralisedJSD:
    """b q log(q/m) + (1-b) p log(p/m), m = b q + (1-b) p; g = (1-b) p log(p/m), the full derivative. 0 < b < 1."""

    beta: float
    excess: float = 0.0
    baseline: float = 0.0

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        logm = _log_mixture(self.beta, logq, logp)
        grad = (1 - self.beta) * logp.exp() * (logp - logm)
        return self.beta * logq.exp() * (logq - logm) + grad, grad

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (1 - self.beta) * (_log_mixture(self.beta, logq, logp) - logp)


@dataclass(frozen=True)
class SkewedReverseKL:
    """p log(p/m), m = (1-a) q + a p; g = p (log(p/m) + a (1 - p/m)). 0 < a < 1."""

    alpha: float
    baseline: float = 0.0

    @property
    def excess(self) -> float:
        return 1 - self.alpha

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        p, log_ratio = logp.exp(), logp - _log_mixture(self.alpha, logp, logq)
        return p * log_ratio, p * (log_ratio - self.alpha * log_ratio.expm1())

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        log_ratio = logp - _log_mixture(self.alpha, logp, logq)
        return self.alpha * log_ratio.expm1() - log_ratio


@dataclass(frozen=True)
class SkewedForwardKL:
    """q log(q/m), m = a q + (1-a) p; g = (1-a) p (1 - q/m). 0 < a < 1."""

    alpha: float
    baseline: float = 0.0

    @property
    def excess(self) -> float:
        return self.alpha - 1

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio = logq - _log_mixture(self.alpha, logq, logp)
        return logq.exp() * log_ratio, (self.alpha - 1) * logp.exp() * log_ratio.expm1()

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (1 - self.alpha) * (logq - _log_mixture(self.alpha, logq, logp)).expm1()


def _log_mixture(share: float, first: Tensor, second: Tensor) -> Tensor:
    """log(share exp(first) + (1 - share) exp(second)), 0 < share < 1."""
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def divergence_of(term: TermConfig) -> PointwiseDivergence:
    """The divergence that a term names; the ends of JSD(beta) and a skew of 0 are the KLs they stand for."""
    kind, beta, alpha = term.divergence, term.beta, term.alpha
    if kind is Divergence.jsd and 0 < beta < 1:
        return GeneralisedJSD(beta)
    if kind is Divergence.skewed_reverse_kl and alpha > 0:
        return SkewedReverseKL(alpha)
    if kind is Divergence.skewed_forward_kl and alpha > 0:
        return SkewedForwardKL(alpha)
    forward = kind in (Divergence.forward_kl, Divergence.skewed_forward_kl) or (kind is Divergence.jsd and beta == 0)
    return ForwardKL() if forward else ReverseKL()
