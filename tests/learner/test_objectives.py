"""Objectives against autograd, enumeration and their fixed points, in float64.

Shape suffixes: C positions, V vocabulary, K support ids.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.objectives import Objective, Rows, StudentChunk, TokenLosses, build_objective
from learner.objectives.base import LOG_ZERO
from tests.learner.compositions import COMPOSITIONS

V, K = 50, 8
SAMPLED_CONFIG = COMPOSITIONS["sampled_reverse_kl"]
SAMPLED = build_objective(SAMPLED_CONFIG)


def compute(objective: Objective, logits_CV: Tensor, rows: Rows) -> TokenLosses:
    return objective(StudentChunk.from_logits(logits_CV.clone()), rows)


def make_rows(logits_CV: Tensor, logq_CV: Tensor, k: int = K, targets: Tensor | None = None) -> Rows:
    """On-policy rows: the rollout used these very logits at temperature 1."""
    logp_CV = logits_CV.log_softmax(-1)
    targets = torch.multinomial(logp_CV.exp(), 1)[:, 0] if targets is None else targets
    ids_CK = logp_CV.topk(k, dim=-1).indices
    return Rows(
        target_ids=targets,
        sampling_logprobs=logp_CV.gather(1, targets[:, None])[:, 0],
        temperatures=torch.ones(len(targets), dtype=logits_CV.dtype),
        teacher_logprobs=logq_CV.gather(1, targets[:, None])[:, 0],
        support_ids=ids_CK,
        support_teacher_logprobs=logq_CV.gather(1, ids_CK),
    )


def topk(rows: Rows) -> Objective:
    """The default objective, with the k that the rows have."""
    return build_objective(replace(COMPOSITIONS["student_topk_reverse_kl"], k=rows.support_ids.shape[1]))


def named(name: str, rows: Rows) -> Objective:
    return SAMPLED if name == "sampled_reverse_kl" else topk(rows)


def random_pair(seed: int, positions: int = 5, vocabulary: int = V) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (
        2 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return logits, teacher.log_softmax(-1)


def autograd(loss_of_logp: object, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits_CV.clone().requires_grad_()
    loss_C = loss_of_logp(logits.log_softmax(-1))  # type: ignore[operator]
    loss_C.sum().backward()
    assert logits.grad is not None
    return loss_C.detach(), logits.grad


def full_reverse_kl(logits_CV: Tensor, logq_CV: Tensor) -> tuple[Tensor, Tensor]:
    return autograd(lambda logp: (logp.exp() * (logp - logq_CV)).sum(-1), logits_CV)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_topk_is_the_autograd_of_its_formula() -> None:
    logits, logq = random_pair(0)
    rows = make_rows(logits, logq)

    def formula(logp: Tensor) -> Tensor:
        logp_CK = logp.gather(1, rows.support_ids)
        return (logp_CK.exp() * (logp_CK.detach() - rows.support_teacher_logprobs)).sum(-1)

    loss, grad = autograd(formula, logits)
    result = compute(topk(rows), logits, rows)
    close(result.loss, loss)
    close(result.grad_logits, grad)


@pytest.mark.parametrize("shift", [0.0, -1.0, 3.0])
def test_sampled_is_the_autograd_of_its_formula(shift: float) -> None:
    """`shift` moves the rollout's log-probs: 3 nats below the policy's, every ratio is cut at the cap."""
    logits, logq = random_pair(1)
    rows = make_rows(logits, logq)
    rows = replace(rows, sampling_logprobs=rows.sampling_logprobs - shift)

    def formula(logp: Tensor) -> Tensor:
        logp_y = logp.gather(1, rows.target_ids[:, None])[:, 0]
        ratio = (logp_y - rows.sampling_logprobs).exp().clamp(max=2.0)
        return -(ratio * (rows.teacher_logprobs - logp_y)).detach() * logp_y

    loss, grad = autograd(formula, logits)
    result = compute(SAMPLED, logits, rows)
    close(result.loss, loss)
    close(result.grad_logits, grad)
    assert result.metrics["importance_ratio_clipped"].mean() == (1.0 if shift == 3.0 else 0.0)
    close(result.metrics["importance_ratio"], torch.full((5,), shift, dtype=torch.float64).exp())


def test_topk_over_the_whole_vocabulary_is_the_exact_reverse_kl() -> None:
    logits, logq = random_pair(2)
    loss, grad = full_reverse_kl(logits, logq)
    rows = make_rows(logits, logq, k=V)
    result = compute(topk(rows), logits, rows)
    close(result.loss, loss)
    close(result.grad_logits, grad)
    close(result.metrics["student_tail_mass"], torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sampled_reverse_kl", "student_topk_reverse_kl"])
def test_student_equal_to_teacher_has_zero_loss_and_gradient(name: str) -> None:
    logits, _ = random_pair(3)
    rows = make_rows(logits, logits.log_softmax(-1))
    result = compute(named(name, rows), logits, rows)
    close(result.loss, torch.zeros_like(result.loss))
    close(result.grad_logits, torch.zeros_like(logits))


def test_sampled_gradient_is_unbiased_by_enumeration() -> None:
    logits, logq = random_pair(4, positions=1)
    probs = logits.softmax(-1)[0]
    every = torch.arange(V)
    repeated = logits.expand(V, V)
    rows = make_rows(repeated, logq.expand(V, V), targets=every)
    grads_VV = compute(SAMPLED, repeated, rows).grad_logits
    _, exact = full_reverse_kl(logits, logq)
    close((probs[:, None] * grads_VV).sum(0), exact[0])


def test_sampled_gradient_is_unbiased_by_monte_carlo() -> None:
    torch.manual_seed(0)
    draws = 10_000
    logits, logq = random_pair(5, positions=1)
    logits = logits / 4  # flat enough that every id is drawn, or its standard error would be unknown
    repeated = logits.expand(draws, V)
    grads = compute(SAMPLED, repeated, make_rows(repeated, logq.expand(draws, V))).grad_logits
    _, exact = full_reverse_kl(logits, logq)
    standard_error = grads.std(0) / draws**0.5
    assert ((grads.mean(0) - exact[0]).abs() <= 5 * standard_error).all()


def test_importance_ratio_corrects_a_sampling_temperature() -> None:
    logits, logq = random_pair(6, positions=1)
    tempered = (logits / 1.3).log_softmax(-1)
    every = torch.arange(V)
    rows = make_rows(logits.expand(V, V), logq.expand(V, V), targets=every)
    rows = replace(rows, sampling_logprobs=tempered[0])
    uncapped = build_objective(replace(SAMPLED_CONFIG, ratio_cap=1e9))
    grads = compute(uncapped, logits.expand(V, V), rows).grad_logits
    _, exact = full_reverse_kl(logits, logq)
    close((tempered[0].exp()[:, None] * grads).sum(0), exact[0])


def test_topk_descends_to_the_teacher_on_its_support() -> None:
    """The fixed point with S held fixed is p = q on S, in absolute mass (naive top-k ends at q / e)."""
    logits, logq = random_pair(7, positions=2, vocabulary=12)
    rows = make_rows(logits, logq, k=4)
    for _ in range(20_000):
        logits = logits - 0.5 * compute(topk(rows), logits, rows).grad_logits
    on_support = logits.softmax(-1).gather(1, rows.support_ids)
    close(on_support, rows.support_teacher_logprobs.exp(), 1e-6)


def test_tail_masses_are_what_lies_outside_the_support() -> None:
    logits, logq = random_pair(8)
    rows = make_rows(logits, logq)
    metrics = compute(topk(rows), logits, rows).metrics
    outside = torch.ones(5, V, dtype=torch.bool).scatter(1, rows.support_ids, False)
    close(metrics["student_tail_mass"], (logits.softmax(-1) * outside).sum(-1))
    close(metrics["teacher_tail_mass"], (logq.exp() * outside).sum(-1))


def test_the_order_of_support_ids_does_not_matter() -> None:
    logits, logq = random_pair(9)
    rows = make_rows(logits, logq)
    shuffled = torch.randperm(K)
    other = replace(
        rows,
        support_ids=rows.support_ids[:, shuffled],
        support_teacher_logprobs=rows.support_teacher_logprobs[:, shuffled],
    )
    first, second = compute(topk(rows), logits, rows), compute(topk(rows), logits, other)
    close(first.loss, second.loss)
    close(first.grad_logits, second.grad_logits)


@pytest.mark.parametrize("name", ["sampled_reverse_kl", "student_topk_reverse_kl"])
def test_tokens_the_student_cannot_emit_contribute_nothing(name: str) -> None:
    logits, logq = random_pair(10)
    targets = torch.full((5,), 3)
    logits[:, 3] = -torch.inf
    rows = make_rows(logits, logq, k=V, targets=targets)
    rows = replace(rows, sampling_logprobs=torch.full((5,), -1.0, dtype=torch.float64))
    result = compute(named(name, rows), logits, rows)
    assert result.grad_logits.isfinite().all() and result.loss.isfinite().all()
    close(result.grad_logits[:, 3], torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sampled_reverse_kl", "student_topk_reverse_kl"])
def test_tokens_the_teacher_excludes_push_down_with_finite_force(name: str) -> None:
    logits, logq = random_pair(11)
    rows = make_rows(logits, logq, targets=logits.argmax(-1))
    excluded = torch.full((5,), -torch.inf, dtype=torch.float64)
    support = rows.support_teacher_logprobs.clone()
    support[:, 0] = -torch.inf  # the student's most likely id, which is also the target
    rows = replace(rows, teacher_logprobs=excluded, support_teacher_logprobs=support)
    result = compute(named(name, rows), logits, rows)
    assert result.grad_logits.isfinite().all()
    assert (result.grad_logits.gather(1, rows.target_ids[:, None]) > 1).all()
    assert (result.loss.abs() < -LOG_ZERO * 10).all()


@pytest.mark.parametrize("name", ["sampled_reverse_kl", "student_topk_reverse_kl"])
def test_a_nan_of_the_teacher_is_not_hidden(name: str) -> None:
    logits, logq = random_pair(12)
    rows = make_rows(logits, torch.full_like(logq, torch.nan))
    assert compute(named(name, rows), logits, rows).loss.isnan().all()


@settings(deadline=None, max_examples=40)
@given(positions=st.integers(1, 6), vocabulary=st.integers(2, 40), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_gradients_sum_to_zero_over_the_vocabulary(positions: int, vocabulary: int, share: float, seed: int) -> None:
    """Adding a constant to all logits changes no distribution, whatever the shapes and supports."""
    logits, logq = random_pair(seed, positions, vocabulary)
    rows = make_rows(logits, logq, k=max(1, round(share * vocabulary)))
    for objective in (SAMPLED, topk(rows)):
        result = compute(objective, logits, rows)
        close(result.grad_logits.sum(-1), torch.zeros(positions, dtype=torch.float64))
        assert result.loss.shape == (positions,)


def test_requirements_follow_the_composition() -> None:
    assert SAMPLED.requirements.needs_full_softmax_sampling and SAMPLED.requirements.candidates == 0
    default = build_objective(COMPOSITIONS["student_topk_reverse_kl"]).requirements
    assert default.candidates == 16 and not default.hidden_states and not default.needs_full_softmax_sampling


def test_a_missing_support_is_named() -> None:
    logits, logq = random_pair(13)
    rows = make_rows(logits, logq)
    with pytest.raises(ValueError, match=r"needs Rows\.support_ids.*RolloutRequest\.candidates"):
        compute(topk(rows), logits, replace(rows, support_ids=None))
