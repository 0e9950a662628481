"""A made-up student whose chances after every token are known."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diagnostics.alignment.gradients import Node, View

Array = NDArray[np.float64]
PROXIES = {"reverse_kl": 0.1, "position": 2.0}


def node(question: str = "q0", position: int = 2, correct: bool = False, probability: float = 1.0) -> Node:
    return Node(question, 0, position, correct, probability)


def view(p: Array, q: Array, proxies: Mapping[str, float] = PROXIES) -> View:
    """Candidates 0, 1, … with these probabilities, which need not sum to 1."""
    return View("teacher", False, np.arange(len(p), dtype=np.int32), np.log(p), np.log(q), proxies)


def tilted(p: Array, success: Array, strength: float) -> Array:
    """q ∝ p exp(strength · Psucc): the reverse KL to it descends along strength · g exactly."""
    q = p * np.exp(strength * success)
    return q / q.sum()


def drawn(success: Array, completions: int, seed: int) -> dict[int, Array]:
    generator = np.random.default_rng(seed)
    return {j: (generator.random(completions) < chance).astype(float) for j, chance in enumerate(success)}
