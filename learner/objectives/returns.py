"""What earlier tokens answer for: the discounted advantages of the tokens that follow them in a trajectory.

    F_t = sum over t' > t of gamma^(t' - t) A_t'

Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", 2023 (arXiv:2306.08543), equation 3 onwards:
R_t = A_t + F_t with gamma = 1; their length normalisation divides the sum by the number of its terms.

Shape suffixes: R response tokens.
"""

import torch
from torch import Tensor


def future_advantages(
    advantages_R: Tensor, trajectory_R: Tensor, positions_R: Tensor, discount: float, length_normalised: bool
) -> Tensor:
    """F_t of every token, [R]; zero for the last token of a trajectory.

    Tokens outside the loss mask are no rows: they add nothing, and what lies behind them is discounted by the
    distance in the response.

    Args:
        advantages_R: A_t, detached.
        trajectory_R: which trajectory a row belongs to; a trajectory's rows stand together, in order.
        positions_R: place in the response.
        length_normalised: divide by the number of rows in the sum.
    """
    futures: list[float] = []
    total, count = 0.0, 0  # of the rows already seen of this trajectory, discounted to the one before them
    rows = zip(advantages_R.tolist(), trajectory_R.tolist(), positions_R.tolist(), strict=True)
    later: tuple[int, int] | None = None  # trajectory and position of the row behind
    for advantage, trajectory, position in reversed(list(rows)):
        if later is None or later[0] != trajectory:
            total, count, distance = 0.0, 0, 0
        else:
            distance = later[1] - position
        future = total * discount**distance
        futures.append(future / max(count, 1) if length_normalised else future)
        total, count, later = advantage + future, count + 1, (trajectory, position)
    return torch.tensor(futures[::-1], dtype=advantages_R.dtype, device=advantages_R.device)
