"""Objectives over the whole vocabulary through the fused head, against logits, log-softmax and autograd in float64."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.head.compare import divergences
from learner.head.fused_loss import FullTeacher, fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Gradient, Importance, ReturnsConfig, Shaping, Support
from learner.objectives.returns import future_advantages
from tests.learner.head.cases import PLAIN, Case, make_case
from tutelage.lm.head import Head, LogitTransform

SECTION = "the fused head (float32, against float64)"
TRANSFORMS = {"plain": PLAIN, "scaled": LogitTransform(0.25), "capped": LogitTransform(1.5, 4.0)}
Formula = Callable[[Tensor, Tensor], Tensor]  # log-probs of student and teacher [R, V] -> loss [R]


def _mixture(share: float, first: Tensor, second: Tensor) -> Tensor:
    return (share * first.exp() + (1 - share) * second.exp()).log()


def _jsd(beta: float) -> Formula:
    def formula(logp: Tensor, logq: Tensor) -> Tensor:
        logm = _mixture(beta, logq, logp)
        return (beta * logq.exp() * (logq - logm) + (1 - beta) * logp.exp() * (logp - logm)).sum(-1)

    return formula


def _clipped(logp: Tensor, logq: Tensor) -> Tensor:
    return -((logp.exp() * (logq - logp).clamp(-1, 2)).detach() * logp).sum(-1)


def _reverse(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


def _forward(logp: Tensor, logq: Tensor) -> Tensor:
    return (logq.exp() * (logq - logp)).sum(-1)


def _full(**options: object) -> ObjectiveConfig:
    return ObjectiveConfig(support=Support.full, **options)  # type: ignore[arg-type]


OBJECTIVES: dict[str, tuple[ObjectiveConfig, Formula]] = {
    "reverse KL": (_full(), _reverse),
    "forward KL": (_full(divergence="forward_kl"), _forward),
    "JSD": (_full(divergence="jsd", beta=0.3), _jsd(0.3)),
    "JSD 0": (_full(divergence="jsd", beta=0.0), _forward),
    "JSD 1": (_full(divergence="jsd", beta=1.0), _reverse),
    "skewed reverse KL": (
        _full(divergence="skewed_reverse_kl", alpha=0.2),
        lambda logp, logq: (logp.exp() * (logp - _mixture(0.2, logp, logq))).sum(-1),
    ),
    "skewed forward KL": (
        _full(divergence="skewed_forward_kl", alpha=0.2),
        lambda logp, logq: (logq.exp() * (logq - _mixture(0.2, logq, logp))).sum(-1),
    ),
    "clipped policy gradient": (
        _full(gradient=Gradient.policy_gradient, shaping=Shaping.clip, shaping_low=-1.0, shaping_high=2.0),
        _clipped,
    ),
}


def plain(case: Case, formula: Formula, temperature: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.double().requires_grad_() for x in case.leaves]
    loss = formula(*case.log_softmaxes(leaves, temperature)).sum()
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]  # type: ignore[misc]


def fused(
    case: Case, config: ObjectiveConfig, chunk: int = 8, compared_k: int = 0
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    leaves = [x.detach().clone().float().requires_grad_() for x in case.leaves]
    bias = leaves[2] if case.bias is not None else None
    loss, per_token = fused_head_loss(
        leaves[0], leaves[1], bias, case.rows, build_objective(config), chunk, case.transform, case.teacher, compared_k
    )
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves], per_token  # type: ignore[misc]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5, rounding: float = 0.0) -> None:
    """Relative, norm-wise, beyond `rounding` an element."""
    error, norm = (actual.double() - expected.double()).norm(), expected.double().norm()
    assert error <= tolerance * norm + rounding * expected.numel() ** 0.5, f"{error} against {norm}"


def assert_agree(case: Case, name: str, chunk: int = 8, rounding: float = 0.0) -> None:
    config, formula = OBJECTIVES[name]
    loss, grads, _ = fused(case, config, chunk)
    expected, expected_grads = plain(case, formula)
    assert_near(loss, expected, rounding=rounding)
    for grad, want in zip(grads, expected_grads, strict=True):
        assert_near(grad, want, rounding=rounding)


@pytest.mark.verifies(SECTION, "chunked equals unchunked to 1e-5, norm-wise, whole vocabulary, float32 and bf16 states")
@pytest.mark.parametrize("chunk", [1, 8, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunked_equals_unchunked(name: str, dtype: torch.dtype, chunk: int) -> None:
    assert_agree(make_case(dtype=dtype), name, chunk)


@pytest.mark.verifies(SECTION, "scaled and soft-capped logits; vocabularies padded to different sizes")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize(("vocabulary", "teacher_vocabulary"), [(97, 97), (97, 113), (113, 97)])
@pytest.mark.parametrize("name", ["reverse KL", "JSD"])
def test_logit_transforms_and_padded_vocabularies(
    name: str, vocabulary: int, teacher_vocabulary: int, transform: LogitTransform
) -> None:
    case = make_case(vocabulary=vocabulary, teacher_vocabulary=teacher_vocabulary, transform=transform)
    assert_agree(case, name)
    weight_grad = fused(case, OBJECTIVES[name][0])[1][1]
    assert not weight_grad[teacher_vocabulary:].any()


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(1, 20),
    vocabulary=st.integers(2, 300),
    teacher_vocabulary=st.integers(2, 300),
    bias=st.booleans(),
    name=st.sampled_from(sorted(OBJECTIVES)),
    seed=st.integers(0, 99),
)
def test_any_shape(tokens: int, vocabulary: int, teacher_vocabulary: int, bias: bool, name: str, seed: int) -> None:
    # One or two ids and tokens may leave nothing but rounding of what cancels.
    assert_agree(make_case(seed, tokens, vocabulary, teacher_vocabulary, bias), name, rounding=1e-6)


@pytest.mark.verifies(SECTION, "the teacher temperature is that of both softmaxes")
@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("name", ["reverse KL", "forward KL"])
def test_the_teacher_temperature_is_that_of_both_softmaxes(name: str, temperature: float) -> None:
    case = make_case(transform=TRANSFORMS["capped"])
    config, formula = OBJECTIVES[name]
    loss, grads, per_token = fused(case, replace(config, teacher_temperature=temperature))
    expected, expected_grads = plain(case, formula, temperature)
    assert_near(loss, expected)
    for grad, want in zip(grads, expected_grads, strict=True):
        assert_near(grad, want)
    logp, _ = case.log_softmaxes([x.double() for x in case.leaves])
    assert_near(per_token["learner_logprob"], logp.gather(1, case.rows.target_ids[:, None])[:, 0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_equal_to_its_teacher_stays(name: str) -> None:
    case = make_case(transform=TRANSFORMS["capped"])
    head = Head.of(case.weight, case.bias, case.transform)
    case = replace(case, teacher=FullTeacher(case.hidden, head))
    loss, grads, per_token = fused(case, OBJECTIVES[name][0], compared_k=16)
    assert loss.abs() < 1e-4 and all(grad.norm() < 1e-4 for grad in grads)
    assert (per_token["reverse_kl"].abs() < 1e-5).all() and (per_token["overlap_ratio"] == 1).all()


@pytest.mark.verifies(SECTION, "KL both ways, entropies and overlap of the whole distributions in the same sweep")
def test_diagnostics_come_with_the_same_sweep() -> None:
    case = make_case(teacher_vocabulary=113)
    per_token = fused(case, OBJECTIVES["JSD"][0], compared_k=16)[2]
    logp, logq = case.log_softmaxes([x.double() for x in case.leaves])
    tops = [set(row.tolist()) for x in (logp, logq) for row in x.topk(16).indices]
    rows = len(logp)
    expected = {
        "reverse_kl": _reverse(logp, logq),
        "forward_kl": _forward(logp, logq),
        "teacher_entropy": -(logq.exp() * logq).sum(-1),
        "student_entropy": -(logp.exp() * logp).sum(-1),
        "overlap_ratio": torch.tensor([len(tops[i] & tops[rows + i]) / 16 for i in range(rows)]),
        "loss": OBJECTIVES["JSD"][1](logp, logq),
    }
    for name, value in expected.items():
        torch.testing.assert_close(per_token[name].double(), value.double(), rtol=1e-4, atol=1e-5)


def test_evaluation_has_the_values_of_training() -> None:
    case = make_case(vocabulary=113, transform=TRANSFORMS["scaled"])
    per_token = fused(case, OBJECTIVES["reverse KL"][0], compared_k=16)[2]
    student = Head.of(case.weight, case.bias, case.transform)
    values = divergences(student, case.hidden, case.teacher.head, case.teacher.hidden, chunk_tokens=4, k=16)
    assert {"reverse_kl", "teacher_entropy", "overlap_ratio"} <= values.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, per_token[name], rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.verifies(SECTION, "ids that one side excludes (-inf) leave value, gradient and diagnostics finite")
def test_ids_that_one_side_excludes_stay_finite() -> None:
    for side in ("student", "teacher"):
        for name, (config, _) in OBJECTIVES.items():
            case = make_case()
            assert case.bias is not None and case.teacher.head.bias is not None
            bias = case.bias if side == "student" else case.teacher.head.bias
            bias[10] = -torch.inf
            loss, grads, per_token = fused(case, config, compared_k=16)
            assert loss.isfinite() and all(grad.isfinite().all() for grad in grads), name
            undefined = per_token["overlap_undefined_share"].bool()  # not every position shares two ids
            assert torch.equal(per_token.pop("overlap_token_advantage").isfinite(), ~undefined)
            assert all(value.isfinite().all() for value in per_token.values()), name


def test_no_rows_give_a_connected_zero_and_all_metric_names() -> None:
    case = make_case(tokens=3)
    config = OBJECTIVES["reverse KL"][0]
    empty = replace(
        case,
        hidden=case.hidden[:0],
        rows=case.rows.slice(0, 0),
        teacher=FullTeacher(case.teacher.hidden[:0], case.teacher.head),
    )
    loss, grads, per_token = fused(empty, config, compared_k=16)
    assert loss == 0 and not any(grad.any() for grad in grads)
    assert per_token.keys() == fused(case, config, compared_k=16)[2].keys()


def test_a_missing_teacher_is_named() -> None:
    case = make_case()
    with pytest.raises(ValueError, match=r"objective\.support=full needs the teacher's hidden states"):
        fused_head_loss(case.hidden, case.weight, None, case.rows, build_objective(_full()), 8)


def sampled(**options: object) -> ObjectiveConfig:
    return ObjectiveConfig(
        support=Support.sampled, gradient=Gradient.policy_gradient, importance=Importance.none, **options
    )  # type: ignore[arg-type]


@pytest.mark.verifies(SECTION, "the control variate is the exact KL of the position")
def test_the_control_variate_is_the_exact_reverse_kl_of_the_position() -> None:
    case = make_case()

    def formula(logp: Tensor, logq: Tensor) -> Tensor:
        target = case.rows.target_ids[:, None]
        logp_y = logp.gather(1, target)[:, 0]
        advantage = case.rows.teacher_logprobs - logp_y + _reverse(logp, logq)
        return -advantage.detach() * logp_y

    loss, grads, _ = fused(case, sampled(control_variate=True))
    expected, expected_grads = plain(case, formula)
    assert_near(loss, expected)
    for grad, want in zip(grads, expected_grads, strict=True):
        assert_near(grad, want)


@pytest.mark.verifies(SECTION, "MiniLLM: returns of the tokens behind, own step exact or sampled, sum or mean")
@pytest.mark.parametrize("length_normalised", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_minillm_returns(exact: bool, length_normalised: bool) -> None:
    """Each token answers for those behind it in its trajectory, and for itself exactly or as sampled."""
    case = make_case(tokens=13)
    returns = ReturnsConfig(discount=0.9, length_normalised=length_normalised, exact_first_step=exact)

    def formula(logp: Tensor, logq: Tensor) -> Tensor:
        logp_y = logp.gather(1, case.rows.target_ids[:, None])[:, 0]
        gaps = (case.rows.teacher_logprobs - logp_y).detach()
        future = torch.zeros_like(gaps)
        for row in range(13):
            behind = range(row + 1, min(13, (row // 5 + 1) * 5))
            total = sum(0.9 ** (other - row) * gaps[other] for other in behind)
            future[row] = total / len(behind) if length_normalised and len(behind) else total
        own = _reverse(logp, logq) if exact else -gaps * logp_y
        return own - future * logp_y

    config = _full(returns=returns) if exact else sampled(returns=returns)
    loss, grads, _ = fused(case, config)
    expected, expected_grads = plain(case, formula)
    assert_near(loss, expected)
    for grad, want in zip(grads, expected_grads, strict=True):
        assert_near(grad, want)


def test_returns_stop_at_the_end_of_a_trajectory_and_count_masked_tokens_as_distance() -> None:
    advantages = torch.tensor([1.0, 2.0, 4.0, 8.0])
    futures = future_advantages(advantages, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 4, 0]), 0.5, False)
    assert futures.tolist() == [0.5 * (2.0 + 0.5**3 * 4.0), 0.5**3 * 4.0, 0.0, 0.0]
    means = future_advantages(advantages, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 4, 0]), 1.0, True)
    assert means.tolist() == [3.0, 4.0, 0.0, 0.0]
    assert future_advantages(advantages[:0], torch.zeros(0), torch.zeros(0), 1.0, False).shape == (0,)


def test_logits_far_apart_keep_their_precision() -> None:
    """A teacher that is almost certain: the loss is a sum of a few large terms."""
    case = make_case()
    case = replace(case, teacher=FullTeacher(20 * case.teacher.hidden, case.teacher.head))
    loss, _, _ = fused(case, OBJECTIVES["forward KL"][0])
    expected, _ = plain(case, _forward)
    assert math.isclose(float(loss), float(expected), rel_tol=1e-5)
