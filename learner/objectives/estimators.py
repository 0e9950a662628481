"""How the sampled token y alone stands for a divergence, back-propagated.

Shape suffixes: C positions.

    k1            loss = log p(y) - log q(y),   g = 1:  zero in expectation, so it is a reward only (`terms`)
    k2            loss = w (log p(y) - log q(y))^2 / 2,   g = w (log p(y) - log q(y)):  reverse KL in expectation
    k3            loss = w (r - 1 - log r),  r = q(y)/p(y),  g = w (1 - r):  forward KL in expectation
    likelihood    loss = -log p(y),  g = -1:  KL(writer || student) in expectation, where another wrote y

Where a teacher scored several tokens together, y is all of them (`spans`). w corrects for the distribution that y was
drawn from. Schulman, "Approximating KL Divergence", 2020.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from learner.objectives.base import StudentChunk, TeacherChunk
from learner.objectives.config import FORWARD_KL, K1, LIKELIHOOD, REVERSE_KL, TermConfig
from learner.objectives.importance import truncated_weight
from learner.objectives.spans import actions
from learner.objectives.terms import TermLosses
from learner.records import Rows
from tutelage.registry import Registry


class Estimator(ABC):
    """A term of the sampled token.

    One more is a subclass and `ESTIMATORS.add("its_name", ItsClass)`; the rules and the description of a run then
    know it.
    """

    divergence: ClassVar[str]  # whose gradient it has in expectation; empty: nothing is left of any
    misnamed: ClassVar[str] = ""  # said of a term that names another divergence: the reason and what to write
    loss: ClassVar[str]  # at y, for people
    g: ClassVar[str]

    def __init__(self, term: TermConfig) -> None:
        self._config = term

    @abstractmethod
    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and g of y, [C] each."""

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None) -> TermLosses:
        action = actions(rows, student.logprobs_of(rows.target_ids))
        loss, grad = self.terms(action.student, action.teacher)
        weight, metrics = truncated_weight(self._config, action.student, action.sampling)
        ids = rows.target_ids[:, None]
        return TermLosses(action.shared(weight * loss), ids, (weight * grad)[:, None], metrics=metrics)


class LogRatio(Estimator):
    """k1: what an advantage is made of; back-propagated, the teacher drops out of its mean."""

    divergence = ""
    loss, g = "log(p/q)", "1"

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        return logp - logq, torch.ones_like(logp)


class HalfSquaredLogRatio(Estimator):
    """k2: biased as a value, unbiased as a gradient."""

    divergence = REVERSE_KL
    misnamed = (
        "its expected gradient is the reverse KL's: set divergence=reverse_kl, or estimator=k3 for the forward KL"
    )
    loss, g = "1/2 log²(p/q)", "log(p/q)"

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        gap = logp - logq
        return gap.square() / 2, gap


class BregmanRatio(Estimator):
    """k3: r - 1 - log r, never negative."""

    divergence = FORWARD_KL
    misnamed = (
        "back-propagated, its expected gradient is the forward KL's: name it so with divergence=forward_kl, or set "
        "estimator=k2 for the reverse KL"
    )
    loss, g = "q/p - 1 - log(q/p)", "1 - q/p"

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        gap = logp - logq
        grad = -(-gap).expm1()
        return gap - grad, grad


class Likelihood(Estimator):
    """Cross-entropy of the sequence, whoever wrote it: supervised learning."""

    divergence = FORWARD_KL
    misnamed = (
        "its expected gradient is that of the forward KL from whoever wrote the sequence: set divergence=forward_kl"
    )
    loss, g = "-log p", "-1"

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        return -logp, -torch.ones_like(logp)


ESTIMATORS: Registry[type[Estimator]] = Registry("objective.estimator")
ESTIMATORS.add(K1, LogRatio)
ESTIMATORS.add("k2", HalfSquaredLogRatio)
ESTIMATORS.add("k3", BregmanRatio)
ESTIMATORS.add(LIKELIHOOD, Likelihood)
