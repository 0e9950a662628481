"""Catching a NaN or an infinity before it reaches the weights."""

import torch
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """The loss or a gradient of a step is not finite: nothing may be published or saved after it."""


class GradientWatch:
    """Looks at every parameter's gradient as the backward pass produces it.

    A hook on the parameter sees the whole gradient under every ZeRO stage, before it is reduced or
    partitioned.
    """

    def __init__(self, model: nn.Module) -> None:
        self._bad: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda grad, name=name: self._look(name, grad))

    def _look(self, name: str, grad: Tensor) -> None:
        # The sum of finite numbers is finite short of 3e38: one pass and no mask of the gradient's size.
        bad = ~grad.detach().sum(dtype=torch.float32).isfinite()
        seen = self._bad.get(name)
        self._bad[name] = bad if seen is None else seen | bad

    def drain(self) -> list[str]:
        """Names of the parameters with a non-finite gradient since the last call."""
        names = [name for name, bad in self._bad.items() if bool(bad)]
        self._bad.clear()
        return names
