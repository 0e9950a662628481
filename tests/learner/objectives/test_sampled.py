"""Terms of the sampled token: formulas, expectations by enumeration and by sampling, ratios and advantages."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import (
    K1,
    Gradient,
    Importance,
    ReferenceConfig,
    ReturnsConfig,
    Shaping,
    Support,
    TaskRewardConfig,
    TaskRewardMix,
    TermConfig,
    TokenMaskConfig,
)
from learner.objectives.describe import describe
from learner.objectives.estimators import ESTIMATORS, Estimator, LogRatio
from learner.objectives.rules.case import RunFacts
from learner.objectives.rules.refusals import refusals
from learner.objectives.terms import shaping_of
from learner.records import Rows
from tests.learner.objectives.compositions import DIVERGENCES
from tests.learner.objectives.formulas import SHAPES, losses
from tests.learner.positions import at_every_target, backward, close, compute, make_rows, random_pair, with_sampling

SAMPLED = ObjectiveConfig(support=Support.sampled, gradient=Gradient.policy_gradient)
FULL = ObjectiveConfig(support=Support.full)
K2 = replace(SAMPLED, gradient=Gradient.backprop, estimator="k2")
K3 = replace(K2, estimator="k3", divergence="forward_kl")
LIKELIHOOD = replace(K3, estimator="likelihood")
DRAWS = 10_000


def exact_gradient(config: ObjectiveConfig, logits_1V: Tensor, logq_1V: Tensor) -> Tensor:
    """[V], of the divergence over the whole vocabulary."""
    leaf = logits_1V.clone().requires_grad_()
    return backward(losses(config, leaf.log_softmax(-1), logq_1V), leaf)[0]


def gradients_of_every_token(config: ObjectiveConfig, logits_1V: Tensor, logq_1V: Tensor) -> Tensor:
    """[V, V]: row v is the gradient if v is sampled."""
    logits, logq, rows = at_every_target(logits_1V, logq_1V)
    return compute(config, logits, rows, logq if config.control_variate else None).grad_logits


def expected_gradient(config: ObjectiveConfig, logits_1V: Tensor, logq_1V: Tensor) -> Tensor:
    return (logits_1V.softmax(-1).T * gradients_of_every_token(config, logits_1V, logq_1V)).sum(0)


def surrogate(logits: Tensor, rows: Rows, advantage: Tensor, weight: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """-sg(w A) log p of the targets, and its gradient."""
    leaf = logits.clone().requires_grad_()
    loss = -(weight * advantage) * leaf.log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]
    return loss.detach(), backward(loss, leaf)


def log_ratio(logits: Tensor, rows: Rows) -> Tensor:
    """log q - log p of the targets."""
    return rows.teacher_logprobs - logits.log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]


# Expectations


@pytest.mark.verifies("expectations", "sampled policy gradient: the mean over all tokens is the divergence's gradient")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_policy_gradient_is_unbiased(divergence: str) -> None:
    logits, logq = random_pair(10, positions=1)
    config = replace(SAMPLED, **DIVERGENCES[divergence])
    exact = exact_gradient(replace(FULL, **DIVERGENCES[divergence]), logits, logq)
    close(expected_gradient(config, logits, logq), exact)


@pytest.mark.verifies("expectations", "k2 has the mean gradient of the reverse KL, k3 that of the forward KL")
@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name not in (K1, LIKELIHOOD.estimator)])
def test_estimators_have_their_divergences_mean(estimator: str) -> None:
    divergence = ESTIMATORS[estimator].divergence
    assert divergence == {"k2": "reverse_kl", "k3": "forward_kl"}.get(estimator, divergence)
    config = replace(K2, estimator=estimator, divergence=divergence)
    logits, logq = random_pair(11, positions=1)
    close(expected_gradient(config, logits, logq), exact_gradient(replace(FULL, divergence=divergence), logits, logq))


@pytest.mark.verifies("expectations", "k1 back-propagated has a mean gradient of zero, and is refused")
def test_k1_back_propagated_is_refused_because_the_teacher_vanishes() -> None:
    logits, logq = random_pair(12, positions=1)
    leaf = logits.clone().requires_grad_()
    loss, _ = LogRatio(K2).terms(leaf.log_softmax(-1), logq)
    mean = (logits.softmax(-1) * loss).sum()  # log q does not depend on the student
    (grad,) = torch.autograd.grad(mean, leaf)
    close(grad, torch.zeros_like(grad))
    with pytest.raises(ValueError, match=r"estimator=k1.*the teacher vanishes"):
        build_objective(replace(K2, estimator="k1"))


class CubedLogRatio(Estimator):
    """One of a user's own; what it is good for is theirs to know."""

    divergence = "reverse_kl"
    loss, g = "1/3 log³(p/q)", "log²(p/q)"

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        return (logp - logq) ** 3 / 3, (logp - logq) ** 2


def test_an_estimator_of_a_users_own_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ESTIMATORS, "_items", dict(ESTIMATORS._items))
    ESTIMATORS.add("cubed", CubedLogRatio)
    config = replace(K2, estimator="cubed")
    assert refusals(config, RunFacts()) == []
    (refusal,) = refusals(replace(config, divergence="forward_kl"), RunFacts())
    assert str(refusal).startswith("objective.estimator=cubed: its expected gradient is that of reverse_kl")
    assert describe(config).formula[0] == "l(t) = [(1/3 log³(p/q)) at y, g(y) = (log²(p/q))]"
    logits, logq = random_pair(13)
    rows = make_rows(logits, logq)
    leaf = logits.clone().requires_grad_()
    expected = (leaf.log_softmax(-1) - logq).gather(1, rows.target_ids[:, None])[:, 0] ** 3 / 3
    result = compute(config, logits, rows)
    close(result.loss, expected.detach())
    close(result.grad_logits, backward(expected, leaf))


def variance(config: ObjectiveConfig, logits_1V: Tensor, logq_1V: Tensor) -> Tensor:
    """Trace of the covariance of the gradient."""
    grads, p = gradients_of_every_token(config, logits_1V, logq_1V), logits_1V.softmax(-1)[0]
    mean = (p[:, None] * grads).sum(0)
    return (p[:, None] * (grads - mean).square()).sum()


@pytest.mark.verifies("expectations", "control variate: the same mean; less variance on one instance, more on another")
def test_the_control_variate_keeps_the_mean() -> None:
    logits, logq = random_pair(13, positions=1)
    variate = replace(SAMPLED, control_variate=True)
    close(expected_gradient(variate, logits, logq), exact_gradient(FULL, logits, logq))
    certain = torch.tensor([[0.99, 0.01]], dtype=torch.float64).log()
    even = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    close(expected_gradient(variate, certain, even), exact_gradient(FULL, certain, even))
    flat = torch.zeros(1, 8, dtype=torch.float64)
    peaked = torch.tensor([[3.0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float64).log_softmax(-1)
    assert variance(variate, flat, peaked) < variance(SAMPLED, flat, peaked)
    assert variance(variate, certain, even) > variance(SAMPLED, certain, even)


@pytest.mark.verifies(
    "expectations", f"Monte Carlo over {DRAWS} draws: within five standard errors of the exact gradient"
)
@pytest.mark.parametrize("name", ["policy gradient", "control variate", "k2", "k3"])
def test_monte_carlo(name: str) -> None:
    torch.manual_seed(0)
    config = {
        "policy gradient": SAMPLED,
        "control variate": replace(SAMPLED, control_variate=True),
        "k2": K2,
        "k3": K3,
    }[name]
    logits, logq = random_pair(14, positions=1)
    logits = logits / 4  # flat enough that every id is drawn, or its standard error would be unknown
    many, manyq = logits.expand(DRAWS, -1), logq.expand(DRAWS, -1)
    grads = compute(config, many, make_rows(many, manyq), manyq if config.control_variate else None).grad_logits
    exact = exact_gradient(replace(FULL, divergence=config.divergence), logits, logq)
    assert ((grads.mean(0) - exact).abs() <= 5 * grads.std(0) / DRAWS**0.5).all()


@pytest.mark.verifies("expectations", "the importance ratio corrects a sampling temperature")
@pytest.mark.parametrize("config", [SAMPLED, K2, K3], ids=["policy gradient", "k2", "k3"])
def test_importance_ratio_corrects_a_sampling_temperature(config: ObjectiveConfig) -> None:
    logits, logq = random_pair(15, positions=1)
    tempered = (logits / 1.3).log_softmax(-1)[0]
    repeated, _, rows = at_every_target(logits, logq)
    weighed = replace(config, importance=Importance.truncated, ratio_cap=1e9)
    grads = compute(weighed, repeated, replace(rows, sampling_logprobs=tempered)).grad_logits
    exact = exact_gradient(replace(FULL, divergence=config.divergence), logits, logq)
    close((tempered.exp()[:, None] * grads).sum(0), exact)


# Formulas


@pytest.mark.verifies("sampled token", "loss and gradient are the formula's, with every shape of the advantage")
@pytest.mark.parametrize("shaping", list(Shaping))
def test_policy_gradient_formula(shaping: Shaping) -> None:
    logits, logq = random_pair(16)
    rows = make_rows(logits, logq)
    config = replace(SAMPLED, shaping=shaping, shaping_low=-0.3, shaping_high=0.4)
    loss, grad = surrogate(logits, rows, SHAPES[shaping](log_ratio(logits, rows), -0.3, 0.4))
    result = compute(config, logits, rows)
    close(result.loss, loss)
    close(result.grad_logits, grad)


@pytest.mark.verifies("shaping", "no shape jumps: a small change of the advantage changes it by no more")
@given(
    shaping=st.sampled_from(Shaping),
    low=st.floats(-10, -0.1),
    high=st.floats(0.1, 10),
    advantages=st.lists(st.floats(-20, 20), min_size=2, max_size=2),
    step=st.floats(0, 1e-3),
)
def test_no_shape_jumps(shaping: Shaping, low: float, high: float, advantages: list[float], step: float) -> None:
    shape = shaping_of(replace(SAMPLED, shaping=shaping, shaping_low=low, shaping_high=high))
    at = torch.tensor([*advantages, low, high], dtype=torch.float64)
    for one, other in ((at, at + step), (at, at - step), (at[0], at[1])):
        assert bool(((shape(one) - shape(other)).abs() <= (one - other).abs() + 1e-12).all())


@pytest.mark.verifies("sampled token", "k2 and k3 are autograd of their formulas")
def test_estimator_formulas() -> None:
    logits, logq = random_pair(17)
    rows = make_rows(logits, logq)
    for config in (K2, K3):
        leaf = logits.clone().requires_grad_()
        gap = leaf.log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0] - rows.teacher_logprobs
        expected = gap.square() / 2 if config is K2 else (-gap).exp() - 1 + gap
        result = compute(config, logits, rows)
        close(result.loss, expected.detach())
        close(result.grad_logits, backward(expected, leaf))


@pytest.mark.verifies("sampled token", "likelihood is autograd of cross-entropy, and needs no teacher's scores")
def test_likelihood_is_cross_entropy() -> None:
    logits, logq = random_pair(28)
    rows = make_rows(logits, logq)
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, rows.target_ids, reduction="none")
    unmarked = torch.full_like(rows.teacher_logprobs, torch.nan)
    result = compute(LIKELIHOOD, logits, replace(rows, teacher_logprobs=unmarked, sampling_logprobs=unmarked))
    close(result.loss, expected.detach())
    close(result.grad_logits, backward(expected, leaf))
    assert not build_objective(LIKELIHOOD).requirements.teacher


@pytest.mark.verifies("expectations", "likelihood of the teacher's own tokens has the mean gradient of the forward KL")
def test_the_likelihood_of_the_teachers_tokens_is_its_forward_kl() -> None:
    logits, logq = random_pair(29, positions=1)
    grads = gradients_of_every_token(LIKELIHOOD, logits, logq)
    close((logq.exp().T * grads).sum(0), exact_gradient(replace(FULL, divergence="forward_kl"), logits, logq))


def test_a_mask_that_the_teacher_chooses_needs_the_teacher() -> None:
    masked = replace(LIKELIHOOD, tokens=TokenMaskConfig(teacher_entropy_above=1.0))
    assert build_objective(masked).requirements.teacher
    assert build_objective(replace(LIKELIHOOD, further_terms={"more": TermConfig()})).requirements.teacher


@pytest.mark.verifies("importance", "truncated weights are min(ratio, cap), detached, and say how many were cut")
@pytest.mark.parametrize("shift", [0.0, -1.0, 3.0])
def test_truncated_importance(shift: float) -> None:
    logits, logq = random_pair(18)
    rows = with_sampling(make_rows(logits, logq), shift)
    ratio = torch.tensor(shift, dtype=torch.float64).exp()
    loss, grad = surrogate(logits, rows, log_ratio(logits, rows), ratio.clamp(max=2.0))
    result = compute(replace(SAMPLED, importance=Importance.truncated), logits, rows)
    close(result.loss, loss)
    close(result.grad_logits, grad)
    close(result.metrics["importance_ratio"], ratio.expand(5))
    assert (result.metrics["importance_ratio_clipped"] == float(shift == 3.0)).all()


@pytest.mark.verifies("importance", "PPO's clip and dual clip are autograd of the clipped surrogate")
@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("shift", [-1.0, -0.05, 0.0, 0.1, 0.5, 2.0])
def test_ppo_clip(shift: float, dual_clip: float | None) -> None:
    logits, logq = random_pair(19, positions=40)
    rows = with_sampling(make_rows(logits, logq), shift)
    advantage = log_ratio(logits, rows)
    assert (advantage > 0).any() and (advantage < 0).any()
    leaf = logits.clone().requires_grad_()
    logp = leaf.log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]
    ratio = (logp - rows.sampling_logprobs).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.2) * advantage)
    if dual_clip is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)
    config = replace(SAMPLED, importance=Importance.ppo_clip, clip_low=0.1, clip_high=0.2, dual_clip=dual_clip)
    result = compute(config, logits, rows)
    close(result.loss, -gain.detach())
    if shift != 0.0:  # at a ratio of exactly one autograd halves the gradient of the tied minimum
        close(result.grad_logits, backward(-gain, leaf))
    else:
        close(result.grad_logits, surrogate(logits, rows, advantage)[1])


PPO = replace(SAMPLED, importance=Importance.ppo_clip, clip_low=0.2, clip_high=0.28, dual_clip=3.0)


@pytest.mark.verifies(
    "expectations", "PPO's clip: on policy it clips nothing at any temperature, and the mean is the exact gradient"
)
@pytest.mark.parametrize("temperature", [0.6, 0.8, 1.0, 1.2, 1.5])
def test_a_temperature_is_no_staleness(temperature: float) -> None:
    logits, logq = random_pair(15, positions=1, vocabulary=40)
    tempered = (logits / temperature).log_softmax(-1)[0]
    repeated, _, rows = at_every_target(logits, logq)
    temperatures = torch.full_like(tempered, temperature)
    result = compute(PPO, repeated, replace(rows, sampling_logprobs=tempered, temperatures=temperatures))
    close((tempered.exp()[:, None] * result.grad_logits).sum(0), exact_gradient(FULL, logits, logq))
    assert not result.metrics["importance_ratio_clipped"].any()
    close(result.metrics["importance_ratio"], torch.ones_like(tempered))
    close(result.metrics["temperature_weight"], (logits.log_softmax(-1)[0] - tempered).exp())


@pytest.mark.verifies("importance", "PPO's clip at a sampling temperature is autograd of the weighted surrogate")
@pytest.mark.parametrize("temperature", [0.6, 1.5])
@pytest.mark.parametrize("shift", [-1.0, -0.1, 0.1, 2.0])
def test_ppo_clips_the_ratio_of_both_policies_at_the_sampling_temperature(shift: float, temperature: float) -> None:
    logits, logq = random_pair(19, positions=40)
    rows = make_rows(logits, logq)
    tempered = (logits / temperature).log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]
    temperatures = torch.full_like(tempered, temperature)
    rows = replace(rows, sampling_logprobs=tempered - shift, temperatures=temperatures)
    advantage = log_ratio(logits, rows)
    leaf = logits.clone().requires_grad_()
    logp = leaf.log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]
    ratio = (tempered + logp - logp.detach() - rows.sampling_logprobs).exp()  # e^shift, moved by log p
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
    gain = torch.where(advantage < 0, torch.maximum(gain, 3.0 * advantage), gain)
    loss = -(logp.detach() - tempered).exp() * gain
    result = compute(PPO, logits, rows)
    close(result.loss, loss.detach())
    close(result.grad_logits, backward(loss, leaf))


@pytest.mark.verifies(
    "advantages", "reward extrapolation: lambda (log q - log ref) - (log p - log ref); 1 is the plain form"
)
@pytest.mark.parametrize("extrapolation", [1.0, 1.25])
def test_reward_extrapolation(extrapolation: float) -> None:
    logits, logq = random_pair(20)
    plain = make_rows(logits, logq)
    rows = replace(plain, reference_logprobs=plain.teacher_logprobs - torch.rand(5, dtype=torch.float64))
    config = replace(SAMPLED, reference=ReferenceConfig("student", extrapolation))
    gap = rows.teacher_logprobs - rows.reference_logprobs
    advantage = log_ratio(logits, rows) + (extrapolation - 1) * gap
    close(compute(config, logits, rows).grad_logits, surrogate(logits, rows, advantage)[1])
    assert build_objective(config).requirements.reference_logprobs


@pytest.mark.verifies("advantages", "mixtures with a task reward: convex and additive")
@pytest.mark.parametrize("mix", [TaskRewardMix.convex, TaskRewardMix.additive])
def test_task_reward(mix: TaskRewardMix) -> None:
    logits, logq = random_pair(21)
    task = torch.tensor([1.0, 1.0, -0.5, -0.5, 0.0], dtype=torch.float64)
    rows = replace(make_rows(logits, logq), task_advantages=task)
    config = replace(SAMPLED, task_reward=TaskRewardConfig(mix, 0.3))
    advantage = 0.3 * log_ratio(logits, rows) + (0.7 if mix is TaskRewardMix.convex else 1.0) * task
    close(compute(config, logits, rows).grad_logits, surrogate(logits, rows, advantage)[1])
    assert build_objective(config).requirements.task_advantages


@pytest.mark.verifies("advantages", "returns: the sampled token's own advantage and what follows it")
def test_sampled_returns() -> None:
    logits, logq = random_pair(22)
    future = torch.linspace(-2, 1, 5, dtype=torch.float64)
    rows = replace(make_rows(logits, logq), future_advantages=future)
    config = replace(SAMPLED, returns=ReturnsConfig(discount=1.0, exact_first_step=False))
    close(compute(config, logits, rows).grad_logits, surrogate(logits, rows, log_ratio(logits, rows) + future)[1])


@pytest.mark.verifies(
    "advantages", "returns with the exact first step: the wide term, plus the sampled one for what follows"
)
@pytest.mark.parametrize("support", [Support.full, Support.student_topk])
def test_returns_with_the_exact_first_step(support: Support) -> None:
    logits, logq = random_pair(23)
    future = torch.linspace(-2, 1, 5, dtype=torch.float64)
    rows = with_sampling(replace(make_rows(logits, logq), future_advantages=future), 0.4)
    config = ObjectiveConfig(support=support, k=4, importance=Importance.truncated, returns=ReturnsConfig(discount=0.9))
    leaf = logits.clone().requires_grad_()
    wide = losses(config, leaf.log_softmax(-1), logq)
    _, sampled = surrogate(logits, rows, future, torch.tensor(0.4, dtype=torch.float64).exp())
    result = compute(config, logits, rows, logq if support is Support.full else None)
    close(result.grad_logits, backward(wide, leaf) + sampled)
    needs = build_objective(config).requirements
    assert needs.future_advantages and needs.discount == 0.9


@pytest.mark.verifies("advantages", "where both models agree, every sampled advantage is zero")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_advantage_where_both_agree(divergence: str) -> None:
    logits, _ = random_pair(24)
    logq = logits.log_softmax(-1)
    result = compute(replace(SAMPLED, **DIVERGENCES[divergence]), logits, make_rows(logits, logq))
    close(result.metrics["advantage"], torch.zeros(5, dtype=torch.float64))
    close(result.grad_logits, torch.zeros_like(logits))


def test_the_control_variate_says_what_it_lacks() -> None:
    logits, logq = random_pair(27)
    config = replace(SAMPLED, control_variate=True)
    assert build_objective(config).requirements.hidden_states
    with pytest.raises(ValueError, match="control_variate=true: needs the teacher's hidden states"):
        compute(config, logits, make_rows(logits, logq))
