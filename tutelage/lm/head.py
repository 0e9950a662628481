"""LM heads: as they travel between processes, and at work on one device.

    LMHead     numpy   ─ on(device) ─►  Head      one model's
    MixedHead  numpy   ─ on(device) ─►  Mixture   several models' side by side, as one distribution

Shape suffixes: C positions of a chunk, V vocabulary, d hidden size.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from tutelage.stops import Swap

# Settings of config.json by which models cap their logits softly, multiply or divide them.
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
# These multiply by what all others divide by.
_MULTIPLIES_BY_LOGITS_SCALING = {"hyperclovax", "hyperclovax_vision_v2"}


@dataclass(frozen=True)
class LogitTransform:
    """logits = cap tanh(factor u / cap), u what the LM head gives; without a cap, factor u."""

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "LogitTransform":
        """Read it from a model's config.json."""
        text_config = config.get_text_config()
        factor = 1.0
        for name in (*_FACTORS, *_DIVISORS):
            value = getattr(text_config, name, None)
            multiplies = name in _FACTORS or text_config.model_type in _MULTIPLIES_BY_LOGITS_SCALING
            if value is not None:
                factor *= value if multiplies else 1 / value
        caps = [cap for name in _CAPS if (cap := getattr(text_config, name, None))]
        return cls(factor, caps[0] if caps else None)

    def apply_(self, logits_CV: Tensor) -> Tensor:
        """From the head's output to the model's logits, in place."""
        if self.cap is not None:
            return logits_CV.mul_(self.factor / self.cap).tanh_().mul_(self.cap)
        return logits_CV if self.factor == 1 else logits_CV.mul_(self.factor)

    def slope(self, logits_CV: Tensor, out: Tensor) -> Tensor:
        """d logits / d u, [C, V], from the logits that `apply_` made of u; written to `out`."""
        if self.cap is None:
            return out.fill_(self.factor)
        return out.copy_(logits_CV).div_(self.cap).square_().neg_().add_(1).mul_(self.factor)


@dataclass(frozen=True)
class LMHead:
    """An output projection: logits = transform(weight @ hidden + bias). With hidden states the whole distribution."""

    weight: NDArray[np.float32]  # [V, d]
    bias: NDArray[np.float32] | None  # [V]
    transform: LogitTransform = LogitTransform()

    def swapped(self, swap: Swap) -> "LMHead":
        """Give two ids each other's logits."""
        order = swap.of(np.arange(len(self.weight), dtype=np.int32))
        return replace(self, weight=self.weight[order], bias=None if self.bias is None else self.bias[order])

    def shortened(self, vocabulary: int) -> "LMHead":
        """Keep the first `vocabulary` ids."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        return replace(self, weight=self.weight[:vocabulary], bias=bias)

    def on(self, device: torch.device) -> "Head":
        """Copy it to a device."""

        def move(array: NDArray[np.float32]) -> Tensor:
            return torch.tensor(array, dtype=torch.float32, device=device)

        return Head(move(self.weight), None if self.bias is None else move(self.bias), self.transform)


@dataclass(frozen=True)
class MixedHead:
    """The heads of a mixture of teachers, whose states are those of its parts, end to end, in their order.

    q(v) = sum_i weights[i] softmax(parts[i](states_i))(v)
    """

    parts: tuple[LMHead, ...]
    weights: tuple[float, ...]  # summing to 1

    def swapped(self, swap: Swap) -> "MixedHead":
        """Give two ids each other's logits."""
        return replace(self, parts=tuple(part.swapped(swap) for part in self.parts))

    def shortened(self, vocabulary: int) -> "MixedHead":
        """Keep the first `vocabulary` ids of each."""
        return replace(self, parts=tuple(part.shortened(vocabulary) for part in self.parts))

    def on(self, device: torch.device) -> "Mixture":
        """Copy it to a device."""
        return Mixture(tuple(part.on(device) for part in self.parts), self.weights)


class TeacherHead(Protocol):
    """What makes a whole distribution of a teacher's states: a `Head` or a `Mixture`."""

    def __len__(self) -> int:
        """V."""

    @property
    def width(self) -> int:
        """d, of the states that enter."""

    def shortened(self, vocabulary: int) -> "TeacherHead": ...

    def logits(self, hidden_Cd: Tensor, out: Tensor) -> Tensor:
        """[C, V], written to `out`."""


@dataclass(frozen=True)
class Head:
    """A model's LM head at work on one device, in float32."""

    weight: Tensor  # [V, d] float32
    bias: Tensor | None  # [V] float32
    transform: LogitTransform

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> "Head":
        """Make it from parameters of any float type, which are not copied if they are float32 already."""
        return cls(weight.float(), None if bias is None else bias.float(), transform)

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def shortened(self, vocabulary: int) -> "Head":
        """Keep the first `vocabulary` ids."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        return replace(self, weight=self.weight[:vocabulary], bias=bias)

    def logits(self, hidden_Cd: Tensor, out: Tensor) -> Tensor:
        """Write the model's logits [C, V] of float32 states to `out`."""
        if self.bias is None:
            torch.mm(hidden_Cd, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, hidden_Cd, self.weight.T, out=out)
        return self.transform.apply_(out)


@dataclass(frozen=True)
class Mixture:
    """Several heads side by side on one device; see `MixedHead`."""

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
        """Write the mixture's log-probs [C, V], which are logits too, to `out`."""
        vocabulary = out.shape[1]
        spare = torch.empty_like(out)
        states = hidden_Cd.split([part.width for part in self.parts], dim=1)
        for index, (part, weight, part_Cd) in enumerate(zip(self.parts, self.weights, states, strict=True)):
            logits = part.shortened(vocabulary).logits(part_Cd.contiguous(), out=spare if index else out)
            logits.sub_(logits.logsumexp(-1, keepdim=True)).add_(math.log(weight))
            if index:
                torch.logaddexp(out, logits, out=out)
        return out
