"""Means with their 95 % intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, over prompts unless something else is said; NaN where nothing was measured."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Sequence[float] | NDArray[np.float64]) -> "Interval":
        """A value with the range of the middle 95 % of its draws."""
        low, high = np.percentile(draws, [2.5, 97.5])
        return cls(float(value), float(low), float(high))

    def as_json(self) -> dict[str, float | None] | None:
        """Return what JSON can hold; None where nothing was measured, and no end that was not."""
        ends = {"mean": self.mean, "low": self.low, "high": self.high}
        if not math.isfinite(self.mean):
            return None
        return {name: value if math.isfinite(value) else None for name, value in ends.items()}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_interval(totals: NDArray[np.float64], weights: NDArray[np.float64]) -> Interval:
    """Σ totals / Σ weights with its 95 % percentile bootstrap interval over prompts.

    Args:
        totals: [n] sums over a prompt's tokens (or one value a prompt).
        weights: [n] the number of terms in each sum.
    """
    draws = _draws(len(totals))
    return Interval.of(totals.sum() / weights.sum(), totals[draws].sum(axis=1) / weights[draws].sum(axis=1))


def bootstrap_interval(statistic: Callable[[NDArray[np.int64]], float], prompts: int) -> Interval:
    """A statistic of chosen prompts, with its 95 % percentile bootstrap interval over prompts.

    Args:
        statistic: takes the indices of prompts, some of them several times.
    """
    return Interval.of(statistic(np.arange(prompts)), [statistic(rows) for rows in _draws(prompts)])


def _draws(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, count, size=(BOOTSTRAP_DRAWS, count))
