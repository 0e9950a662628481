"""The k largest entries of long rows.

Shape suffixes: C rows, V entries of a row.
"""

import torch
from torch import Tensor

_BLOCK = 64  # neighbours whose maximum is compared first


def top_k(rows_CV: Tensor, k: int, in_order: bool = True) -> tuple[Tensor, Tensor]:
    """Find the values [C, k] and places [C, k] of the largest entries of each row.

    The k largest lie in the k blocks of neighbours with the largest maxima, and only those are sorted; of equal entries
    any may come.

    Args:
        in_order: the largest comes first.
    """
    vocabulary = rows_CV.shape[1]
    blocks = vocabulary // _BLOCK
    if 2 * k > blocks:  # little would be left out
        values, places = rows_CV.topk(k, dim=-1, sorted=in_order)
        return values, places
    maxima = rows_CV[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK)).amax(-1)
    firsts = maxima.topk(k, dim=-1, sorted=False).indices * _BLOCK
    within = torch.arange(_BLOCK, device=rows_CV.device)
    rest = torch.arange(blocks * _BLOCK, vocabulary, device=rows_CV.device).expand(len(rows_CV), -1)
    candidates = torch.cat([(firsts[:, :, None] + within).flatten(1), rest], dim=1)
    values, places = rows_CV.gather(1, candidates).topk(k, dim=-1, sorted=in_order)
    return values, candidates.gather(1, places)
