"""Sums over the micro-batches and ranks of a step."""

import torch
import torch.distributed as dist
from torch import Tensor

GAP = "rollout_logprob_gap"
_UNREPORTED = ("loss", "learner_logprob")


class StepTotals:
    """Token sums of a step's per-token values, and the largest rollout/learner gap."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self._gap_max = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, per_token: dict[str, Tensor]) -> None:
        for name, values in per_token.items():
            self._sums[name] = self._sums.get(name, 0.0) + values.double().sum()
        if len(per_token[GAP]):
            self._gap_max = torch.maximum(self._gap_max, per_token[GAP].double().max())

    @property
    def loss_is_finite(self) -> bool:
        return bool(self._sums["loss"].isfinite())

    def reduce(self, loss_tokens: int) -> tuple[float, dict[str, float]]:
        """Mean loss and mean metrics over all ranks' tokens. A collective: every rank must call it."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        dist.all_reduce(sums)
        dist.all_reduce(self._gap_max, op=dist.ReduceOp.MAX)
        means = dict(zip(names, (sums / max(loss_tokens, 1)).tolist(), strict=True))
        metrics = {name: mean for name, mean in means.items() if name not in (*_UNREPORTED, GAP)}
        metrics[f"{GAP}_mean"] = means[GAP]
        metrics[f"{GAP}_max"] = float(self._gap_max)
        return means["loss"], metrics
