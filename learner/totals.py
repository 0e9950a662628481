"""Sums over the micro-batches and ranks of a step, whole and by position in the response; a NaN in it is caught.

Shape suffixes: R loss tokens of a micro-batch, B position buckets.

A metric that is NaN at a token is not defined there (the rollout's log-prob of a token that the student did not
sample): its mean is over the other tokens, and it is left out where no token has it. The loss is not excused: a NaN
in it stays one.

Buckets are the powers of two, [0, 1), [1, 2), [2, 4), [4, 8), …: always as many, so that ranks whose responses have
other lengths take part in the same collective.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

GAP = "rollout_logprob_gap"
LOSS = "loss"
BY_POSITION = (
    "entropy_gap",
    "forward_kl",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "overlap_ratio",
    "overlap_token_advantage",
    "overlap_undefined_share",
    "reverse_kl",
    "sampled_reverse_kl",
    "student_entropy",
)
_UNREPORTED = (LOSS, "learner_logprob")
_BUCKETS = 32  # the last one begins at 2^30 tokens


class StepTotals:
    """Token sums of a step's per-token values, and the largest rollout/learner gap."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}  # [2] each: of the values, and of the tokens that have one
        self._by_position = {name: _zeros(device, _BUCKETS, 2) for name in BY_POSITION}  # [B, 2] each, the same
        self._gap_max = _zeros(device)

    def add(self, per_token: dict[str, Tensor], positions_R: Tensor) -> None:
        """Add values [R] of each metric, of tokens at these places in their responses (int, from 0)."""
        # How many binary digits a position has: 0 → 0, 1 → 1, 2 and 3 → 2, 4 to 7 → 3.
        buckets_R = torch.frexp(positions_R.double()).exponent.long()
        for name, values_R in per_token.items():
            undefined_R = values_R.isnan() if name != LOSS else torch.zeros_like(values_R, dtype=torch.bool)
            counted_R2 = torch.stack([values_R.double().masked_fill(undefined_R, 0.0), (~undefined_R).double()], dim=1)
            self._sums[name] = self._sums.get(name, 0.0) + counted_R2.sum(0)
            if name in self._by_position:
                self._by_position[name].index_add_(0, buckets_R, counted_R2)
        if len(per_token[GAP]):
            self._gap_max = torch.maximum(self._gap_max, per_token[GAP].double().nan_to_num(nan=0.0).max())

    @property
    def loss_is_finite(self) -> bool:
        return bool(self._sums[LOSS].isfinite().all())

    def reduce(self, loss_tokens: int) -> tuple[float, dict[str, float]]:
        """Mean loss over `loss_tokens`, and the mean of each metric over all ranks' tokens that have it.

        The metrics of `BY_POSITION` also have one for each bucket with tokens, as "overlap_ratio/tokens_4_8".
        A collective: every rank must call it.
        """
        names = sorted(self._sums)
        sums, buckets = torch.stack([self._sums[name] for name in names]), torch.stack([*self._by_position.values()])
        for part in (sums, buckets):
            dist.all_reduce(part)
        dist.all_reduce(self._gap_max, op=dist.ReduceOp.MAX)
        totals = dict(zip(names, sums.tolist(), strict=True))
        loss = totals[LOSS][0] / max(loss_tokens, 1)
        known = {name: total / count for name, (total, count) in totals.items() if count and name not in _UNREPORTED}
        if GAP in known:
            known |= {f"{GAP}_mean": known.pop(GAP), f"{GAP}_max": float(self._gap_max)}
        return loss, known | _bucket_means(buckets)


class NonFiniteError(RuntimeError):
    """The weights are not finite, or may not be: nothing may be published or saved after it."""


class GradientWatch:
    """Looks at every parameter's gradient as the backward pass produces it.

    A hook on the parameter sees the whole gradient under every ZeRO stage, before it is reduced or
    partitioned.
    """

    def __init__(self, model: nn.Module) -> None:
        self._bad: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda grad, name=name: self._look(name, grad))

    def _look(self, name: str, grad: Tensor) -> None:
        # The sum of finite numbers is finite short of 3e38: one pass and no mask of the gradient's size.
        bad = ~grad.detach().sum(dtype=torch.float32).isfinite()
        seen = self._bad.get(name)
        self._bad[name] = bad if seen is None else seen | bad

    def drain(self) -> list[str]:
        """Names of the parameters with a non-finite gradient since the last call."""
        names = [name for name, bad in self._bad.items() if bool(bad)]
        self._bad.clear()
        return names


def _zeros(device: torch.device, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)


def _bucket_means(buckets: Tensor) -> dict[str, float]:
    """From sums and counts [names, B, 2]."""
    return {
        f"{name}/tokens_{2**b // 2}_{2**b}": total / count
        for name, column in zip(BY_POSITION, buckets.tolist(), strict=True)
        for b, (total, count) in enumerate(column)
        if count
    }
