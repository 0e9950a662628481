"""Supports and normalisations: what must agree, where descent ends, and that any shape has its formula."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Normalisation, Support
from learner.records import Rows
from tests.learner.objectives.compositions import DIVERGENCES, FEW
from tests.learner.objectives.formulas import losses, support_of
from tests.learner.positions import (
    V,
    backward,
    close,
    compute,
    full_reverse_kl,
    make_rows,
    random_pair,
    value_and_gradient,
)

COVERING = [support for support in FEW if support is not Support.symmetric_difference]
AGREEING = (Normalisation.raw, Normalisation.renormalised, Normalisation.tail)


def leaves_agreement_alone(config: ObjectiveConfig) -> None:
    logits, _ = random_pair(30)
    logq = logits.log_softmax(-1)
    loss, grad = value_and_gradient(config, logits, logq, make_rows(logits, logq))
    close(loss, torch.zeros_like(loss))
    close(grad, torch.zeros_like(grad))


@pytest.mark.verifies(
    "agreement", "student = teacher: value and gradient are zero; full, stop-gradient, renormalised, tail"
)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_agreement_is_left_alone(divergence: str) -> None:
    parts = DIVERGENCES[divergence]
    leaves_agreement_alone(ObjectiveConfig(support=Support.full, **parts))
    for support, normalisation in product(FEW, AGREEING):
        truncated_forward = normalisation is Normalisation.raw and divergence in ("forward KL", "JSD, beta 0")
        if not truncated_forward:
            leaves_agreement_alone(ObjectiveConfig(support=support, k=4, normalisation=normalisation, **parts))


@pytest.mark.verifies(
    "agreement", "positive controls: naive reverse KL and raw forward KL on top-k are zero with a gradient"
)
@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig(normalisation=Normalisation.naive, k=4),
        ObjectiveConfig(support=Support.teacher_topk, divergence="forward_kl", k=4),
    ],
    ids=["naive", "forward"],
)
def test_what_does_not_leave_agreement_alone(config: ObjectiveConfig) -> None:
    logits, _ = random_pair(31)
    logq = logits.log_softmax(-1)
    loss, grad = value_and_gradient(config, logits, logq, make_rows(logits, logq))
    close(loss, torch.zeros_like(loss))
    assert (grad.norm(dim=-1) > 0.001).all()


@pytest.mark.verifies("supports", "k = V equals the whole vocabulary: student, teacher, union, intersection")
@pytest.mark.parametrize("support", COVERING)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_all_ids_are_the_full_vocabulary(divergence: str, support: Support) -> None:
    logits, logq = random_pair(32)
    rows, parts = make_rows(logits, logq, k=V), DIVERGENCES[divergence]
    loss, grad = value_and_gradient(ObjectiveConfig(support=Support.full, **parts), logits, logq, rows)
    for normalisation in Normalisation:
        config = ObjectiveConfig(support=support, k=V, normalisation=normalisation, **parts)
        found_loss, found_grad = value_and_gradient(config, logits, logq, rows)
        close(found_loss, loss, 1e-9)
        close(found_grad, grad, 1e-9)


@pytest.mark.verifies("supports", "k = V: the symmetric difference is exactly zero")
@pytest.mark.parametrize("normalisation", [n for n in Normalisation if n is not Normalisation.tail])
def test_an_empty_symmetric_difference_is_zero(normalisation: Normalisation) -> None:
    logits, logq = random_pair(33)
    config = ObjectiveConfig(support=Support.symmetric_difference, k=V, normalisation=normalisation)
    loss, grad = value_and_gradient(config, logits, logq, make_rows(logits, logq, k=V))
    assert not loss.any() and not grad.any()


@pytest.mark.verifies("supports", "the tail form is at most the full divergence and grows with k")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_tail_bounds_the_divergence(divergence: str) -> None:
    logits, logq = random_pair(34, positions=40)
    rows, parts = make_rows(logits, logq, k=V), DIVERGENCES[divergence]
    full, _ = value_and_gradient(ObjectiveConfig(support=Support.full, **parts), logits, logq, rows)
    tails = [
        value_and_gradient(ObjectiveConfig(normalisation=Normalisation.tail, k=k, **parts), logits, logq, rows)[0]
        for k in range(1, V)
    ]
    assert all((small <= large + 1e-9).all() for small, large in zip(tails, [*tails[1:], full], strict=True))


@pytest.mark.verifies("supports", "the naive sum may be negative")
def test_the_naive_sum_may_be_negative() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64).log()
    logq = torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64).log()
    loss = compute(ObjectiveConfig(normalisation=Normalisation.naive, k=1), logits, make_rows(logits, logq, k=1)).loss
    close(loss, torch.tensor([0.4 * math.log(0.4 / 0.6)], dtype=torch.float64))


def descend(config: ObjectiveConfig, logits: Tensor, rows: Rows, rate: float = 4.0, steps: int = 1000) -> Tensor:
    """The student's probabilities after gradient descent with the support held fixed."""
    objective = build_objective(config)
    for _ in range(steps):
        grad = compute(objective, logits, rows).grad_logits
        if grad.abs().max() < 1e-6:
            break
        logits = logits - rate * grad
    return logits.softmax(-1)


@pytest.mark.verifies(
    "fixed points", "descent with S held fixed: naive ends at q/e on S, stop-gradient and averaged at q"
)
@pytest.mark.parametrize(
    ("normalisation", "factor"),
    [(Normalisation.naive, torch.e), (Normalisation.raw, 1.0), (Normalisation.averaged, 1.0)],
)
def test_fixed_points_in_absolute_mass(normalisation: Normalisation, factor: float) -> None:
    logits, logq = random_pair(36, positions=2)
    rows = make_rows(logits, logq)
    config = ObjectiveConfig(normalisation=normalisation, k=4)
    p = descend(config, logits, rows, rate=2.0).gather(1, rows.support_ids)
    close(p, rows.teacher_support_logprobs.exp() / factor, 1e-4)


@pytest.mark.verifies("fixed points", "renormalised ends at the same proportions on S; its mass is free")
def test_renormalised_fixed_point() -> None:
    logits, logq = random_pair(37, positions=2)
    rows = make_rows(logits, logq)
    config = ObjectiveConfig(normalisation=Normalisation.renormalised, k=4)
    close(descend(config, logits, rows).gather(1, rows.support_ids).log().log_softmax(-1),
          rows.teacher_support_logprobs.log_softmax(-1), 1e-4)  # fmt: skip
    _, grad = value_and_gradient(config, logits, logq, rows)
    outside = torch.ones_like(grad).scatter(1, rows.support_ids, 0.0)
    close(grad * outside, torch.zeros_like(grad))


@pytest.mark.verifies("fixed points", "tail ends at q on S and at the teacher's tail mass, for every divergence")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tail_fixed_point(divergence: str) -> None:
    logits, logq = random_pair(38, positions=2)
    rows = make_rows(logits, logq)
    config = ObjectiveConfig(normalisation=Normalisation.tail, k=4, **DIVERGENCES[divergence])
    p = descend(config, logits, rows).gather(1, rows.support_ids)
    close(p, rows.teacher_support_logprobs.exp(), 1e-4)


@pytest.mark.verifies(
    "fixed points", "forward KL on the teacher's top-k without a tail collapses: q-bar on S, zero elsewhere"
)
def test_truncated_forward_kl_collapses() -> None:
    logits, logq = random_pair(39, positions=2)
    rows = make_rows(logits, logq)
    config = ObjectiveConfig(support=Support.teacher_topk, divergence="forward_kl", k=4)
    p = descend(config, logits, rows, steps=400).gather(1, rows.teacher_top_ids)
    close(p, rows.teacher_top_logprobs.softmax(-1), 1e-2)


@pytest.mark.verifies(
    "fixed points", "from student = teacher with a moving top-k, naive flattens the student; stop-gradient stays"
)
def test_the_naive_form_destroys_a_perfect_student() -> None:
    logits, _ = random_pair(40, positions=4, vocabulary=50)
    logq = logits.log_softmax(-1)
    ends = {}
    for normalisation in (Normalisation.naive, Normalisation.raw):
        moving, objective = logits.clone(), build_objective(ObjectiveConfig(normalisation=normalisation, k=8))
        for _ in range(150):
            moving -= 2 * compute(objective, moving, make_rows(moving, logq, k=8)).grad_logits
        ends[normalisation] = full_reverse_kl(moving, logq)
    assert (ends[Normalisation.naive] > 0.3).all()
    close(ends[Normalisation.raw], torch.zeros(4, dtype=torch.float64))


@pytest.mark.verifies("supports", "the order of the ids does not matter, and a union counts none twice")
@pytest.mark.parametrize("support", FEW)
@pytest.mark.parametrize("normalisation", list(Normalisation))
def test_order_does_not_matter(support: Support, normalisation: Normalisation) -> None:
    logits, logq = random_pair(43)
    rows = make_rows(logits, logq)
    ours, theirs = torch.randperm(4), torch.randperm(4)
    shuffled = replace(
        rows,
        support_ids=rows.support_ids[:, ours],
        teacher_support_logprobs=rows.teacher_support_logprobs[:, ours],
        teacher_top_ids=rows.teacher_top_ids[:, theirs],
        teacher_top_logprobs=rows.teacher_top_logprobs[:, theirs],
    )
    config = ObjectiveConfig(support=support, normalisation=normalisation, k=4)
    for found, expected in zip(
        value_and_gradient(config, logits, logq, shuffled), value_and_gradient(config, logits, logq, rows), strict=True
    ):
        close(found, expected)


@pytest.mark.verifies(
    "diagnostics", "masses off the support, both KLs of the coarsened distributions, overlap of the two top-k if known"
)
@pytest.mark.parametrize("support", FEW)
def test_diagnostics(support: Support) -> None:
    logits, logq = random_pair(50)
    metrics = compute(ObjectiveConfig(support=support, k=4), logits, make_rows(logits, logq)).metrics
    logp = logits.log_softmax(-1)
    for row, (p, q) in enumerate(zip(logp.exp(), logq.exp(), strict=True)):
        ids = support_of(support, 4, p, q)
        tails = 1 - p[ids].sum(), 1 - q[ids].sum()
        coarse_p, coarse_q = (torch.cat([x[ids], tail[None]]) for x, tail in zip((p, q), tails, strict=True))
        close(metrics["student_tail_mass"][row], tails[0])
        close(metrics["teacher_tail_mass"][row], tails[1])
        close(metrics["support_reverse_kl"][row], (coarse_p * (coarse_p / coarse_q).log()).sum())
        close(metrics["support_forward_kl"][row], (coarse_q * (coarse_q / coarse_p).log()).sum())
        if support not in (Support.student_topk, Support.teacher_topk):  # these know one side's ids only
            shared = support_of(Support.intersection, 4, p, q)
            assert metrics["top_overlap_ratio"][row] == len(shared) / 4


@pytest.mark.verifies("properties", "hypothesis: any shape and support, gradients are autograd's and sum to zero")
@settings(deadline=None, max_examples=60)
@given(
    positions=st.integers(1, 5),
    vocabulary=st.integers(2, 30),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
    support=st.sampled_from(FEW),
    normalisation=st.sampled_from(list(Normalisation)),
    divergence=st.sampled_from(sorted(DIVERGENCES)),
)
def test_any_shape(
    positions: int,
    vocabulary: int,
    share: float,
    seed: int,
    support: Support,
    normalisation: Normalisation,
    divergence: str,
) -> None:
    logits, logq = random_pair(seed, positions, vocabulary)
    k = min(max(1, round(share * vocabulary)), vocabulary - 1)  # the formula's log(1 - M) needs a tail
    tail_of_everything = normalisation is Normalisation.tail and support is Support.union and 2 * k >= vocabulary
    k = max(1, (vocabulary - 1) // 2) if tail_of_everything else k
    rows = make_rows(logits, logq, k=k)
    config = ObjectiveConfig(support=support, k=k, normalisation=normalisation, **DIVERGENCES[divergence])
    leaf = logits.clone().requires_grad_()
    expected = losses(config, leaf.log_softmax(-1), logq)
    result = compute(config, logits, rows)
    close(result.grad_logits.sum(-1), torch.zeros(positions, dtype=torch.float64), 1e-9)
    if expected.isfinite().all():
        close(result.loss, expected.detach(), 1e-7)
        close(result.grad_logits, backward(expected, leaf), 1e-7)


def test_requirements_follow_the_composition() -> None:
    default = build_objective(ObjectiveConfig()).requirements
    assert default.candidates == 16 and default.teacher_top_k == 0 and not default.hidden_states
    wide = ObjectiveConfig(
        support=Support.union,
        k=8,
        further_terms={
            "teacher": ObjectiveConfig(support=Support.teacher_topk, k=64),
            "all": ObjectiveConfig(support=Support.full),
        },
    )
    needs = build_objective(wide).requirements
    assert needs.candidates == 8 and needs.teacher_top_k == 64 and needs.hidden_states


def test_two_tails_are_refused() -> None:
    tail = ObjectiveConfig(normalisation=Normalisation.tail)
    with pytest.raises(ValueError, match="only one term may have normalisation=tail"):
        build_objective(replace(tail, further_terms={"other": tail}))


def test_what_is_missing_is_named() -> None:
    logits, logq = random_pair(51)
    rows = make_rows(logits, logq)
    with pytest.raises(ValueError, match=r"needs Rows\.support_ids.*RolloutRequest\.candidates"):
        compute(ObjectiveConfig(k=4), logits, replace(rows, support_ids=None))
    with pytest.raises(ValueError, match=r"objective\.k=9: the batch has only 4 ids"):
        compute(ObjectiveConfig(k=9), logits, rows)
    with pytest.raises(ValueError, match="support=full: needs the teacher's hidden states"):
        compute(ObjectiveConfig(support=Support.full), logits, rows)
