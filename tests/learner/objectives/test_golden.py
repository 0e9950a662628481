"""Every objective on more than the sampled token against float64 autograd of its formula."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from learner.objectives import ObjectiveConfig
from learner.objectives.config import Gradient, Normalisation, Shaping, Support
from tests.learner.objectives.compositions import DIVERGENCES, WIDE
from tests.learner.objectives.formulas import losses
from tests.learner.positions import backward, close, compute, make_rows, random_pair

NORMALISED = [n for n in Normalisation if n is not Normalisation.naive]


def combinations(normalisations: list[Normalisation]) -> list[tuple[str, Support, Normalisation]]:
    pairs = [(s, n) for s, n in product(WIDE, normalisations) if s is not Support.full or n is Normalisation.raw]
    return [(divergence, *pair) for divergence, pair in product(DIVERGENCES, pairs)]


def check(config: ObjectiveConfig, seed: int) -> None:
    logits, logq = random_pair(seed)
    rows = make_rows(logits, logq)
    leaf = logits.clone().requires_grad_()
    expected = losses(config, leaf.log_softmax(-1), logq)
    result = compute(config, logits, rows, logq if config.support is Support.full else None)
    close(result.loss, expected.detach())
    close(result.grad_logits, backward(expected, leaf))


@pytest.mark.verifies("gradients", "back-propagated")
@pytest.mark.parametrize(("divergence", "support", "normalisation"), combinations(list(Normalisation)))
def test_direct(divergence: str, support: Support, normalisation: Normalisation) -> None:
    config = ObjectiveConfig(support=support, normalisation=normalisation, k=4, **DIVERGENCES[divergence])
    check(config, seed=0)


@pytest.mark.verifies("gradients", "policy gradient")
@pytest.mark.parametrize(("divergence", "support", "normalisation"), combinations(NORMALISED))
def test_policy_gradient(divergence: str, support: Support, normalisation: Normalisation) -> None:
    config = ObjectiveConfig(
        support=support,
        normalisation=normalisation,
        k=4,
        gradient=Gradient.policy_gradient,
        **DIVERGENCES[divergence],
    )
    check(config, seed=1)
    check(replace(config, shaping=Shaping.tanh), seed=2)


@pytest.mark.verifies("shaping", "each shape of the advantage enters the gradient as written, on every wide support")
@pytest.mark.parametrize("shaping", list(Shaping))
@pytest.mark.parametrize("support", WIDE)
def test_shaping(shaping: Shaping, support: Support) -> None:
    config = ObjectiveConfig(
        support=support,
        k=4,
        gradient=Gradient.policy_gradient,
        shaping=shaping,
        shaping_low=-0.4,
        shaping_high=0.6,
    )
    check(config, seed=3)


@pytest.mark.verifies("gradients of sums", "an objective's gradient is the weighted sum of its terms' gradients")
def test_terms_add_up() -> None:
    logits, logq = random_pair(4)
    rows = make_rows(logits, logq)
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    rows = replace(rows, weights=weight)
    first = ObjectiveConfig(weight=0.7, support=Support.union, normalisation=Normalisation.tail, k=3)
    others = {
        "full": ObjectiveConfig(weight=0.2, support=Support.full, divergence="jsd"),
        "forward": ObjectiveConfig(weight=1.3, support=Support.teacher_topk, k=2, divergence="forward_kl"),
    }
    leaf = logits.clone().requires_grad_()
    logp = leaf.log_softmax(-1)
    expected = weight * sum(term.weight * losses(term, logp, logq) for term in (first, *others.values()))
    result = compute(replace(first, further_terms=others), logits, rows, logq)
    close(result.loss, expected.detach())
    close(result.grad_logits, backward(expected, leaf))
    assert {"student_tail_mass", "forward_student_tail_mass"} <= result.metrics.keys()


@pytest.mark.verifies("gradients of sums", "float32 at 50,000 ids agrees with float64 to 1e-5, norm-wise")
@pytest.mark.parametrize("normalisation", list(Normalisation))
def test_single_precision(normalisation: Normalisation) -> None:
    logits, logq = random_pair(5, positions=2, vocabulary=50_000)
    rows = make_rows(logits, logq, k=16)
    config = ObjectiveConfig(support=Support.union, normalisation=normalisation, k=16)
    exact = compute(config, logits, rows).grad_logits
    low = replace(
        rows, **{name: x.float() for name, x in vars(rows).items() if x is not None and x.is_floating_point()}
    )
    rounded = compute(config, logits.float(), low).grad_logits
    assert (rounded.double() - exact).norm() <= 1e-5 * exact.norm()
