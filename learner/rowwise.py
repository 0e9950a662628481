"""Row-blocked softmax, dot product and comparison of [C, V] buffers: temporaries stay cache-sized.

Shape suffixes: C positions of a chunk, V vocabulary, K most likely ids.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_NUMBERS = {"cpu": 2**18, "cuda": 2**24}  # the size of a temporary tensor


def slices(total: int, step: int) -> Iterator[slice]:
    """Cut `total` rows; of none comes one empty slice, which still names the values that are made of rows."""
    for start in range(0, max(total, 1), step):
        yield slice(start, min(start + step, total))


def row_blocks(buffer_CV: Tensor) -> Iterator[slice]:
    """As `slices`, of so few rows of `buffer_CV` that what is made of them stays in the cache."""
    rows, width = buffer_CV.shape
    return slices(rows, max(1, _BLOCK_NUMBERS.get(buffer_CV.device.type, 2**24) // max(width, 1)))


def log_softmax_(logits_CV: Tensor, floor: float) -> Tensor:
    """Log-probs of at least `floor`, in place."""
    for block in row_blocks(logits_CV):
        rows = logits_CV[block]
        torch.clamp(rows.log_softmax(-1), min=floor, out=rows)
    return logits_CV


def write_rows(values: dict[str, Tensor], rows: slice, parts: dict[str, Tensor], total: int) -> None:
    """Put `parts` about some rows into `values`, whose tensors [total, …] are made where they are missing.

    Small tensors kept until all rows are known would lie scattered between large ones that come and go, and keep
    the process from reusing their memory.
    """
    for name, part in parts.items():
        if name not in values:
            values[name] = part.new_empty(total, *part.shape[1:])
        values[name][rows] = part


def row_dots(left_CV: Tensor, right_CV: Tensor) -> Tensor:
    """The scalar product of each row with its counterpart, [C]; a batched matrix product takes three times as long."""
    dots_C = left_CV.new_empty(len(left_CV))
    for block in row_blocks(left_CV):
        torch.sum(left_CV[block] * right_CV[block], dim=-1, out=dots_C[block])
    return dots_C
