"""An objective as its configuration composes it: a weighted sum of terms over the same tokens.

Shape suffixes: C positions, K ids that a term touches, V vocabulary.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.base import Objective, StudentChunk, TeacherChunk, TokenLosses
from learner.objectives.config import (
    K1,
    STUDENT_SUPPORTS,
    TEACHER_SUPPORTS,
    Gradient,
    Importance,
    Normalisation,
    ObjectiveConfig,
    Support,
    TaskRewardMix,
    TermConfig,
    TokenMaskConfig,
    Trust,
    is_likelihood,
)
from learner.objectives.estimators import ESTIMATORS
from learner.objectives.terms import (
    FullTerm,
    SampledPolicyGradient,
    Signal,
    SupportTerm,
    Term,
    TermLosses,
    WeightedTerm,
)
from learner.objectives.token_masks import token_weights
from learner.records import Rows
from tutelage.records.signal import SignalNeeds


@dataclass(frozen=True)
class _MaskedTerm:
    """A term, and which tokens it is taken over."""

    name: str  # "": the objective's own
    config: TermConfig
    term: Term
    seed: int

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None, logp_C: Tensor) -> WeightedTerm:
        weight = torch.full_like(logp_C, self.config.weight)
        for factor in (token_weights(self.config.tokens, self.seed, rows, logp_C), rows.weights):
            weight = weight if factor is None else weight * factor
        return WeightedTerm(self.term(student, rows, teacher), weight)

    def metrics(self, losses: TermLosses) -> dict[str, Tensor]:
        prefix = f"{self.name}_" if self.name else ""
        return {prefix + name: value for name, value in losses.metrics.items()}


class ComposedObjective:
    """A weighted sum of terms, each over its own choice of the tokens."""

    def __init__(self, requirements: SignalNeeds, parts: list[_MaskedTerm]) -> None:
        self.requirements = requirements
        self._parts = parts

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None = None) -> TokenLosses:
        logp_C = student.logprobs_of(rows.target_ids)
        terms = [part(student, rows, teacher, logp_C) for part in self._parts]
        metrics: dict[str, Tensor] = {}
        for part, term in zip(self._parts, terms, strict=True):
            metrics |= part.metrics(term.losses)
        loss_C = torch.stack([term.loss for term in terms]).sum(0)
        return TokenLosses(loss_C, logit_gradient(student, terms), metrics)


def logit_gradient(student: StudentChunk, terms: list[WeightedTerm]) -> Tensor:
    """Through the softmax, once for all terms: dz_j = g_j - p_j sum(g), [C, V]; overwrites the student's probs.

    At most one term may have a tail, whose g off the support is p_j g_tail / mass.
    """
    total_C = torch.stack([term.grad_sum for term in terms]).sum(0)
    tails = [term for term in terms if term.losses.tail is not None]
    grad_CV = _spread_tail(student, total_C, tails[0]) if tails else student.probs.mul_(-total_C[:, None])
    for term in terms:
        ids_CK, grad, column_C1 = term.losses.ids, term.losses.grad, term.weight[:, None]
        if ids_CK is None:
            grad_CV.addcmul_(grad, column_C1)
        else:
            grad_CV.scatter_add_(1, ids_CK, grad * column_C1)
    return grad_CV


def _spread_tail(student: StudentChunk, total_C: Tensor, term: WeightedTerm) -> Tensor:
    tail = term.losses.tail
    assert tail is not None
    total_C1, ids_CK = total_C[:, None], tail.support.ids
    p_CK = student.probs.gather(1, ids_CK)
    grad_CV = student.probs.mul_((term.weight * tail.grad / tail.mass)[:, None] - total_C1)
    on_support_CK = torch.where(tail.support.inside(), -total_C1 * p_CK, grad_CV.gather(1, ids_CK))
    return grad_CV.scatter_(1, ids_CK, on_support_CK)


def build_objective(config: ObjectiveConfig, seed: int = 0) -> Objective:
    """The objective that `config` composes.

    Args:
        seed: of the run; random token masks are drawn from it.

    Ranges and combinations are checked by `rules`.

    Raises:
        ValueError: a composition that cannot be computed or has an expected gradient of zero.
    """
    if sum(term.normalisation is Normalisation.tail for term in config.terms.values()) > 1:
        raise ValueError("objective.further_terms: only one term may have normalisation=tail; use raw for the others")
    return ComposedObjective(requirements(config), list(_parts(config, seed)))


def _parts(config: ObjectiveConfig, seed: int) -> Iterator[_MaskedTerm]:
    """Every term; after a first term on more than the sampled token, what it answers for later, on the sampled one."""
    task = config.task_reward if config.task_reward.mix is not TaskRewardMix.none else None
    returns = config.returns.discount > 0
    supports = {term.support for term in config.terms.values()}
    both_tops = bool(supports & STUDENT_SUPPORTS and supports & TEACHER_SUPPORTS)
    extrapolation = config.reference.extrapolation if config.reference.model is not None else None
    for name, term in config.terms.items():
        own_returns = returns and not name
        if term.support is not Support.sampled:
            wide = FullTerm(term) if term.support is Support.full else SupportTerm(term, both_tops)
            yield _MaskedTerm(name, term, wide, seed)
        elif term.gradient is Gradient.backprop:
            yield _MaskedTerm(name, term, _estimator(term), seed)
        else:
            own = task is None or task.share > 0
            signal = Signal(own, future=own_returns, extrapolation=extrapolation, task=task)
            yield _MaskedTerm(name, term, SampledPolicyGradient(term, signal), seed)
            task = None
        if own_returns and term.support is not Support.sampled:
            signal = Signal(own=False, future=True)
            yield _MaskedTerm("returns", term, SampledPolicyGradient(term, signal), seed)


def _estimator(term: TermConfig) -> Term:
    if term.estimator == K1:
        raise ValueError(
            "objective.estimator=k1 with gradient=backprop: the expected gradient is zero, the teacher vanishes from "
            "it; use gradient=policy_gradient, or estimator=k2 (reverse KL) or k3 (forward KL)"
        )
    if term.importance is Importance.ppo_clip:
        raise ValueError(
            f"objective.importance=ppo_clip with estimator={term.estimator}: the clip bounds an advantage, and a "
            "back-propagated estimator has none; use importance=truncated, or gradient=policy_gradient"
        )
    return ESTIMATORS[term.estimator](term)


def _needs_teacher(config: ObjectiveConfig) -> bool:
    """Whether a term compares the student with another model, or that model chooses the tokens."""
    task = config.task_reward
    rewards_alone = task.mix is not TaskRewardMix.none and task.share == 0
    compared = [
        term for term in config.terms.values() if not (is_likelihood(term) or (rewards_alone and term is config))
    ]
    if compared or config.returns.discount > 0:
        return True
    return any(
        term.control_variate or term.tokens.trust is not Trust.none or _needs_entropy(term.tokens)
        for term in config.terms.values()
    )


def _needs_entropy(tokens: TokenMaskConfig) -> bool:
    return tokens.teacher_entropy_above is not None or tokens.teacher_entropy_below is not None


def requirements(config: ObjectiveConfig) -> SignalNeeds:
    """What the objective that `config` composes must be told."""
    returns, terms = config.returns, config.terms.values()

    def largest(supports: Set[Support]) -> int:
        return max((term.k for term in terms if term.support in supports), default=0)

    return SignalNeeds(
        teacher=_needs_teacher(config),
        candidates=largest(STUDENT_SUPPORTS),
        teacher_top_k=largest(TEACHER_SUPPORTS),
        teacher_entropy=any(_needs_entropy(term.tokens) for term in terms),
        hidden_states=any(term.support is Support.full or term.control_variate for term in terms),
        reference_logprobs=config.reference.model is not None,
        task_advantages=config.task_reward.mix is not TaskRewardMix.none,
        future_advantages=returns.discount > 0,
        discount=returns.discount,
        length_normalised=returns.length_normalised,
        softmax_temperature=config.teacher_temperature,
    )
