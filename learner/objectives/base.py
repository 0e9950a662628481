"""What an objective is: one row of student log-probs in, one loss and its gradient on the logits out.

Shape suffixes: C positions of a chunk, V vocabulary, K support ids a position.

Objectives never see hidden states, packing or ranks. The head hands each chunk's distribution to the
objective and carries the gradient on, so a [tokens, vocabulary] tensor never exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from learner.config import ObjectiveConfig

# What a teacher probability of zero counts as, in nats: about float32's smallest normal number.
# A token that the teacher excludes is then a very strong but finite signal.
LOG_ZERO = -87.0


class Support(Enum):
    """The token ids whose teacher log-probs an objective needs besides the sampled token's."""

    none = "none"
    student_topk = "student_topk"  # the rollout engine's most likely ids
    teacher_topk = "teacher_topk"
    full = "full"  # the teacher's hidden states and head


@dataclass(frozen=True)
class Requirements:
    """What must be known about a trajectory; the composition of a run is checked against it."""

    support: Support
    k: int = 0  # ids a position, for the top-k supports
    needs_full_softmax_sampling: bool = False  # top-p and top-k sampling cannot be corrected

    @property
    def candidates(self) -> int:
        """How many of its most likely ids the rollout engine must return at each position."""
        return self.k if self.support is Support.student_topk else 0

    @property
    def teacher_top_k(self) -> int:
        return self.k if self.support is Support.teacher_topk else 0

    @property
    def hidden_states(self) -> bool:
        return self.support is Support.full


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
    later_returns: Tensor | None = None  # [R], filled by `Objective.with_returns` where the objective has returns

    def __len__(self) -> int:
        return len(self.target_ids)

    def slice(self, start: int, stop: int) -> "Rows":
        return Rows(*(None if x is None else x[start:stop] for x in vars(self).values()))

    def support(self) -> tuple[Tensor, Tensor]:
        """Ids and teacher log-probs of the support, [R, K] each."""
        if self.support_ids is None or self.support_teacher_logprobs is None:
            raise ValueError(
                "objective.name: this objective needs the teacher's log-probs of a support, and the batch "
                "has none; request candidates from the rollout engine and pass them to scoring"
            )
        return self.support_ids, self.support_teacher_logprobs


@dataclass(frozen=True)
class StudentChunk:
    """The student's distribution at C positions, temperature 1; finite unless a logit was NaN."""

    logprobs: Tensor  # [C, V], -inf replaced by the type's lowest number, so that 0 * log 0 is 0
    probs: Tensor  # [C, V]

    @classmethod
    def from_logits(cls, logits_CV: Tensor, buffer_CV: Tensor | None = None) -> "StudentChunk":
        """Normalise; `logits_CV` is overwritten and `buffer_CV`, if given, is used instead of new memory."""
        buffer_CV = torch.empty_like(logits_CV) if buffer_CV is None else buffer_CV
        torch.log_softmax(logits_CV, dim=-1, out=buffer_CV)
        buffer_CV.clamp_(min=torch.finfo(buffer_CV.dtype).min)
        torch.exp(buffer_CV, out=logits_CV)
        return cls(logprobs=buffer_CV, probs=logits_CV)

    def logprobs_of(self, ids: Tensor) -> Tensor:
        """Log-probs of `ids` [C], or [C, K], in the shape of `ids`."""
        if ids.dim() == 1:
            return self.logprobs.gather(1, ids[:, None])[:, 0]
        return self.logprobs.gather(1, ids)

    def entropy(self) -> Tensor:
        """Exact entropy in nats, [C]."""
        return -torch.bmm(self.probs[:, None, :], self.logprobs[:, :, None])[:, 0, 0]


@dataclass(frozen=True)
class TeacherChunk:
    """The teacher's whole distribution at C positions; given only if `Requirements.hidden_states`."""

    logprobs: Tensor  # [C, V], at least LOG_ZERO; a buffer that the objective may overwrite


@dataclass(frozen=True)
class TokenLosses:
    """What an objective makes of a chunk."""

    loss: Tensor  # [C]
    grad_logits: Tensor  # [C, V], of the sum of `loss`; may share memory with the StudentChunk
    metrics: dict[str, Tensor]  # [C] each, detached


class Objective(Protocol):
    """A loss of single tokens with its gradient in closed form."""

    requirements: Requirements

    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None = None) -> TokenLosses:
        """Loss and gradient of C positions; may overwrite the student's and the teacher's tensors."""
        ...


def teacher_floor(logprobs: Tensor) -> Tensor:
    """Log-probs with -inf replaced by `LOG_ZERO`; NaN stays, and stops the run."""
    return logprobs.clamp(min=LOG_ZERO)


Factory = Callable[[ObjectiveConfig], Objective]
FactoryT = TypeVar("FactoryT", bound=Factory)

_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[FactoryT], FactoryT]:
    """Make an objective known under `name`, the value of `objective.name`."""

    def add(factory: FactoryT) -> FactoryT:
        if name in _FACTORIES:
            raise ValueError(f"objective.name={name} is registered twice")
        _FACTORIES[name] = factory
        return factory

    return add


def available() -> tuple[str, ...]:
    return tuple(sorted(_FACTORIES))


def get_objective(name: str, config: ObjectiveConfig) -> Objective:
    """Build the objective registered as `name`.

    Raises:
        ValueError: no objective has this name.
    """
    if name not in _FACTORIES:
        raise ValueError(f"objective.name={name} is unknown; choose one of: {', '.join(available())}")
    return _FACTORIES[name](config)
