"""A divergence over the whole vocabulary, a few rows at a time, the gradient written over the teacher's log-probs.

Shape suffixes: C positions, V vocabulary.
"""

import torch

from learner.objectives.base import StudentChunk, TeacherChunk
from learner.objectives.config import Gradient, TermConfig
from learner.objectives.divergences import divergence_of
from learner.objectives.shaping import shaping_of
from learner.objectives.term import TermLosses
from learner.records import Rows
from learner.rowwise import row_blocks


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
