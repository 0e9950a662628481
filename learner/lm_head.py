"""Heads of language models in float32, applied to a chunk of positions at a time.

Shape suffixes: C positions of a chunk, V vocabulary, d hidden size.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from scoring.lm_head import LMHead, LogitTransform, MixedHead


class TeacherHead(Protocol):
    """What makes a whole distribution of a teacher's states."""

    def __len__(self) -> int:
        """V."""

    @property
    def width(self) -> int:
        """d, of the states that enter."""

    def shortened(self, vocabulary: int) -> "TeacherHead": ...

    def logits(self, hidden_Cd: Tensor, out: Tensor) -> Tensor:
        """[C, V], written to `out`."""


def received(head: LMHead | MixedHead, device: torch.device) -> TeacherHead:
    """A copy on `device` of a head that came from another process."""
    if isinstance(head, MixedHead):
        return Mixture(tuple(Head.received(part, device) for part in head.parts), head.weights)
    return Head.received(head, device)


@dataclass(frozen=True)
class Head:
    weight: Tensor  # [V, d] float32
    bias: Tensor | None  # [V] float32
    transform: LogitTransform

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> "Head":
        """From parameters of any float type, which are not copied if they are float32 already."""
        return cls(weight.float(), None if bias is None else bias.float(), transform)

    @classmethod
    def received(cls, head: LMHead, device: torch.device) -> "Head":
        """A copy on `device` of a head that came from another process."""

        def move(array: object) -> Tensor:
            return torch.tensor(array, dtype=torch.float32, device=device)

        return cls(move(head.weight), None if head.bias is None else move(head.bias), head.transform)

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def shortened(self, vocabulary: int) -> "Head":
        """The head of the first `vocabulary` ids."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        return replace(self, weight=self.weight[:vocabulary], bias=bias)

    def logits(self, hidden_Cd: Tensor, out: Tensor) -> Tensor:
        """The model's logits [C, V] of float32 states, written to `out`."""
        if self.bias is None:
            torch.mm(hidden_Cd, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, hidden_Cd, self.weight.T, out=out)
        return self.transform.apply_(out)


@dataclass(frozen=True)
class Mixture:
    """Several heads side by side; see `scoring.lm_head.MixedHead`."""

    parts: tuple[Head, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return min(len(part) for part in self.parts)

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    def shortened(self, vocabulary: int) -> "Mixture":
        return replace(self, parts=tuple(part.shortened(vocabulary) for part in self.parts))

    def logits(self, hidden_Cd: Tensor, out: Tensor) -> Tensor:
        """The mixture's log-probs [C, V], which are logits too."""
        vocabulary = out.shape[1]
        spare = torch.empty_like(out)
        states = hidden_Cd.split([part.width for part in self.parts], dim=1)
        for index, (part, weight, some) in enumerate(zip(self.parts, self.weights, states, strict=True)):
            logits = part.shortened(vocabulary).logits(some.contiguous(), out=spare if index else out)
            logits.sub_(logits.logsumexp(-1, keepdim=True)).add_(math.log(weight))
            if index:
                torch.logaddexp(out, logits, out=out)
        return out
