"""What an objective is: one row of student log-probs in, one loss and its gradient on the logits out.

Shape suffixes: C positions of a chunk, V vocabulary, K support ids a position.

Objectives never see hidden states, packing or ranks. The head hands each chunk's distribution to the
objective and carries the gradient on, so a [tokens, vocabulary] tensor never exists.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from learner.records import Rows
from learner.rowwise import row_blocks, row_dots
from tutelage.records.signal import SignalNeeds

# What a probability of zero counts as, in nats: about float32's smallest normal number.
# A token that the teacher excludes is then a very strong but finite signal.
LOG_ZERO = -87.0


@dataclass(frozen=True)
class StudentChunk:
    """The student's distribution at C positions, temperature 1; finite unless a logit was NaN."""

    logprobs: Tensor  # [C, V], at least LOG_ZERO
    probs: Tensor  # [C, V]

    @classmethod
    def from_logits(cls, logits_CV: Tensor, buffer_CV: Tensor | None = None) -> "StudentChunk":
        """Normalise; `logits_CV` is overwritten and `buffer_CV`, if given, is used instead of new memory."""
        buffer_CV = torch.empty_like(logits_CV) if buffer_CV is None else buffer_CV
        torch.log_softmax(logits_CV, dim=-1, out=buffer_CV)
        buffer_CV.clamp_(min=LOG_ZERO)
        torch.exp(buffer_CV, out=logits_CV)
        return cls(logprobs=buffer_CV, probs=logits_CV)

    def logprobs_of(self, ids: Tensor) -> Tensor:
        """Log-probs of `ids` [C], or [C, K], in the shape of `ids`."""
        if ids.dim() == 1:
            return self.logprobs.gather(1, ids[:, None])[:, 0]
        return self.logprobs.gather(1, ids)

    def tempered_logprobs_of(self, ids: Tensor, temperatures: Tensor) -> Tensor:
        """Log-probs of `ids` [C] at each position's temperature [C]; a temperature of 1 changes nothing."""
        logprobs_C = self.logprobs_of(ids)
        if bool((temperatures == 1).all()):
            return logprobs_C
        factor_C = 1 / temperatures.to(logprobs_C.dtype)
        normaliser_C = torch.empty_like(logprobs_C)
        for block in row_blocks(self.logprobs):
            torch.logsumexp(self.logprobs[block] * factor_C[block, None], dim=-1, out=normaliser_C[block])
        return torch.where(temperatures == 1, logprobs_C, logprobs_C * factor_C - normaliser_C)

    def entropy(self) -> Tensor:
        """Exact entropy in nats, [C]."""
        return -row_dots(self.probs, self.logprobs)


@dataclass(frozen=True)
class TeacherChunk:
    """The teacher's whole distribution at C positions; given only if `SignalNeeds.hidden_states`."""

    logprobs: Tensor  # [C, V], at least LOG_ZERO; a buffer that the objective may overwrite
    reverse_kl: Tensor  # [C], KL(student || teacher), exact and detached


@dataclass(frozen=True)
class TokenLosses:
    """What an objective makes of a chunk."""

    loss: Tensor  # [C]
    grad_logits: Tensor  # [C, V], of the sum of `loss`; may share memory with the StudentChunk
    metrics: dict[str, Tensor]  # [C] each, detached


class Objective(Protocol):
    """A loss of single tokens with its gradient in closed form."""

    @property
    def requirements(self) -> SignalNeeds: ...

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None = None) -> TokenLosses:
        """Loss and gradient of C positions; may overwrite the student's and the teacher's tensors."""
        ...


def teacher_floor(logprobs: Tensor) -> Tensor:
    """Log-probs with -inf replaced by `LOG_ZERO`; NaN stays, and stops the run."""
    return logprobs.clamp(min=LOG_ZERO)
