import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagnostics.alignment.nodes import choose, inclusion_probabilities, node_view, systematic_sample, windows
from diagnostics.config import NodeSelection
from learner.records import ExampleTokens
from tests.diagnostics.alignment.examples import node


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
    peaks = {0, 2, 5, 12, 20}
    hits = {
        selection: np.mean([len(peaks & set(places(peaked, selection, seed))) for seed in range(300)])
        for selection in NodeSelection
    }
    assert hits[NodeSelection.kl] > 1.5 * hits[NodeSelection.uniform]


@settings(deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=70), st.integers(1, 3), st.integers(0, 99))
def test_no_place_weighs_more_than_twice_what_it_does_uniformly(divergence: list[float], count: int, seed: int) -> None:
    for choice in choose(np.array(divergence), count, NodeSelection.kl, np.random.default_rng(seed)):
        window = next(w for w in windows(len(divergence)) if choice.position in w)
        assert 1 / choice.probability <= 2 * max(1, len(window) / count) + 1e-9


def test_candidates_are_the_sampled_token_and_the_top_of_both_models_each_once() -> None:
    generator = np.random.default_rng(0)
    logp, logq = (np.log(generator.dirichlet(np.ones(9), size=3)).astype(np.float32) for _ in range(2))
    top_p, top_q = (np.argsort(-table, axis=1)[:, :4].astype(np.int32) for table in (logp, logq))

    def at(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, ids, axis=1)

    sampled = np.array([0, 4, int(top_p[2, 1])])
    rows = np.arange(3)
    names = ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap_ratio")
    values = {name: generator.random(3).astype(np.float32) for name in names}
    values |= {"student_logprob": logp[rows, sampled], "teacher_logprob": logq[rows, sampled]}
    tokens = ExampleTokens(0, np.arange(3, dtype=np.int32), values, top_p, at(logp, top_p), at(logq, top_p),
                           top_q, at(logq, top_q), at(logp, top_q))  # fmt: skip
    for place in range(3):
        found = node_view(tokens, int(sampled[place]), node(position=place), 2, "t", has_context=True)
        ids = found.candidate_ids.tolist()
        assert ids[0] == sampled[place] and len(set(ids)) == len(ids)
        assert set(ids) == {sampled[place], *top_p[place, :2].tolist(), *top_q[place, :2].tolist()}
        np.testing.assert_allclose(found.student_logprobs, logp[place, ids])
        np.testing.assert_allclose(found.teacher_logprobs, logq[place, ids])
        ratio = float(values["teacher_logprob"][place]) - float(values["student_logprob"][place])
        assert found.proxies["sampled_log_ratio"] == ratio
        mean = np.mean(values["teacher_logprob"] - values["student_logprob"], dtype=np.float64)
        assert found.proxies["sequence_mean_reward"] == mean
