"""What an objective is: one row of student log-probs in, one loss and its gradient on the logits out.

Shape suffixes: C positions of a chunk, V vocabulary, K support ids a position.

Objectives never see hidden states, packing or ranks. The head hands each chunk's distribution to the
objective and carries the gradient on, so a [tokens, vocabulary] tensor never exists.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from learner.rowwise import row_dots
from tutelage.records.signal import SignalNeeds

# What a probability of zero counts as, in nats: about float32's smallest normal number.
# A token that the teacher excludes is then a very strong but finite signal.
LOG_ZERO = -87.0


@dataclass(frozen=True)
class Rows:
    """What rollout and teacher said about R response tokens; log-probs in nats.

    What no objective of the run needs may be None.
    """

    target_ids: Tensor  # [R]
    sampling_logprobs: Tensor  # [R], under the sampling distribution
    temperatures: Tensor  # [R], of the sampling distribution
    teacher_logprobs: Tensor  # [R], of the targets
    support_ids: Tensor | None = None  # [R, K], the student's most likely ids at rollout time, most likely first
    support_teacher_logprobs: Tensor | None = None  # [R, K]
    teacher_top_ids: Tensor | None = None  # [R, Kt], the teacher's most likely ids, most likely first
    teacher_top_logprobs: Tensor | None = None  # [R, Kt]
    teacher_entropy: Tensor | None = None  # [R], nats
    positions: Tensor | None = None  # [R] int64, place in the response, from 0
    is_special: Tensor | None = None  # [R] bool, one of the tokenizer's special tokens
    weights: Tensor | None = None  # [R], of the trajectory; 0 where a gate is shut
    task_advantages: Tensor | None = None  # [R], of the trajectory's task reward
    reference_logprobs: Tensor | None = None  # [R], of the targets under the reference model
    example_index: Tensor | None = None  # [R] int64, the trajectory within the step
    slots: Tensor | None = None  # [R] int64, the trajectory within the run: seeds random token masks
    future_advantages: Tensor | None = None  # [R], (discounted) log-ratios of the tokens that follow, detached
    spans: Tensor | None = None  # [R] int64, tokens of a trajectory that a teacher scored together; they stand together
    merged: Tensor | None = None  # [R] bool, spans that are not one token of the student's and one of the teacher's
    span_tokens: Tensor | None = None  # [R], of the row's span
    span_rest: Tensor | None = (
        None  # [R, 3], sums over the span's other tokens: log p, log q, sampling log-prob; detached
    )

    def __len__(self) -> int:
        return len(self.target_ids)

    def slice(self, start: int, stop: int) -> "Rows":
        return Rows(*(None if x is None else x[start:stop] for x in vars(self).values()))

    def require(self, field: str) -> Tensor:
        """A field that may be missing.

        Raises:
            ValueError: it is.
        """
        value = vars(self)[field]
        if value is None:
            raise ValueError(f"objective: needs Rows.{field}, and the batch has none; see {_SOURCES[field]}")
        return value

    def support(self) -> tuple[Tensor, Tensor]:
        """The student's most likely ids and the teacher's log-probs of them, [R, K] each."""
        return self.require("support_ids"), self.require("support_teacher_logprobs")

    def teacher_top(self) -> tuple[Tensor, Tensor]:
        """The teacher's most likely ids and its log-probs of them, [R, Kt] each."""
        return self.require("teacher_top_ids"), self.require("teacher_top_logprobs")


_SOURCES = {
    "support_ids": "RolloutRequest.candidates and ScoringRequest.support_ids",
    "support_teacher_logprobs": "ScoringRequest.support_ids",
    "teacher_top_ids": "ScoringRequest.top_k",
    "teacher_top_logprobs": "ScoringRequest.top_k",
    "teacher_entropy": "ScoringRequest.entropy",
    "positions": "MicroBatch.positions",
    "is_special": "MicroBatch.is_special",
    "task_advantages": "data.verifier and sampling.samples_per_prompt",
    "reference_logprobs": "objective.reference.model",
    "slots": "MicroBatch.slots",
    "future_advantages": "objective.returns",
    "merged": "teacher.cross_tokenizer",
}


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
