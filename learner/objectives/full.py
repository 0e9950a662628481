"""Divergences over the whole vocabulary, a few rows at a time, the gradient written over the teacher's log-probs.

Shape suffixes: C positions, V vocabulary.
"""

import torch
from torch import Tensor

from learner.objectives.base import StudentChunk, TeacherChunk
from learner.objectives.config import Gradient, TermConfig
from learner.objectives.divergences import divergence_of
from learner.objectives.shaping import shaping_of
from learner.rowwise import row_blocks


def full_term(student: StudentChunk, teacher: TeacherChunk, term: TermConfig) -> tuple[Tensor, Tensor]:
    """Loss [C] and g = d loss / d log p [C, V] of a term with support=full.

    g takes the place of `teacher.logprobs`; the student's tensors are left as they are. A policy gradient
    has the loss -sg(p shape(A)) log p, summed over all ids; without shaping its gradient is the direct divergence's.
    """
    divergence, shape = divergence_of(term), shaping_of(term)
    grad_CV = teacher.logprobs
    loss_C = grad_CV.new_empty(len(grad_CV))
    for rows in row_blocks(grad_CV):
        logp, logq = student.logprobs[rows], grad_CV[rows]
        if term.gradient is Gradient.policy_gradient:
            grads = -logp.exp() * shape(divergence.advantage(logp, logq))
            values = grads * logp
        else:
            values, grads = divergence.terms(logp, logq)
        torch.sum(values, dim=-1, out=loss_C[rows])
        logq.copy_(grads)
    return loss_C, grad_CV
