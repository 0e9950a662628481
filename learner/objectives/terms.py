"""The terms of an objective: the sampled token as an action, a support of few ids, the whole vocabulary.

Shape suffixes: C positions, K ids that a term touches, V vocabulary.

Terms speak in g = d loss / d log p(v), as if the student's log-probs were free variables. The objective adds the g of
its terms up and goes through the softmax once: d loss / d z_j = g_j - p_j sum(g).

    sampled y, policy gradient    loss = -sg(w shape(A)) log p(y),  E[-A grad log p(y)] = the divergence's gradient
    support S, backprop           loss = sum over S of the divergence's summands
    support S, policy gradient    loss = -sum over S of sg(p' shape(A)) log p',  A = -g / p'

A of the sampled token is log q(y) - log p(y) for the reverse KL; w corrects for the distribution that y was drawn from,
and where a teacher scored several tokens together, y is all of them (`spans`). p' is the student on the support after
normalisation; without shaping the policy gradient on a support is the direct divergence's.

Exact-KL control variate: arXiv 2605.07865; reward extrapolation: arXiv 2602.12125; returns over later tokens: Gu et
al., "MiniLLM", arXiv 2306.08543; clips and logarithms of advantages: arXiv 2607.13399.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from learner.objectives.base import StudentChunk, TeacherChunk, teacher_floor
from learner.objectives.config import (
    REVERSE_KL,
    Gradient,
    Importance,
    Normalisation,
    Shaping,
    TaskRewardConfig,
    TaskRewardMix,
    TermConfig,
)
from learner.objectives.divergences import divergence_of
from learner.objectives.importance import policy_gradient
from learner.objectives.normalisation import Normalised, Tail, log_tail, mass, normalise, present_sum
from learner.objectives.spans import Actions, actions
from learner.objectives.supports import SupportChunk, build_support, top_overlap
from learner.records import Rows
from learner.rowwise import row_blocks


@dataclass(frozen=True)
class TermLosses:
    """Loss and g of one term; g is on few ids, or dense."""

    loss: Tensor  # [C]
    ids: Tensor | None  # [C, K]; None: the whole vocabulary
    grad: Tensor  # [C, K] or [C, V]
    tail: Tail | None = None  # g of the ids off the support, as one
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # [C] each


@dataclass(frozen=True)
class WeightedTerm:
    """A term's losses, and what they count at each position."""

    losses: TermLosses
    weight: Tensor  # [C]

    @property
    def loss(self) -> Tensor:
        return self.losses.loss * self.weight

    @property
    def grad_sum(self) -> Tensor:
        """Sum of g over all ids, the tail's included, [C]."""
        tail = self.losses.tail
        total = self.losses.grad.sum(-1)
        return self.weight * (total if tail is None else total + tail.grad)


class Term(Protocol):
    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None) -> TermLosses:
        """Unweighed; may overwrite the teacher's tensors, not the student's."""


Shape = Callable[[Tensor], Tensor]


def shaping_of(term: TermConfig) -> Shape:
    """The function that `objective.shaping` names."""
    low, high = term.shaping_low, term.shaping_high
    shapes: dict[Shaping, Shape] = {
        Shaping.none: lambda advantage: advantage,
        Shaping.clip: lambda advantage: advantage.clamp(low, high),
        Shaping.log: lambda advantage: advantage.sign() * advantage.abs().log1p(),
        Shaping.tanh: torch.tanh,
    }
    return shapes[term.shaping]


@dataclass(frozen=True)
class Signal:
    """What a sampled token's advantage is made of."""

    own: bool = True  # the divergence at the token
    future: bool = False  # the log-ratios of the tokens that follow
    extrapolation: float | None = None  # of the teacher's reward over the reference; None: there is no reference
    task: TaskRewardConfig | None = None  # the trajectory's task reward


class SampledPolicyGradient:
    """The sampled token, or the span it is part of, weighed by its shaped advantage."""

    def __init__(self, term: TermConfig, signal: Signal) -> None:
        self._config, self._signal = term, signal
        self._divergence, self._shape = divergence_of(term), shaping_of(term)

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None) -> TermLosses:
        logp, tempered = student.logprobs_of(rows.target_ids), None
        if self._config.importance is Importance.ppo_clip:
            tempered = student.tempered_logprobs_of(rows.target_ids, rows.temperatures)
        action = actions(rows, logp, tempered)
        advantage = self._mix(self._shape(self._advantage(action, rows, teacher)), rows)
        weighted = policy_gradient(self._config, advantage, action)
        metrics = {"advantage": advantage, **weighted.metrics}
        return TermLosses(
            action.shared(weighted.loss), rows.target_ids[:, None], weighted.grad[:, None], metrics=metrics
        )

    def _advantage(self, action: Actions, rows: Rows, teacher: TeacherChunk | None) -> Tensor:
        advantage = self._own(action, rows) if self._signal.own else torch.zeros_like(action.student)
        if self._signal.future:
            advantage = advantage + rows.require("future_advantages")
        if self._config.control_variate:
            if teacher is None:
                raise ValueError("objective.control_variate=true: needs the teacher's hidden states and LM head")
            advantage = advantage + teacher.reverse_kl
        return advantage

    def _own(self, action: Actions, rows: Rows) -> Tensor:
        logp, logq, extrapolation = action.student, action.teacher, self._signal.extrapolation
        if extrapolation is not None and self._config.divergence == REVERSE_KL:
            reference = teacher_floor(rows.require("reference_logprobs"))
            return extrapolation * (logq - reference) - (logp - reference)
        return self._divergence.advantage(logp, logq) - self._divergence.baseline

    def _mix(self, advantage: Tensor, rows: Rows) -> Tensor:
        task = self._signal.task
        if task is None:
            return advantage
        of_task = 1 - task.share if task.mix is TaskRewardMix.convex else 1.0
        return task.share * advantage + of_task * rows.require("task_advantages")


class SupportTerm:
    """A term on a support that is neither the sampled token nor the whole vocabulary."""

    def __init__(self, term: TermConfig, reports_overlap: bool) -> None:
        """
        Args:
            reports_overlap: the objective has both models' most likely ids. A batch cannot tell: an idle rank's is
                empty, and all ranks must report the same.
        """
        self._config, self._reports_overlap = term, reports_overlap
        self._divergence = divergence_of(term)
        self._shape = shaping_of(term)

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None = None) -> TermLosses:
        config = self._config
        support = build_support(config.support, config.k, student, rows)
        compared = normalise(config.normalisation, support, student)
        value, grad = self._differentiate(compared)
        absent = ~compared.present
        loss, grad = value.masked_fill(absent, 0.0).sum(-1), grad.masked_fill(absent, 0.0)
        return self._back(loss, grad, compared, support, self._diagnostics(support, rows))

    def _differentiate(self, compared: Normalised) -> tuple[Tensor, Tensor]:
        """Summands of the loss and g on the normalised log-probs."""
        logp, logq = compared.student, compared.teacher
        if self._config.gradient is Gradient.policy_gradient:
            grad = -logp.exp() * self._shape(self._divergence.advantage(logp, logq))
            return grad * logp, grad
        value, grad = self._divergence.terms(logp, logq)
        if self._config.normalisation is Normalisation.naive:
            grad = grad + self._divergence.excess * logp.exp()
        return value, grad

    def _back(
        self, loss: Tensor, grad: Tensor, compared: Normalised, support: SupportChunk, metrics: dict[str, Tensor]
    ) -> TermLosses:
        """From g on the normalised log-probs to g on the student's own."""
        kind, tail = self._config.normalisation, None
        if kind is Normalisation.renormalised:
            grad = grad - (compared.student.exp() * grad.sum(-1, keepdim=True)).masked_fill(~support.present, 0.0)
        elif kind is Normalisation.averaged:
            student_mass = mass(support.student, support.present)
            scale = 1 / student_mass.where(student_mass > 0, student_mass.new_ones(()))
            loss, grad = loss * scale, grad * scale[:, None]
        elif kind is Normalisation.tail:
            tail = Tail(support, grad[:, -1], compared.student[:, -1].exp())
            grad = grad[:, :-1]
        return TermLosses(loss, support.ids, grad, tail, metrics)

    def _diagnostics(self, support: SupportChunk, rows: Rows) -> dict[str, Tensor]:
        """Masses off the support, and both KLs of the distributions coarsened to it: lower bounds of the exact ones."""
        metrics = coarsened_divergences(support)
        if self._reports_overlap:
            metrics["top_overlap_ratio"] = top_overlap(self._config.k, rows)
        return metrics


def coarsened_divergences(support: SupportChunk) -> dict[str, Tensor]:
    """Per-token diagnostics of a support, [C] each."""
    present = support.present
    p, q, log_ratio = support.student.exp(), support.teacher.exp(), support.student - support.teacher
    log_tail_p, log_tail_q = log_tail(support.student, present), log_tail(support.teacher, present)
    tail_log_ratio = log_tail_p - log_tail_q
    return {
        "student_tail_mass": (1 - present_sum(p, present)).clamp(min=0),
        "teacher_tail_mass": (1 - present_sum(q, present)).clamp(min=0),
        "support_reverse_kl": present_sum(p * log_ratio, present) + log_tail_p.exp() * tail_log_ratio,
        "support_forward_kl": -present_sum(q * log_ratio, present) - log_tail_q.exp() * tail_log_ratio,
    }


class FullTerm:
    """A term with support=full.

    g takes the place of `teacher.logprobs`; the student's tensors are left as they are. A policy gradient has the loss
    -sg(p shape(A)) log p, summed over all ids; without shaping its gradient is the direct divergence's.
    """

    def __init__(self, term: TermConfig) -> None:
        self._config, self._divergence, self._shape = term, divergence_of(term), shaping_of(term)

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None) -> TermLosses:
        """
        Raises:
            ValueError: the teacher's whole distribution is missing.
        """
        if teacher is None:
            raise ValueError("objective.support=full: needs the teacher's hidden states and LM head")
        grad_CV = teacher.logprobs
        loss_C = grad_CV.new_empty(len(grad_CV))
        for block in row_blocks(grad_CV):
            logp, logq = student.logprobs[block], grad_CV[block]
            if self._config.gradient is Gradient.policy_gradient:
                grads = -logp.exp() * self._shape(self._divergence.advantage(logp, logq))
                values = grads * logp
            else:
                values, grads = self._divergence.terms(logp, logq)
            torch.sum(values, dim=-1, out=loss_C[block])
            logq.copy_(grads)
        return TermLosses(loss_C, None, grad_CV)
