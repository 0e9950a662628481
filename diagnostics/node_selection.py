"""Which places of an answer are looked at: some in each window of positions that doubles in length.

Window i has the tokens from the 2^i-th to the one before the 2^(i+1)-th, so that early and late places are looked at
alike; every place has a known probability of being chosen, and counts by its inverse in a mean over all places.

Shape suffixes: T tokens of an answer, W places in a window.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagnostics.config import NodeSelection

_UNIFORM_SHARE = 0.1  # of the choice by divergence: bounds the weight of a place where the models agree


@dataclass(frozen=True)
class Choice:
    position: int  # from 0
    probability: float  # of being chosen, in (0, 1]


def windows(tokens: int) -> list[range]:
    """[2^i − 1, 2^(i+1) − 1) for i = 0, 1, …, cut off at the end of the answer; positions from 0."""
    bounds = [2**i - 1 for i in range((tokens + 1).bit_length()) if 2**i - 1 < tokens]
    return [range(start, min(2 * start + 1, tokens)) for start in bounds]


def inclusion_probabilities(sizes_W: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Proportional to size, at most 1 each, with the sum min(count, W)."""
    if count >= len(sizes_W):
        return np.ones(len(sizes_W))
    found, certain = np.zeros(len(sizes_W)), np.zeros(len(sizes_W), dtype=bool)
    while True:
        rest = sizes_W[~certain]
        found[~certain] = rest * (count - certain.sum()) / rest.sum()
        found[certain] = 1.0
        if not (found > 1).any():
            return found
        certain |= found > 1


def systematic_sample(probabilities_W: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.intp]:
    """Places chosen with exactly these probabilities, none twice (systematic sampling in random order)."""
    order = generator.permutation(len(probabilities_W))
    ends = np.cumsum(probabilities_W[order])
    marks = generator.random() + np.arange(round(float(ends[-1])))
    return np.sort(order[np.minimum(np.searchsorted(ends, marks, side="right"), len(order) - 1)])


def choose(
    divergence_T: NDArray[np.floating], per_window: int, selection: NodeSelection, generator: np.random.Generator
) -> list[Choice]:
    """Choose places of one answer.

    Args:
        divergence_T: how far apart the models are at each token; only its magnitude matters, and only for `kl`.
    """
    chosen = []
    for window in windows(len(divergence_T)):
        sizes = np.ones(len(window))
        magnitude = np.abs(np.asarray(divergence_T[window.start : window.stop], dtype=np.float64))
        if selection is NodeSelection.kl and magnitude.sum() > 0:
            sizes = magnitude / magnitude.mean() + _UNIFORM_SHARE
        probabilities = inclusion_probabilities(sizes, per_window)
        places = systematic_sample(probabilities, generator)
        chosen += [Choice(window.start + int(i), float(probabilities[i])) for i in places]
    return chosen
