"""What is made of an advantage before it weighs a token; all functions keep the sign and the shape.

Clips for large gaps and logarithms for small ones: arXiv 2607.13399.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from learner.objectives.config import Shaping, TermConfig

Shape = Callable[[Tensor], Tensor]


def shaping_of(term: TermConfig) -> Shape:
    """The function that `objective.shaping` names."""
    low, high = term.shaping_low, term.shaping_high
    shapes: dict[Shaping, Shape] = {
        Shaping.none: lambda advantage: advantage,
        Shaping.clip: lambda advantage: advantage.clamp(low, high),
        Shaping.log: _signed_log,
        Shaping.tanh: torch.tanh,
        Shaping.length_aware: lambda advantage: torch.where(
            advantage.abs() > high, advantage.clamp(low, high), _signed_log(advantage)
        ),
    }
    return shapes[term.shaping]


def _signed_log(advantage: Tensor) -> Tensor:
    return advantage.sign() * advantage.abs().log1p()
