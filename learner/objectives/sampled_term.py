"""The sampled token y as an action: its log-prob weighed by an advantage.

Shape suffixes: C positions.

    loss = -sg(w shape(A)) log p(y),  E[-A grad log p(y)] = the divergence's gradient

A is log q(y) - log p(y) for the reverse KL. Where a teacher scored several tokens together, y is all of them (`spans`).
w corrects for the distribution that y was drawn from.
Exact-KL control variate: arXiv 2605.07865; reward extrapolation: arXiv 2602.12125; returns over later tokens: Gu et
al., "MiniLLM", arXiv 2306.08543.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.base import StudentChunk, TeacherChunk, teacher_floor
from learner.objectives.config import REVERSE_KL, TaskRewardConfig, TaskRewardMix, TermConfig
from learner.objectives.divergences import divergence_of
from learner.objectives.importance import policy_gradient
from learner.objectives.shaping import shaping_of
from learner.objectives.spans import Actions, actions
from learner.objectives.term import TermLosses
from learner.records import Rows


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
        action = actions(rows, student.logprobs_of(rows.target_ids))
        advantage = self._mix(self._shape(self._advantage(action, rows, teacher)), rows)
        weighted = policy_gradient(self._config, advantage, action.student, action.sampling)
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
