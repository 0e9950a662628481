"""The student's log-prob of each loss token, as the learner computes it, without gradients.

Shape suffixes: R loss tokens of a micro-batch, T loss tokens of an example, C positions of a chunk, V vocabulary,
d hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.lm_head import Head


@dataclass(frozen=True)
class ExampleLogprobs:
    example_index: int  # which example of the batch
    values: NDArray[np.float32]  # [T], nats, at the example's sampling temperature


def token_logprobs(
    head: Head, hidden_Rd: Tensor, targets_R: Tensor, temperatures_R: Tensor, chunk_tokens: int
) -> Tensor:
    """Log-probs [R] of the targets, each at its temperature."""
    found = [hidden_Rd.new_empty(0, dtype=torch.float32)]
    for start in range(0, len(hidden_Rd), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        states_Cd = hidden_Rd[rows].float()
        logits_CV = head.logits(states_Cd, out=states_Cd.new_empty(len(states_Cd), len(head)))
        logprobs_CV = (logits_CV / temperatures_R[rows, None]).log_softmax(-1)
        found.append(logprobs_CV.gather(1, targets_R[rows, None])[:, 0])
    return torch.cat(found)


def split_by_example(values_R: Tensor, example_index_R: Tensor, positions_R: Tensor) -> list[ExampleLogprobs]:
    """One record for each example that has rows here, in the order of its response."""
    values, owners, positions = (x.cpu().numpy() for x in (values_R, example_index_R, positions_R))
    records = []
    for example in np.unique(owners):
        rows = np.flatnonzero(owners == example)
        records.append(ExampleLogprobs(int(example), values[rows[np.argsort(positions[rows])]].astype(np.float32)))
    return records
