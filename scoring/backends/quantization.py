"""How far a quantised teacher's scores are from those of the weights that it was made from.

Shape suffixes: T scored tokens of a response, C of them in a chunk, V vocabulary, d hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.lm.head import Head, LMHead
from tutelage.records.signal import TeacherSignal

_CHUNK_TOKENS = 64  # whose two distributions are held at a time


@dataclass(frozen=True)
class QuantizationBias:
    """Quantised against full weights on the same tokens, the LM head being one and the same."""

    quantization: str
    tokens: int
    mean_difference: float  # |Δ log-prob| of the tokens that came, nats
    max_difference: float
    kl: float  # mean KL(full ‖ quantised), nats a token, over the whole vocabulary
    top1_agreement: float  # share of tokens at which both have the same most likely id

    def __str__(self) -> str:
        return (
            f"{self.quantization} against full weights: mean |Δ| {self.mean_difference:.2g}, max "
            f"{self.max_difference:.2g} nats, KL {self.kl:.2g} nats a token, the same most likely id at "
            f"{self.top1_agreement:.1%} of {self.tokens} tokens"
        )


def measure_bias(
    quantization: str, full: Sequence[TeacherSignal], quantised: Sequence[TeacherSignal], head: LMHead
) -> QuantizationBias:
    """Compare two teachers' signals of the same requests, both with hidden states.

    Args:
        head: of both.

    Raises:
        ValueError: there are no scored tokens to compare.
    """
    differences = np.concatenate([np.abs(f.logprobs - q.logprobs) for f, q in zip(full, quantised, strict=True)])
    if not len(differences):
        raise ValueError("the bias of a quantised teacher is measured on scored tokens, and the requests have none")
    divergences, agreements = [], []
    for full_CV, quantised_CV in _distributions(full, quantised, head):
        divergences.append((full_CV.exp() * (full_CV - quantised_CV)).sum(-1))
        agreements.append(full_CV.argmax(-1) == quantised_CV.argmax(-1))
    return QuantizationBias(
        quantization=quantization,
        tokens=len(differences),
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
        kl=float(torch.cat(divergences).mean()),
        top1_agreement=float(torch.cat(agreements).float().mean()),
    )


def _distributions(
    full: Sequence[TeacherSignal], quantised: Sequence[TeacherSignal], head: LMHead
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the log-probs [C, V] of both, chunk by chunk."""
    projection = head.on(torch.device("cpu"))
    sides = [torch.from_numpy(np.concatenate([s.hidden_states for s in side])) for side in (full, quantised)]
    chunks = (side.split(_CHUNK_TOKENS) for side in sides)
    for first_Cd, second_Cd in zip(*chunks, strict=True):
        yield _logprobs(first_Cd, projection), _logprobs(second_Cd, projection)


def _logprobs(states_Cd: Tensor, head: Head) -> Tensor:
    logits_CV = head.logits(states_Cd, out=torch.empty(len(states_Cd), len(head)))
    logprobs_CV = logits_CV.log_softmax(-1)
    return logprobs_CV.clamp_(min=torch.finfo(logprobs_CV.dtype).min)  # -inf - -inf is no number
