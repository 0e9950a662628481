"""A language model's head in float32, applied to a chunk of positions at a time.

Shape suffixes: C positions of a chunk, V vocabulary, d hidden size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoring.lm_head import LMHead, LogitTransform


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
