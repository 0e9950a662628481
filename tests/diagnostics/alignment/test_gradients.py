"""The formulas against autograd, and the estimate against a student whose chances are known."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diagnostics.alignment.gradients import (
    DESCENTS,
    compare_gradients,
    cosine,
    gradient_noise,
    half_agreement,
    ideal_gradient,
)
from diagnostics.config import AlignmentConfig
from tests.diagnostics.alignment.examples import Array, drawn, node, tilted, view

SETTINGS = AlignmentConfig()
logits = st.lists(st.floats(-8, 8), min_size=2, max_size=7)


def log_softmax(values: list[float]) -> Array:
    return torch.tensor(values, dtype=torch.float64).log_softmax(-1).numpy()


def divergence(name: str, z: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
    logp = z.log_softmax(-1)
    if name == "reverse_kl":
        return (logp.exp() * (logp - logq)).sum()
    if name == "forward_kl":
        return (logq.exp() * (logq - logp)).sum()
    middle = torch.logaddexp(logp, logq) - np.log(2)
    return ((logp.exp() * (logp - middle)).sum() + (logq.exp() * (logq - middle)).sum()) / 2


@pytest.mark.parametrize("name", list(DESCENTS))
@settings(deadline=None)
@given(logits, st.integers(0, 1000))
def test_descent_directions_are_minus_the_gradient(name: str, values: list[float], seed: int) -> None:
    z = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    logq = (4 * torch.randn(len(values), generator=generator, dtype=torch.float64)).log_softmax(-1)
    divergence(name, z, logq).backward()
    assert z.grad is not None
    found = DESCENTS[name](z.detach().log_softmax(-1).numpy(), logq.numpy())
    np.testing.assert_allclose(found, -z.grad.numpy(), atol=1e-12)


@settings(deadline=None)
@given(logits, st.integers(0, 1000))
def test_the_ideal_gradient_is_that_of_the_mean_success(values: list[float], seed: int) -> None:
    z = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    success = np.random.default_rng(seed).random(len(values))
    (z.softmax(-1) @ torch.from_numpy(success)).backward()
    assert z.grad is not None
    found = ideal_gradient(z.detach().softmax(-1).numpy(), success)
    np.testing.assert_allclose(found, z.grad.numpy(), atol=1e-14)
    assert abs(found.sum()) < 1e-12


@settings(deadline=None)
@given(logits, st.floats(0.01, 5), st.integers(0, 1000))
def test_a_teacher_that_prefers_what_succeeds_is_aligned_and_ahead(
    values: list[float], strength: float, seed: int
) -> None:
    p, success = np.exp(log_softmax(values)), np.random.default_rng(seed).random(len(values))
    q, g = tilted(p, success, strength), ideal_gradient(p, success)
    found = DESCENTS["reverse_kl"](np.log(p), np.log(q))
    np.testing.assert_allclose(found, strength * g, atol=1e-9)
    assert (q - p) @ success > -1e-12
    against = tilted(p, success, -strength)
    np.testing.assert_allclose(DESCENTS["reverse_kl"](np.log(p), np.log(against)), -strength * g, atol=1e-9)


def test_smoothing_shrinks_towards_a_half_and_changes_no_direction() -> None:
    successes = np.array([0.0, 3.0, 8.0])
    outcomes = {j: (np.arange(8) < count).astype(float) for j, count in enumerate(successes)}
    p = np.array([0.5, 0.3, 0.2])
    found = compare_gradients(node(), view(p, p), outcomes, SETTINGS).success
    np.testing.assert_allclose(found, [0.5 / 9, 3.5 / 9, 8.5 / 9])
    assert cosine(ideal_gradient(p, found), ideal_gradient(p, successes / 8)) == pytest.approx(1)


def test_the_cosine_of_nothing_is_nothing() -> None:
    assert cosine(np.zeros(3), np.ones(3)) == 0
    assert cosine(np.array([1.0, -1.0]), np.array([-2.0, 2.0])) == pytest.approx(-1)


def chances(depth: int, vocabulary: int, seed: int) -> dict[tuple[int, ...], Array]:
    """Psucc of every token at every prefix of a tabular student, by dynamic programming, and its policy."""
    generator = np.random.default_rng(seed)
    ends = {leaf: generator.random() < 0.3 for leaf in itertools.product(range(vocabulary), repeat=depth)}
    value: dict[tuple[int, ...], float] = {leaf: float(good) for leaf, good in ends.items()}
    success = {}
    for length in reversed(range(depth)):
        for prefix in itertools.product(range(vocabulary), repeat=length):
            p = policy(prefix, vocabulary)
            success[prefix] = np.array([value[(*prefix, j)] for j in range(vocabulary)])
            value[prefix] = float(p @ success[prefix])
    return success


def policy(prefix: tuple[int, ...], vocabulary: int) -> Array:
    return np.random.default_rng([9, *prefix]).dirichlet(np.ones(vocabulary))


def complete(prefix: tuple[int, ...], depth: int, vocabulary: int, good: set, count: int, seed: int) -> Array:
    """Completions that are really drawn, token by token."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        path = prefix
        while len(path) < depth:
            path = (*path, int(generator.choice(vocabulary, p=policy(path, vocabulary))))
        found.append(float(path in good))
    return np.array(found)


def test_drawn_completions_find_the_gradient_of_a_tabular_student() -> None:
    depth, vocabulary = 3, 4
    success = chances(depth, vocabulary, seed=1)
    good = {(*prefix, j) for prefix in success if len(prefix) == depth - 1 for j in np.flatnonzero(success[prefix])}
    prefix = (1,)
    p, true = policy(prefix, vocabulary), success[prefix]
    outcomes = {j: complete((*prefix, j), depth, vocabulary, good, count=4000, seed=j) for j in range(vocabulary)}
    found = compare_gradients(node(), view(p, tilted(p, true, 2.0)), outcomes, SETTINGS)
    assert found.skipped == ""
    assert found.cosines["reverse_kl"] > 0.995
    assert found.mean_success == pytest.approx(p @ true, abs=0.02)
    opposed = compare_gradients(node(), view(p, tilted(p, true, -2.0)), outcomes, SETTINGS)
    assert opposed.cosines["reverse_kl"] < -0.995 and opposed.advantage < 0 < found.advantage


P, SUCCESS = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.8, 0.3, 0.5, 0.1])


def mean_cosine(completions: int, draws: int = 200) -> tuple[float, float]:
    """The mean cosine of the ideal direction, and the mean agreement of the halves."""
    ideal = view(P, tilted(P, SUCCESS, 1.0))
    rows = [compare_gradients(node(), ideal, drawn(SUCCESS, completions, seed), SETTINGS) for seed in range(draws)]
    return float(np.mean([row.cosines["reverse_kl"] for row in rows])), float(np.mean([r.agreement for r in rows]))


def test_the_cosine_of_the_ideal_direction_goes_to_one() -> None:
    found = [mean_cosine(completions)[0] for completions in (8, 32, 128, 2048)]
    assert found == sorted(found)
    assert found[0] < 0.95 and found[-1] > 0.998


def test_the_reliability_corrects_what_few_completions_cost() -> None:
    seen, agreement = mean_cosine(8, draws=800)
    corrected = seen / np.sqrt(2 * agreement / (1 + agreement))
    assert seen < 0.93
    assert corrected == pytest.approx(1, abs=0.03)


def test_the_noise_is_the_standard_error_of_the_gradient() -> None:
    completions = 400
    spread = np.std([
        ideal_gradient(P, np.array([item.mean() for item in drawn(SUCCESS, completions, seed).values()]))
        for seed in range(500)
    ], axis=0)  # fmt: skip
    found = gradient_noise(P, SUCCESS * completions, np.full(4, float(completions)), 0.5)
    assert found == pytest.approx(np.linalg.norm(spread), rel=0.05)


def test_halves_agree_where_there_is_no_noise_and_not_where_there_is_no_signal() -> None:
    generator = np.random.default_rng(0)
    certain = np.repeat(np.array([[1.0], [0.0], [1.0], [0.0]]), 8, axis=1)
    assert half_agreement(P, certain, generator) == pytest.approx(1)
    assert half_agreement(P, np.ones((4, 8)), generator) == 0
    noise = [half_agreement(P, generator.integers(0, 2, (4, 16)).astype(float), generator) for _ in range(300)]
    assert abs(np.mean(noise)) < 0.1


def test_candidates_with_few_completions_are_left_out_and_the_rest_renormalised() -> None:
    outcomes = drawn(SUCCESS, 64, 0)
    outcomes[3] = outcomes[3][:7]
    found = compare_gradients(node(), view(P, tilted(P, SUCCESS, 1.0)), outcomes, AlignmentConfig(min_completions=8))
    assert found.kept.tolist() == [True, True, True, False]
    alone = compare_gradients(node(), view(P[:3], tilted(P, SUCCESS, 1.0)[:3]), outcomes, AlignmentConfig())
    assert found.cosines == pytest.approx(alone.cosines)
    assert found.mean_success == pytest.approx(alone.mean_success)


def test_nodes_that_tell_nothing_are_skipped_and_say_why() -> None:
    same = {j: np.ones(16) for j in range(4)}
    assert "noise" in compare_gradients(node(), view(P, tilted(P, SUCCESS, 1.0)), same, SETTINGS).skipped
    assert "student says" in compare_gradients(node(), view(P, P), drawn(SUCCESS, 256, 0), SETTINGS).skipped
    few = {0: np.ones(16)}
    assert "two candidates" in compare_gradients(node(), view(P, P), few, SETTINGS).skipped
