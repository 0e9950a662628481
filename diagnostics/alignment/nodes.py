"""Which places of an answer are looked at: some in each window of positions that doubles in length.

Window i has the tokens from the 2^i-th to the one before the 2^(i+1)-th, so that early and late places are looked at
alike; every place has a known probability of being chosen, and counts by its inverse in a mean over all places.

Shape suffixes: T tokens of an answer, W places in a window, K top ids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagnostics.alignment.gradients import Node, View
from diagnostics.config import NodeSelection
from learner.records import ExampleTokens

_UNIFORM_SHARE = 0.5  # of the choice by divergence: no place weighs more than twice what it does uniformly


@dataclass(frozen=True)
class Choice:
    """A place of an answer that is looked at."""

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
    probabilities, certain = np.zeros(len(sizes_W)), np.zeros(len(sizes_W), dtype=bool)
    while True:
        rest = sizes_W[~certain]
        probabilities[~certain] = rest * (count - certain.sum()) / rest.sum()
        probabilities[certain] = 1.0
        if not (probabilities > 1).any():
            return probabilities
        certain |= probabilities > 1


def systematic_sample(probabilities_W: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.intp]:
    """Places chosen with exactly these probabilities, none twice (systematic sampling in random order)."""
    order = generator.permutation(len(probabilities_W))
    ends = np.cumsum(probabilities_W[order])
    points = generator.random() + np.arange(round(float(ends[-1])))
    return np.sort(order[np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)])


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
            sizes = (1 - _UNIFORM_SHARE) * magnitude / magnitude.mean() + _UNIFORM_SHARE
        probabilities = inclusion_probabilities(sizes, per_window)
        places = systematic_sample(probabilities, generator)
        chosen += [Choice(window.start + int(i), float(probabilities[i])) for i in places]
    return chosen


def node_view(
    tokens: ExampleTokens, sampled: int, node: Node, candidates: int, teacher: str, has_context: bool
) -> View:
    """What student and teacher say at a node, on {ŷ_u} ∪ TopK(p, candidates) ∪ TopK(q, candidates).

    Args:
        tokens: of the node's answer, all of whose tokens are loss tokens, with at least `candidates` top ids.
        sampled: id of the token that came.
    """
    row, top = node.position, slice(candidates)
    values = {name: float(value[row]) for name, value in tokens.values.items()}
    pairs = {sampled: (values["student_logprob"], values["teacher_logprob"])}
    for ids, student_TK, teacher_TK in (
        (tokens.student_top_ids, tokens.student_top_logprobs, tokens.teacher_logprobs_at_student_top),
        (tokens.teacher_top_ids, tokens.student_logprobs_at_teacher_top, tokens.teacher_top_logprobs),
    ):
        listed = zip(ids[row, top].tolist(), student_TK[row, top].tolist(), teacher_TK[row, top].tolist(), strict=True)
        for token, p, q in listed:
            pairs.setdefault(token, (p, q))
    logprobs = np.array(list(pairs.values()), dtype=np.float64)
    return View(
        teacher=teacher,
        has_context=has_context,
        candidate_ids=np.array(list(pairs), dtype=np.int32),
        student_logprobs=logprobs[:, 0],
        teacher_logprobs=logprobs[:, 1],
        proxies=_proxies(tokens, values, node),
    )


def _proxies(tokens: ExampleTokens, values: dict[str, float], node: Node) -> dict[str, float]:
    ratios = tokens.values["teacher_logprob"] - tokens.values["student_logprob"]
    ratio = values["teacher_logprob"] - values["student_logprob"]
    return {
        "reverse_kl": values["reverse_kl"],
        "forward_kl": values["forward_kl"],
        "sampled_log_ratio": ratio,
        "abs_sampled_log_ratio": abs(ratio),
        "student_entropy": values["student_entropy"],
        "teacher_entropy": values["teacher_entropy"],
        "overlap_ratio": values["overlap_ratio"],
        "sequence_mean_reward": float(ratios.mean(dtype=np.float64)),
        "answer_is_incorrect": float(not node.correct),
        "position": float(node.position),
    }
