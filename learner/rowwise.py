"""Operations on [C, V] buffers a few rows at a time, so that what they need besides fits into a cache.

Shape suffixes: C positions of a chunk, V vocabulary, K most likely ids.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_NUMBERS = {"cpu": 2**19, "cuda": 2**24}  # the size of a temporary tensor
_GROUP = 64  # neighbouring ids whose maximum is compared first


def row_blocks(buffer_CV: Tensor) -> Iterator[slice]:
    """Slices that cover the rows of `buffer_CV`."""
    rows, width = buffer_CV.shape
    step = max(1, _BLOCK_NUMBERS.get(buffer_CV.device.type, 2**24) // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def log_softmax_(logits_CV: Tensor, floor: float) -> Tensor:
    """Log-probs of at least `floor`, in place."""
    for block in row_blocks(logits_CV):
        rows = logits_CV[block]
        rows -= rows.amax(-1, keepdim=True)
        rows -= rows.exp().sum(-1, keepdim=True).log()
        rows.clamp_(min=floor)
    return logits_CV


def top_ids(values_CV: Tensor, k: int) -> Tensor:
    """The ids of the k largest values of each row, [C, K], in no order; ties go to any of the tied.

    The k largest lie in the k groups of neighbours with the largest maxima, and only those are sorted.
    """
    rows, width = values_CV.shape
    whole = width // _GROUP * _GROUP
    if whole <= k * _GROUP:
        return values_CV.topk(k, dim=-1, sorted=False).indices
    maxima = values_CV[:, :whole].unflatten(1, (-1, _GROUP)).amax(-1)
    groups = maxima.topk(k, dim=-1, sorted=False).indices
    members = groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=values_CV.device)
    rest = torch.arange(whole, width, device=values_CV.device).expand(rows, -1)
    candidates = torch.cat([members.flatten(1), rest], dim=1)
    best = values_CV.gather(1, candidates).topk(k, dim=-1, sorted=False).indices
    return candidates.gather(1, best)
