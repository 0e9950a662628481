"""The correction at a boundary, against the sum over everything that begins with the same bytes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.boundaries import Vocabulary, corrections

PIECES = {0: b"a", 1: b"b", 2: b"ab", 3: b"abb"}  # 3 is not written where 2 and 1 could be: see `table`


def table(seed: int) -> dict[int, np.ndarray]:
    """P(next | last), -1 at the beginning, of a model that writes each text in one way only: "a" never before "b"."""
    weights = np.random.default_rng(seed).uniform(0.1, 1, (5, 4))
    weights[0, 1] = weights[2, 1] = 0  # a b would be ab, ab b would be abb
    return {last: weights[last] / weights[last].sum() for last in range(-1, 4)}


def prefix_probability(text: bytes, probs: dict[int, np.ndarray], last: int = -1) -> float:
    """Add up all that begins with `text`."""
    if not text:
        return 1.0
    total = 0.0
    for token, piece in PIECES.items():
        if piece.startswith(text):
            total += probs[last][token]
        elif text.startswith(piece):
            total += probs[last][token] * prefix_probability(text[len(piece) :], probs, token)
    return total


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_corrected_scores_are_those_of_the_bytes(ids: list[int], seed: int) -> None:
    probs = table(seed)
    rows = np.stack([probs[last] for last in (-1, *ids[:-1])])
    if not rows[np.arange(len(ids)), ids].all():
        return  # no text is written so
    found = corrections(rows, ids, [PIECES[token] for token in ids], Vocabulary(PIECES))
    logprob, text = 0.0, b""
    for place, token in enumerate(ids):
        logprob, text = logprob + math.log(rows[place, token]), text + PIECES[token]
        assert logprob + found[place + 1] == pytest.approx(math.log(prefix_probability(text, probs)))
