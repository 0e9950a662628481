"""Sums over the micro-batches and ranks of a step.

Shape suffixes: R loss tokens of a micro-batch.

A metric that is NaN at a token is not defined there (the rollout's log-prob of a token that the student did not
sample): its mean is over the other tokens, and it is left out where no token has it. The loss is not excused: a NaN
in it stays one.
"""

import torch
import torch.distributed as dist
from torch import Tensor

GAP = "rollout_logprob_gap"
LOSS = "loss"
_UNREPORTED = (LOSS, "learner_logprob")


class StepTotals:
    """Token sums of a step's per-token values, and the largest rollout/learner gap."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}  # [2] each: of the values, and of the tokens that have one
        self._gap_max = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, per_token: dict[str, Tensor]) -> None:
        """Add values [R] of each metric."""
        for name, values_R in per_token.items():
            undefined_R = values_R.isnan() if name != LOSS else torch.zeros_like(values_R, dtype=torch.bool)
            total = values_R.double().masked_fill(undefined_R, 0.0).sum()
            counted = torch.stack([total, (~undefined_R).sum().double()])
            self._sums[name] = self._sums.get(name, 0.0) + counted
        if len(per_token[GAP]):
            self._gap_max = torch.maximum(self._gap_max, per_token[GAP].double().nan_to_num(nan=0.0).max())

    @property
    def loss_is_finite(self) -> bool:
        return bool(self._sums[LOSS].isfinite().all())

    def reduce(self, loss_tokens: int) -> tuple[float, dict[str, float]]:
        """Mean loss over `loss_tokens`, and the mean of each metric over all ranks' tokens that have it.

        A collective: every rank must call it.
        """
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        dist.all_reduce(sums)
        dist.all_reduce(self._gap_max, op=dist.ReduceOp.MAX)
        totals = dict(zip(names, sums.tolist(), strict=True))
        loss = totals[LOSS][0] / max(loss_tokens, 1)
        known = {name: total / count for name, (total, count) in totals.items() if count and name not in _UNREPORTED}
        if GAP in known:
            known |= {f"{GAP}_mean": known.pop(GAP), f"{GAP}_max": float(self._gap_max)}
        return loss, known
