"""Noise on every weight of the student and the way back: new weights that nobody can take for the old ones."""

from collections.abc import Sequence

import deepspeed
import torch
from torch import Tensor, nn

from learner.lora import adapters


class Perturbation:
    """Perturbs the weights in place when made; the optimiser's float32 copies are not touched.

    The noise is normal with `size` times the root mean square of each weight tensor. Where that is all zeros, 1 stands
    for it; for an adapter's B, 1 / (scaling * rank^0.5), so that what it adds to a weight is of `size` times the size
    of A, whatever the scaling. The noise is the same on all ranks where they hold whole weights; under ZeRO-3 each
    rank disturbs its own partitions. The copy that `restore` needs is kept in host memory.

    Args:
        sharded: the parameters are partitioned (ZeRO-3). Making and restoring are collectives then.
    """

    def __init__(self, module: nn.Module, sharded: bool, seed: int, size: float) -> None:
        self._parameters = list(module.parameters())  # a tied weight once
        self._sharded = sharded
        weights = self._weights()
        self._kept = [weight.detach().to("cpu", copy=True) for weight in weights]
        generator = torch.Generator(weights[0].device).manual_seed(seed)
        spread_of_zeros = {id(a.up): 1 / (a.scaling * a.rank**0.5) for a in adapters(module).values()}
        for parameter, weight in zip(self._parameters, weights, strict=True):
            noise = torch.randn(weight.shape, generator=generator, device=weight.device)
            spread = float(torch.linalg.vector_norm(weight, dtype=torch.float32)) / max(weight.numel(), 1) ** 0.5
            weight.add_(noise.mul_(size * (spread or spread_of_zeros.get(id(parameter), 1.0))).to(weight.dtype))

    def restore(self) -> None:
        """Put the weights back as they were, bit for bit."""
        for weight, kept in zip(self._weights(), self._kept, strict=True):
            weight.copy_(kept)

    def _weights(self) -> Sequence[Tensor]:
        """List what this rank keeps of each parameter, to be changed in place."""
        if not self._sharded:
            return [parameter.data for parameter in self._parameters]
        for parameter in self._parameters:
            # Small parameters stay gathered between forwards; leaving this context drops the gathered copy.
            with deepspeed.zero.GatheredParameters([parameter]):
                pass
        return [parameter.ds_tensor.data for parameter in self._parameters]
