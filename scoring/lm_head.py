"""LM heads as they travel, and what models make of the logits that come out of them.

Shape suffixes: C positions of a chunk, V vocabulary, d hidden size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

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
    """With a state that enters it, a model's full distribution."""

    weight: NDArray[np.float32]  # [V, d]
    bias: NDArray[np.float32] | None  # [V]
    transform: LogitTransform = LogitTransform()


@dataclass(frozen=True)
class MixedHead:
    """Of a mixture of teachers: its states are those of its parts, end to end, in their order.

    q(v) = sum_i weights[i] softmax(parts[i](states_i))(v)
    """

    parts: tuple[LMHead, ...]
    weights: tuple[float, ...]  # summing to 1
