"""The k largest entries of long rows."""

import torch
from torch import Tensor

_GROUP = 64  # neighbouring ids whose maximum is compared first


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


_BLOCK = 64


def top_k(rows_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values [C, k] and places [C, k] of the largest, the largest first; of equal ones any."""
    vocabulary = rows_CV.shape[1]
    blocks = vocabulary // _BLOCK
    if 2 * k > blocks:  # little would be left out
        values, places = rows_CV.topk(k, dim=-1)
        return values, places
    maxima = rows_CV[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK)).amax(-1)
    firsts = maxima.topk(k, dim=-1, sorted=False).indices * _BLOCK
    within = torch.arange(_BLOCK, device=rows_CV.device)
    rest = torch.arange(blocks * _BLOCK, vocabulary, device=rows_CV.device).expand(len(rows_CV), -1)
    candidates = torch.cat([(firsts[:, :, None] + within).flatten(1), rest], dim=1)
    values, places = rows_CV.gather(1, candidates).topk(k, dim=-1)
    return values, candidates.gather(1, places)
