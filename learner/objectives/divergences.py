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
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learner.objectives.config import FORWARD_KL, REVERSE_KL, TermConfig
from tutelage.registry import Registry
from tutelage.settings import Bounds


@dataclass(frozen=True)
class Formula:
    """What a divergence says of itself at one token v, with its parameters as numbers."""

    name: str
    loss: str
    g: str
    advantage: str  # -g / p
    where: str = ""  # what the other parts use besides p and q


class Divergence(ABC):
    """A divergence with its parameters set.

    One more is a subclass and `DIVERGENCES.add("its_name", ItsClass)`; the rules, the description of a run and the
    golden tests then know it. Its parameters are fields, named as the settings of a term that hold them.
    """

    parameters: ClassVar[Mapping[str, Bounds]] = {}  # settings of a term, and the values that they may have

    @property
    def excess(self) -> float:
        """What a truncated sum's own derivative has besides g, over p."""
        return 0.0

    @property
    def baseline(self) -> float:
        """Expectation of the advantage under p where p = q; not 0: a truncated sum then moves even there."""
        return 0.0

    @property
    @abstractmethod
    def formula(self) -> Formula:
        """The divergence in words and signs."""

    @abstractmethod
    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        """Summand and g."""

    @abstractmethod
    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        """-g / p."""

    @classmethod
    def build(cls, term: TermConfig) -> "Divergence":
        """The divergence with the parameters of a term."""
        return cls(**{name: getattr(term, name) for name in cls.parameters})


class ReverseKL(Divergence):
    """p log(p/q); g = p log(p/q)."""

    excess = 1.0
    formula = Formula("reverse KL(student || teacher)", "p log(p/q)", "p log(p/q)", "log(q/p)")

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        value = logp.exp() * (logp - logq)
        return value, value

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return logq - logp


class ForwardKL(Divergence):
    """q log(q/p); g = -q."""

    baseline = 1.0
    formula = Formula("forward KL(teacher || student)", "q log(q/p)", "-q", "q/p")

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        q = logq.exp()
        return q * (logq - logp), -q

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (logq - logp).exp()


@dataclass(frozen=True)
class GeneralisedJSD(Divergence):
    """b q log(q/m) + (1-b) p log(p/m), m = b q + (1-b) p; g = (1-b) p log(p/m), the full derivative. 0 < b < 1."""

    beta: float
    parameters: ClassVar[Mapping[str, Bounds]] = {
        "beta": Bounds(at_least=0, at_most=1, meaning="0 is the forward KL, 1 the reverse KL")
    }

    @classmethod
    def build(cls, term: TermConfig) -> Divergence:
        """The divergence of a term; its ends are the KLs that they stand for."""
        if 0 < term.beta < 1:
            return cls(term.beta)
        return ForwardKL() if term.beta == 0 else ReverseKL()

    @property
    def formula(self) -> Formula:
        b, rest = f"{self.beta:g}", f"{1 - self.beta:g}"
        return Formula(
            f"Jensen-Shannon divergence, beta {b}",
            loss=f"{b} q log(q/m) + {rest} p log(p/m)",
            g=f"{rest} p log(p/m)",
            advantage=f"{rest} log(m/p)",
            where=f"m = {b} q + {rest} p",
        )

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        logm = _log_mixture(self.beta, logq, logp)
        grad = (1 - self.beta) * logp.exp() * (logp - logm)
        return self.beta * logq.exp() * (logq - logm) + grad, grad

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (1 - self.beta) * (_log_mixture(self.beta, logq, logp) - logp)


_SKEW = {"alpha": Bounds(at_least=0, below=1, meaning="at 1 both distributions are the same; 0.1 is usual")}


@dataclass(frozen=True)
class SkewedReverseKL(Divergence):
    """p log(p/m), m = (1-a) q + a p; g = p (log(p/m) + a (1 - p/m)). 0 < a < 1."""

    alpha: float
    parameters: ClassVar[Mapping[str, Bounds]] = _SKEW

    @classmethod
    def build(cls, term: TermConfig) -> Divergence:
        """The divergence of a term; without a skew it is the reverse KL."""
        return cls(term.alpha) if term.alpha > 0 else ReverseKL()

    @property
    def excess(self) -> float:
        return 1 - self.alpha

    @property
    def formula(self) -> Formula:
        a, rest = f"{self.alpha:g}", f"{1 - self.alpha:g}"
        return Formula(
            f"skewed reverse KL(student || mixture), alpha {a}",
            loss="p log(p/m)",
            g=f"p (log(p/m) + {a} (1 - p/m))",
            advantage=f"log(m/p) - {a} (1 - p/m)",
            where=f"m = {rest} q + {a} p",
        )

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        p, log_ratio = logp.exp(), logp - _log_mixture(self.alpha, logp, logq)
        return p * log_ratio, p * (log_ratio - self.alpha * log_ratio.expm1())

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        log_ratio = logp - _log_mixture(self.alpha, logp, logq)
        return self.alpha * log_ratio.expm1() - log_ratio


@dataclass(frozen=True)
class SkewedForwardKL(Divergence):
    """q log(q/m), m = a q + (1-a) p; g = (1-a) p (1 - q/m). 0 < a < 1."""

    alpha: float
    parameters: ClassVar[Mapping[str, Bounds]] = _SKEW

    @classmethod
    def build(cls, term: TermConfig) -> Divergence:
        """The divergence of a term; without a skew it is the forward KL."""
        return cls(term.alpha) if term.alpha > 0 else ForwardKL()

    @property
    def excess(self) -> float:
        return self.alpha - 1

    @property
    def formula(self) -> Formula:
        a, rest = f"{self.alpha:g}", f"{1 - self.alpha:g}"
        return Formula(
            f"skewed forward KL(teacher || mixture), alpha {a}",
            loss="q log(q/m)",
            g=f"{rest} p (1 - q/m)",
            advantage=f"{rest} (q/m - 1)",
            where=f"m = {a} q + {rest} p",
        )

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio = logq - _log_mixture(self.alpha, logq, logp)
        return logq.exp() * log_ratio, (self.alpha - 1) * logp.exp() * log_ratio.expm1()

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (1 - self.alpha) * (logq - _log_mixture(self.alpha, logq, logp)).expm1()


def _log_mixture(share: float, first: Tensor, second: Tensor) -> Tensor:
    """log(share exp(first) + (1 - share) exp(second)), 0 < share < 1."""
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


DIVERGENCES: Registry[type[Divergence]] = Registry("objective.divergence")
DIVERGENCES.add(REVERSE_KL, ReverseKL)
DIVERGENCES.add(FORWARD_KL, ForwardKL)
DIVERGENCES.add("jsd", GeneralisedJSD)
DIVERGENCES.add("skewed_reverse_kl", SkewedReverseKL)
DIVERGENCES.add("skewed_forward_kl", SkewedForwardKL)


def divergence_of(term: TermConfig) -> Divergence:
    """The divergence that a term names, with its parameters."""
    return DIVERGENCES[term.divergence].build(term)
