"""A mixture's scores against the weighted sum of its teachers' whole distributions."""

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scoring.mixture import score_mixture
from tutelage.records.signal import ScoringRequest, TeacherSignal

V = 23


class Known:
    """A teacher whose distributions are given."""

    def __init__(self, probs_TV: NDArray[np.float64]) -> None:
        self.probs_TV = probs_TV

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        logprobs_TV = np.log(self.probs_TV).astype(np.float32)
        top = np.argsort(-logprobs_TV, axis=1)[:, : request.top_k].astype(np.int32)

        def at(ids: NDArray[np.int32]) -> NDArray[np.float32]:
            return np.take_along_axis(logprobs_TV, ids, axis=1)

        return TeacherSignal(
            request.teacher,
            at(request.response_ids[:, None])[:, 0],
            support_ids=request.support_ids,
            support_logprobs=None if request.support_ids is None else at(request.support_ids),
            top_ids=top if request.top_k else None,
            top_logprobs=at(top) if request.top_k else None,
            hidden_states=logprobs_TV[:, :3] if request.hidden_states else None,
        )


def mixed(
    seed: int, weights: Mapping[str, float], k: int, tokens: int = 6
) -> tuple[TeacherSignal, NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    teachers = {key: Known(generator.dirichlet(np.full(V, 0.3), tokens) * (1 - 1e-6) + 1e-6 / V) for key in weights}
    response = generator.integers(0, V, tokens, dtype=np.int32)
    support = generator.integers(0, V, (tokens, 4), dtype=np.int32)
    requests = {
        key: ScoringRequest(key, np.ones(2, np.int32), response, support_ids=support, top_k=k, hidden_states=True)
        for key in weights
    }

    async def score(request: ScoringRequest) -> TeacherSignal:
        return await teachers[request.teacher].score(request)

    signal = asyncio.run(score_mixture("blend", weights, requests, score))
    total = sum(weight * teachers[key].probs_TV for key, weight in weights.items())
    assert isinstance(total, np.ndarray)
    rows = np.arange(tokens)
    np.testing.assert_allclose(signal.logprobs, np.log(total[rows, response]), atol=1e-5)
    assert signal.support_logprobs is not None
    np.testing.assert_allclose(signal.support_logprobs, np.log(np.take_along_axis(total, support, 1)), atol=1e-5)
    assert signal.hidden_states is not None and signal.hidden_states.shape == (tokens, 3 * len(weights))
    assert signal.entropy is None  # nobody can tell it from the parts
    return signal, total


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95), k=st.integers(1, 8))
def test_marks_are_those_of_the_weighted_sum(seed: int, share: float, k: int) -> None:
    signal, total = mixed(seed, {"a": share, "b": 1 - share}, k)
    assert signal.top_ids is not None and signal.top_logprobs is not None
    np.testing.assert_allclose(signal.top_logprobs, np.log(np.take_along_axis(total, signal.top_ids, 1)), atol=1e-5)
    assert (np.diff(signal.top_logprobs, axis=1) <= 1e-6).all()  # most likely first
    assert all(len(set(row.tolist())) == k for row in signal.top_ids)


@pytest.mark.parametrize("seed", range(5))
def test_with_the_whole_vocabulary_the_top_is_the_mixtures_own(seed: int) -> None:
    signal, total = mixed(seed, {"a": 0.2, "b": 0.5, "c": 0.3}, V)
    assert signal.top_ids is not None
    np.testing.assert_array_equal(signal.top_ids, np.argsort(-total, axis=1))
