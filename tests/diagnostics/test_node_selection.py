import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagnostics.config import NodeSelection
from diagnostics.node_selection import choose, inclusion_probabilities, systematic_sample, windows


def test_windows_double_in_length() -> None:
    assert windows(12) == [range(0, 1), range(1, 3), range(3, 7), range(7, 12)]


@settings(deadline=None)
@given(st.integers(1, 300))
def test_windows_have_every_place_once(tokens: int) -> None:
    assert [place for window in windows(tokens) for place in window] == list(range(tokens))


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.integers(1, 8), st.integers(0, 99))
def test_as_many_places_as_asked_for_none_twice(sizes: list[float], count: int, seed: int) -> None:
    probabilities = inclusion_probabilities(np.array(sizes), count)
    assert probabilities.sum() == pytest.approx(min(count, len(sizes)))
    assert (probabilities > 0).all() and (probabilities <= 1).all()
    chosen = systematic_sample(probabilities, np.random.default_rng(seed))
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(sizes))


def test_places_are_chosen_as_often_as_stated() -> None:
    probabilities = inclusion_probabilities(np.array([1.0, 2.0, 3.0, 10.0]), 2)
    np.testing.assert_allclose(probabilities, [1 / 6, 2 / 6, 3 / 6, 1])
    generator, counts = np.random.default_rng(0), np.zeros(4)
    for _ in range(20_000):
        counts[systematic_sample(probabilities, generator)] += 1
    np.testing.assert_allclose(counts / 20_000, probabilities, atol=0.012)


@pytest.mark.parametrize("selection", list(NodeSelection))
def test_inverse_weights_give_the_mean_over_all_places(selection: NodeSelection) -> None:
    generator = np.random.default_rng(1)
    divergence, values = generator.exponential(size=40), generator.random(40)
    totals = [
        sum(values[c.position] / c.probability for c in choose(divergence, 2, selection, np.random.default_rng(seed)))
        for seed in range(4000)
    ]
    assert np.mean(totals) == pytest.approx(values.sum(), rel=0.03)


def test_uniform_places_do_not_depend_on_the_teacher_and_those_by_kl_do() -> None:
    peaked, flat = np.full(31, 1e-3), np.ones(31)
    peaked[[0, 2, 5, 12, 20]] = 10.0

    def places(divergence: np.ndarray, selection: NodeSelection, seed: int) -> list[int]:
        return [choice.position for choice in choose(divergence, 1, selection, np.random.default_rng(seed))]

    for seed in range(50):
        assert places(peaked, NodeSelection.uniform, seed) == places(flat, NodeSelection.uniform, seed)
    found = [places(peaked, NodeSelection.kl, seed) == [0, 2, 5, 12, 20] for seed in range(200)]
    assert np.mean(found) > 0.6
