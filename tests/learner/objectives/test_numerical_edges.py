"""What happens to supports and normalisations at the edges: nothing in common, no mass, all of it, no rows, NaN."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from learner.objectives import ObjectiveConfig
from learner.objectives.base import LOG_ZERO
from learner.objectives.config import Gradient, Importance, Normalisation, Support
from learner.records import Rows
from tests.learner.objectives.compositions import DIVERGENCES, FEW
from tests.learner.positions import V, close, compute, make_rows, random_pair, value_and_gradient

SAMPLED = ObjectiveConfig(support=Support.sampled, gradient=Gradient.policy_gradient)
K2 = replace(SAMPLED, gradient=Gradient.backprop, estimator="k2")
K3 = replace(K2, estimator="k3", divergence="forward_kl")


def disjoint(logits: Tensor, logq: Tensor) -> Rows:
    """Rows whose two top-k lists share no id."""
    rows = make_rows(logits, logq)
    others = (-logits).topk(4, dim=-1).indices
    return replace(rows, teacher_top_ids=others, teacher_top_logprobs=logq.gather(1, others))


@pytest.mark.verifies("numerical edges", "an empty intersection is exactly zero, without NaN")
@pytest.mark.parametrize("normalisation", [n for n in Normalisation if n is not Normalisation.tail])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_an_empty_intersection_is_zero(divergence: str, normalisation: Normalisation) -> None:
    logits, logq = random_pair(41)
    for gradient in (Gradient.backprop, Gradient.policy_gradient):
        config = ObjectiveConfig(
            support=Support.intersection,
            k=4,
            normalisation=normalisation,
            gradient=gradient,
            **DIVERGENCES[divergence],
        )
        result = compute(config, logits, disjoint(logits, logq))
        assert not result.loss.any() and not result.grad_logits.any()
        assert all(value.isfinite().all() for value in result.metrics.values())


@pytest.mark.verifies("numerical edges", "an empty intersection with a tail is the divergence of two certainties: zero")
def test_an_empty_intersection_with_a_tail() -> None:
    logits, logq = random_pair(42)
    config = ObjectiveConfig(support=Support.intersection, k=4, normalisation=Normalisation.tail)
    result = compute(config, logits, disjoint(logits, logq))
    close(result.loss, torch.zeros_like(result.loss))
    close(result.grad_logits, torch.zeros_like(logits))


def on_every_form() -> list[ObjectiveConfig]:
    """All but averages of other divergences than the reverse KL, which `rules` refuses: q / M_p has no bound."""
    forms = product(FEW, Normalisation, DIVERGENCES, (Gradient.backprop, Gradient.policy_gradient))
    return [
        ObjectiveConfig(support=s, normalisation=n, gradient=r, k=4, **DIVERGENCES[divergence])
        for s, n, divergence, r in forms
        if n is not Normalisation.averaged or divergence == "reverse KL"
    ]


@pytest.mark.verifies("numerical edges", "-inf log-probs of either model, in float32: everything stays finite")
@pytest.mark.parametrize("excluded_by", ["student", "teacher", "both"])
def test_excluded_ids_stay_finite(excluded_by: str) -> None:
    logits, logq = (x.float() for x in random_pair(44))
    rows = make_rows(logits, logq)
    if excluded_by != "teacher":
        logits.scatter_(1, rows.support_ids[:, :2], -torch.inf)
    if excluded_by != "student":
        excluded = (rows.teacher_top_ids[:, :, None] == rows.support_ids[:, None, :2]).any(-1)
        rows = replace(
            rows,
            teacher_support_logprobs=rows.teacher_support_logprobs.index_fill(1, torch.arange(2), -torch.inf),
            teacher_top_logprobs=rows.teacher_top_logprobs.masked_fill(excluded, -torch.inf),
        )
    for config in on_every_form():
        result = compute(config, logits, rows)
        assert result.loss.isfinite().all() and result.grad_logits.isfinite().all(), config
        assert all(value.isfinite().all() for value in result.metrics.values()), config


@pytest.mark.verifies(
    "numerical edges", "a support of vanishing or of all mass, in float32: everything stays finite and small"
)
@pytest.mark.parametrize("logit", [-300.0, -60.0, 60.0, 300.0])
def test_vanishing_and_complete_mass(logit: float) -> None:
    logits, logq = (x.float() for x in random_pair(45))
    rows = make_rows(logits, logq)
    logits.scatter_(1, rows.support_ids, logit)
    for config in on_every_form():
        result = compute(config, logits, rows)
        assert result.loss.isfinite().all() and result.grad_logits.isfinite().all(), config
        if config.gradient is Gradient.backprop:
            assert result.grad_logits.abs().max() <= -LOG_ZERO + 1, config


@pytest.mark.verifies(
    "numerical edges", "forward KL with a tail pulls a student without a tail back, exactly, in float32"
)
def test_a_vanished_tail_gets_its_gradient() -> None:
    logits, logq = random_pair(46)
    rows = make_rows(logits, logq)
    logits = logits.scatter(1, rows.support_ids, 30.0)  # a tail of about e^-30, which 1 - M rounds to nothing
    config = ObjectiveConfig(normalisation=Normalisation.tail, divergence="forward_kl", k=4)
    _, exact = value_and_gradient(config, logits, logq, rows)
    low = replace(
        rows, **{name: x.float() for name, x in vars(rows).items() if x is not None and x.is_floating_point()}
    )
    _, found = value_and_gradient(config, logits.float(), logq.float(), low)
    assert (found.double() - exact).norm() <= 1e-5 * exact.norm()
    tail_q = 1 - rows.teacher_support_logprobs.exp().sum(-1)
    outside = torch.ones_like(exact).scatter(1, rows.support_ids, 0.0)
    close((exact * outside).sum(-1), -tail_q, 1e-6)


@pytest.mark.verifies("numerical edges", "one-token responses, no rows, and rows that weigh nothing")
@pytest.mark.parametrize("support", FEW)
def test_few_and_weightless_rows(support: Support) -> None:
    logits, logq = random_pair(47)
    rows, config = make_rows(logits, logq), ObjectiveConfig(support=support, k=4, normalisation=Normalisation.tail)
    whole = compute(config, logits, rows)
    one = compute(config, logits[:1], rows.slice(0, 1))
    close(one.grad_logits, whole.grad_logits[:1])
    none = compute(config, logits[:0], rows.slice(0, 0))
    assert none.loss.shape == (0,) and none.grad_logits.shape == (0, V) and none.metrics.keys() == whole.metrics.keys()
    idle = rows.slice(0, 0)
    narrow = {name: x[:, :1] for name, x in vars(idle).items() if x is not None and x.dim() == 2}
    assert compute(config, logits[:0], replace(idle, **narrow)).metrics.keys() == whole.metrics.keys()
    gated = compute(config, logits, replace(rows, weights=torch.zeros(5, dtype=torch.float64)))
    assert not gated.loss.any() and not gated.grad_logits.any()


@pytest.mark.verifies("numerical edges", "ids that only a longer teacher's head has are left out")
def test_padded_teacher_ids_are_left_out() -> None:
    logits, logq = random_pair(48)
    rows = make_rows(logits, logq)
    padded = replace(rows, teacher_top_ids=rows.teacher_top_ids.index_fill(1, torch.tensor([0]), V + 3))
    config = ObjectiveConfig(support=Support.teacher_topk, k=4)
    without = replace(
        rows, teacher_top_ids=rows.teacher_top_ids[:, 1:], teacher_top_logprobs=rows.teacher_top_logprobs[:, 1:]
    )
    found = compute(config, logits, padded)
    close(found.grad_logits, compute(replace(config, k=3), logits, without).grad_logits)


def test_a_nan_of_the_teacher_is_not_hidden_in_any_form_of_top_k() -> None:
    logits, logq = random_pair(49)
    rows = make_rows(logits, torch.full_like(logq, torch.nan))
    for config in on_every_form():
        if config.support is Support.student_topk:
            assert compute(config, logits, rows).loss.isnan().all()


@pytest.mark.verifies("numerical edges", "a sampled token that the student cannot emit contributes nothing")
def test_tokens_the_student_cannot_emit() -> None:
    logits, logq = random_pair(25)
    logits[:, 3] = -torch.inf
    rows = make_rows(logits, logq, targets=torch.full((5,), 3))
    rows = replace(rows, sampling_logprobs=torch.full((5,), -1.0, dtype=torch.float64))
    for importance in (Importance.truncated, Importance.ppo_clip):
        result = compute(replace(SAMPLED, importance=importance), logits, rows)
        assert result.grad_logits.isfinite().all() and result.loss.isfinite().all()
        close(result.grad_logits[:, 3], torch.zeros(5, dtype=torch.float64))


@pytest.mark.verifies("numerical edges", "a sampled token that the teacher excludes is pushed down with finite force")
def test_tokens_the_teacher_excludes() -> None:
    logits, logq = random_pair(26)
    rows = make_rows(logits, logq)
    rows = replace(rows, teacher_logprobs=torch.full((5,), -torch.inf, dtype=torch.float64))
    for config in (SAMPLED, K2, K3):
        result = compute(config, logits, rows)
        assert result.grad_logits.isfinite().all() and result.loss.isfinite().all()
        assert (result.grad_logits.gather(1, rows.target_ids[:, None]) > 0).all()


@pytest.mark.verifies("numerical edges", "a NaN of the teacher is not hidden")
@pytest.mark.parametrize("config", [SAMPLED, K2, K3], ids=["policy gradient", "k2", "k3"])
def test_a_nan_of_the_teacher_is_not_hidden_at_the_sampled_token(config: ObjectiveConfig) -> None:
    logits, logq = random_pair(28)
    rows = make_rows(logits, torch.full_like(logq, torch.nan))
    assert compute(config, logits, rows).loss.isnan().all()
