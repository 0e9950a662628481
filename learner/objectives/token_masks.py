"""Which response tokens a term learns from.

Shape suffixes: C positions.

Random masks are drawn from a hash of the seed, the trajectory's slot and the token's place in the response, so ranks,
chunks and resumed runs agree on them, and two terms split the tokens between them.

Trust masks: TrOPD, arXiv 2606.01249.
"""

import torch
from torch import Tensor

from learner.objectives.base import teacher_floor
from learner.objectives.config import Spans, TokenMaskConfig, Trust
from learner.records import Rows

_TRUST, _SHARE = 1, 2  # independent streams of random numbers
_MASK_64 = (1 << 64) - 1


def token_weights(mask: TokenMaskConfig, seed: int, rows: Rows, logp_C: Tensor) -> Tensor | None:
    """[C], what each token weighs; None if all weigh 1.

    Args:
        logp_C: the current student's log-probs of the targets.
    """
    chosen = [weight for weight in _conditions(mask, seed, rows, logp_C) if weight is not None]
    if not chosen:
        return None
    weight = torch.stack(chosen).all(0).to(logp_C.dtype)
    return weight / mask.share


def _conditions(mask: TokenMaskConfig, seed: int, rows: Rows, logp_C: Tensor) -> list[Tensor | None]:
    return [
        rows.require("positions") >= mask.first if mask.first else None,
        rows.require("positions") < mask.last if mask.last is not None else None,
        rows.require("teacher_entropy") > mask.teacher_entropy_above
        if mask.teacher_entropy_above is not None
        else None,
        rows.require("teacher_entropy") < mask.teacher_entropy_below
        if mask.teacher_entropy_below is not None
        else None,
        ~rows.require("is_special") if not mask.special_tokens else None,
        _trusted(mask.trust, seed, rows, logp_C) if mask.trust is not Trust.none else None,
        _uniform(seed, _SHARE, rows) < mask.share if mask.share < 1 else None,
        rows.require("merged") == (mask.spans is Spans.merged) if mask.spans is not Spans.all else None,
    ]


def _trusted(trust: Trust, seed: int, rows: Rows, logp_C: Tensor) -> Tensor:
    """Bernoulli(min(q/p, 1)) at the sampled token, or its complement."""
    probability = (teacher_floor(rows.teacher_logprobs) - logp_C).clamp(max=0).exp()
    inside = _uniform(seed, _TRUST, rows) < probability
    return inside if trust is Trust.inside else ~inside


def _uniform(seed: int, stream: int, rows: Rows) -> Tensor:
    """[C] float64 in [0, 1), a function of seed, stream, slot and position alone."""
    state = _mix(rows.require("slots") + _signed(seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03))
    state = _mix(state + rows.require("positions"))
    return _shift(state, 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014); int64 arithmetic wraps."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same low 64 bits."""
    value &= _MASK_64
    return value - (1 << 64) if value >= 1 << 63 else value
