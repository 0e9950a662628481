"""The fused head against the plain [tokens, vocabulary] path."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.head.fused_loss import fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Gradient, Importance, Support
from learner.records import Rows
from tests.learner.objectives.compositions import COMPOSITIONS

V, D, K = 97, 24, 16


def make_case(
    seed: int, tokens: int, bias: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None, Rows]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden = normal(tokens, D).to(dtype).requires_grad_()
    weight = normal(V, D).mul(0.5).to(dtype).requires_grad_()
    head_bias = normal(V).to(dtype).requires_grad_() if bias else None
    rows = Rows(
        target_ids=torch.randint(0, V, (tokens,), generator=generator),
        sampling_logprobs=-normal(tokens).abs(),
        temperatures=0.5 + torch.rand(tokens, generator=generator),
        teacher_logprobs=-normal(tokens).abs(),
        support_ids=torch.stack([torch.randperm(V, generator=generator)[:K] for _ in range(tokens)]),
        teacher_support_logprobs=-normal(tokens, K).abs() - 1,
    )
    return hidden, weight, head_bias, rows


def plain(name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients through a [tokens, vocabulary] tensor and autograd, before any cast to bf16."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    logits = leaves[0] @ leaves[1].T + (leaves[2] if bias is not None else 0)
    logp = logits.log_softmax(-1)
    if name == "student_topk_reverse_kl":
        logp_RK = logp.gather(1, rows.support_ids)
        loss = (logp_RK.exp() * (logp_RK.detach() - rows.teacher_support_logprobs.double())).sum()
    else:
        logp_y = logp.gather(1, rows.target_ids[:, None])[:, 0]
        ratio = (logp_y - rows.sampling_logprobs).exp().clamp(max=2.0)
        loss = -((ratio * (rows.teacher_logprobs - logp_y)).detach() * logp_y).sum()
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def fused(
    name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, chunk: int
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Value and gradients of the fused head, taken in float32."""
    leaves = [x.detach().float().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    objective = build_objective(COMPOSITIONS[name])
    loss, per_token = fused_head_loss(
        leaves[0], leaves[1], leaves[2] if bias is not None else None, rows, objective, chunk
    )
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves], per_token


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative, norm-wise."""
    error = (actual.double() - expected.double()).norm()
    assert error <= tolerance * expected.double().norm(), f"{error} against {expected.norm()}"


@pytest.mark.verifies(
    "the fused head (float32, against float64)",
    "chunked equals unchunked to 1e-5, norm-wise, few ids, float32 and bf16 states",
)
@pytest.mark.parametrize("name", ["sampled_reverse_kl", "student_topk_reverse_kl"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_equals_unchunked(name: str, chunk: int, dtype: torch.dtype) -> None:
    case = make_case(0, tokens=65, dtype=dtype)
    expected_loss, expected_grads = plain(name, *case)
    loss, grads, _ = fused(name, *case, chunk)
    assert_near(loss, expected_loss, 1e-5)
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert_near(grad, expected, 1e-5)


def test_bf16_leaves_get_bf16_gradients() -> None:
    hidden, weight, _, rows = make_case(1, tokens=9, bias=False, dtype=torch.bfloat16)
    _, expected = plain("student_topk_reverse_kl", hidden, weight, None, rows)
    objective = build_objective(COMPOSITIONS["student_topk_reverse_kl"])
    loss, _ = fused_head_loss(hidden, weight, None, rows, objective, 4)
    (loss * 0.25).backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    assert_near(hidden.grad, 0.25 * expected[0], 1e-2)
    assert_near(weight.grad, 0.25 * expected[1], 1e-2)


def test_a_tied_head_adds_to_the_embedding_gradient() -> None:
    _, weight, _, rows = make_case(2, tokens=9, bias=False)
    ids = torch.arange(9)
    objective = build_objective(COMPOSITIONS["student_topk_reverse_kl"])
    loss, _ = fused_head_loss(weight[ids], weight, None, rows, objective, 4)
    loss.backward()
    _, (grad_hidden, grad_weight) = plain("student_topk_reverse_kl", weight[ids], weight, None, rows)
    expected = grad_weight.clone()
    expected[ids] += grad_hidden
    assert_near(weight.grad, expected, 1e-5)


def test_no_rows_give_a_connected_zero_and_all_metric_names() -> None:
    hidden, weight, bias, rows = make_case(3, tokens=3)
    objective = build_objective(COMPOSITIONS["student_topk_reverse_kl"])
    loss, per_token = fused_head_loss(hidden[:0], weight, bias, rows.slice(0, 0), objective, 4)
    loss.backward()
    assert loss == 0 and not weight.grad.any() and not hidden.grad.any()
    full = fused_head_loss(hidden, weight, bias, rows, objective, 4)[1]
    assert per_token.keys() == full.keys() and all(len(v) == 0 for v in per_token.values())


@pytest.mark.verifies(
    "the fused head (float32, against float64)", "PPO's clip at every row's own sampling temperature, 1e-5, norm-wise"
)
@pytest.mark.parametrize("chunk", [4, 1000])
def test_ppo_clip_through_the_head(chunk: int) -> None:
    hidden, weight, bias, rows = make_case(5, tokens=33)
    config = ObjectiveConfig(
        support=Support.sampled, gradient=Gradient.policy_gradient, importance=Importance.ppo_clip, clip_high=0.28
    )
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    logits, targets = leaves[0] @ leaves[1].T + leaves[2], rows.target_ids[:, None]
    logp = logits.log_softmax(-1).gather(1, targets)[:, 0]
    tempered = (logits / rows.temperatures[:, None]).log_softmax(-1).gather(1, targets)[:, 0].detach()
    rows = replace(rows, sampling_logprobs=(tempered + torch.linspace(-0.5, 0.5, 33)).float())
    advantage = (rows.teacher_logprobs - logp).detach()
    ratio = (tempered + logp - logp.detach() - rows.sampling_logprobs).exp()
    expected = -(logp.detach() - tempered).exp() * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
    expected.sum().backward()
    loss, per_token = fused_head_loss(hidden, weight, bias, rows, build_objective(config), chunk)
    loss.backward()
    assert_near(per_token["loss"], expected.detach(), 1e-5)
    assert 0 < per_token["importance_ratio_clipped"].mean() < 1
    for leaf, exact in zip((hidden, weight, bias), leaves, strict=True):
        assert_near(leaf.grad, exact.grad, 1e-5)


def test_per_token_values() -> None:
    hidden, weight, bias, rows = make_case(4, tokens=11)
    per_token = fused("student_topk_reverse_kl", hidden, weight, bias, rows, 4)[2]
    logits = (hidden @ weight.T + bias).double()
    logp = logits.log_softmax(-1)
    tempered = (logits / rows.temperatures[:, None]).log_softmax(-1)
    target = rows.target_ids[:, None]
    expected = {
        "learner_logprob": logp.gather(1, target)[:, 0],
        "rollout_logprob_gap": (rows.sampling_logprobs - tempered.gather(1, target)[:, 0]).abs(),
        "student_entropy": -(logp.exp() * logp).sum(-1),
        "sampled_reverse_kl": logp.gather(1, target)[:, 0] - rows.teacher_logprobs,
    }
    for name, value in expected.items():
        torch.testing.assert_close(per_token[name].double(), value, rtol=1e-5, atol=1e-5)


def test_without_gradients_the_value_is_the_same() -> None:
    hidden, weight, bias, rows = make_case(5, tokens=6)
    objective = build_objective(COMPOSITIONS["sampled_reverse_kl"])
    with torch.no_grad():
        value, _ = fused_head_loss(hidden, weight, bias, rows, objective, 4)
    assert not value.requires_grad
    assert value == fused_head_loss(hidden, weight, bias, rows, objective, 4)[0]


def test_excluded_ids_in_the_head_bias_stay_finite() -> None:
    hidden, weight, bias, rows = make_case(6, tokens=6)
    bias = bias.detach().clone()
    bias[10] = -torch.inf
    rows = replace(rows, target_ids=rows.target_ids.clamp(min=11), support_ids=rows.support_ids.clone())
    rows.support_ids[:, 0] = 10
    loss, grads, per_token = fused("student_topk_reverse_kl", hidden, weight, bias, rows, 4)
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads)
    assert per_token["student_entropy"].isfinite().all()


@settings(deadline=None, max_examples=25)
@given(tokens=st.integers(1, 20), chunk=st.integers(1, 25), bias=st.booleans(), seed=st.integers(0, 99))
def test_any_shape_and_chunk_agree_with_the_plain_path(tokens: int, chunk: int, bias: bool, seed: int) -> None:
    case = make_case(seed, tokens, bias)
    expected_loss, expected_grads = plain("student_topk_reverse_kl", *case)
    loss, grads, _ = fused("student_topk_reverse_kl", *case, chunk)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-5)
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert_near(grad, expected, 1e-5)
