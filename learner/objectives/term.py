"""What a term of an objective makes of a chunk.

Shape suffixes: C positions, K ids that a term touches, V vocabulary.

Terms speak in g = d loss / d log p(v), as if the student's log-probs were free variables. The objective adds the g of
its terms up and goes through the softmax once: d loss / d z_j = g_j - p_j sum(g).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from learner.objectives.base import Rows, StudentChunk, TeacherChunk
from learner.objectives.normalisation import Tail


@dataclass(frozen=True)
class TermLosses:
    """Loss and g of one term; g is on few ids, or dense."""

    loss: Tensor  # [C]
    ids: Tensor | None  # [C, K]; None: the whole vocabulary
    grad: Tensor  # [C, K] or [C, V]
    tail: Tail | None = None  # g of the ids off the support, as one
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # [C] each

    def weighed(self, weight: Tensor) -> "TermLosses":
        """Loss and g times `weight` [C]; a dense g in place."""
        column = weight[:, None]
        grad = self.grad.mul_(column) if self.ids is None else self.grad * column
        tail = None if self.tail is None else replace(self.tail, grad=self.tail.grad * weight)
        return replace(self, loss=self.loss * weight, grad=grad, tail=tail)


class Term(Protocol):
    def __call__(self, student: StudentChunk, rows: Rows, teacher: TeacherChunk | None) -> TermLosses:
        """Unweighed; may overwrite the teacher's tensors, not the student's."""
