"""Intervals over prompts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def ratio_interval(totals: NDArray[np.float64], weights: NDArray[np.float64]) -> Interval:
    """Σ totals / Σ weights with its 95 % percentile bootstrap interval over prompts.

    Args:
        totals: [n] sums over a prompt's tokens (or one value a prompt).
        weights: [n] the number of terms in each sum.
    """
    draws = np.random.default_rng(0).integers(0, len(totals), size=(BOOTSTRAP_DRAWS, len(totals)))
    ratios = totals[draws].sum(axis=1) / weights[draws].sum(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(float(totals.sum() / weights.sum()), float(low), float(high))
