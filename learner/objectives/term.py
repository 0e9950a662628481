"""What a term of an objective makes of a chunk.

Shape suffixes: C positions, K ids that a term touches, V vocabulary.

Terms speak in g = d loss / d log p(v), as if the student's log-probs were free variables. The objective adds the g of
its terms up and goes through the softmax once: d loss / d z_j = g_j - p_j sum(g).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from learner.objectives.base import StudentChunk, TeacherChunk
from learner.objectives.normalisation import Tail
from learner.records import Rows


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
