"""What student and teacher share of their top k, against sets and float64."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.head.compare import Top, overlap, top_and_entropy
from learner.head.fused_loss import FullTeacher, fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Gradient, Importance, Support
from tests.learner.head.cases import Case, make_case
from tests.learner.positions import random_pair

K = 16
ADVANTAGE, UNDEFINED = "overlap_token_advantage", "overlap_undefined_share"


def reference(logp_CV: Tensor, logq_CV: Tensor, k: int) -> dict[str, Tensor]:
    """One position after another, in the words of the definitions."""
    rows = [_reference(logp, logq, k) for logp, logq in zip(logp_CV.tolist(), logq_CV.tolist(), strict=True)]
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def _reference(logp: list[float], logq: list[float], k: int) -> dict[str, float]:
    top_p, top_q = (set(sorted(range(len(x)), key=lambda i: -x[i])[:k]) for x in (logp, logq))
    p, q = ([math.exp(value) for value in x] for x in (logp, logq))
    shared = top_p & top_q
    mass_p, mass_q = sum(p[v] for v in shared), sum(q[v] for v in shared)
    terms = [p[v] / mass_p * (math.log(q[v] / mass_q) - math.log(p[v] / mass_p)) for v in shared]
    entropies = [-sum(math.exp(value) * value for value in x) for x in (logp, logq)]
    return {
        "overlap_ratio": len(shared) / k,
        "overlap_mass_student": mass_p,
        "overlap_mass_teacher": mass_q,
        ADVANTAGE: sum(terms) / len(shared) if len(shared) >= 2 else math.nan,
        UNDEFINED: float(len(shared) < 2),
        "entropy_gap": abs(entropies[1] - entropies[0]),
    }


def measured(logp_CV: Tensor, logq_CV: Tensor, k: int) -> dict[str, Tensor]:
    return overlap(Top.of(logp_CV, k), Top.of(logq_CV, k))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name in found:
        torch.testing.assert_close(
            found[name].double(), expected[name].double(), rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )


@settings(max_examples=60)
@given(seed=st.integers(0, 999), vocabulary=st.integers(2, 300), k=st.integers(1, 20))
def test_statistics_are_those_of_the_definitions(seed: int, vocabulary: int, k: int) -> None:
    logits, logq = random_pair(seed, positions=6, vocabulary=vocabulary)
    logp, k = logits.log_softmax(-1), min(k, vocabulary)
    assert_close(measured(logp, logq, k), reference(logp, logq, k), 1e-10)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), vocabulary=st.integers(2, 300), k=st.integers(1, 20))
def test_equal_distributions_share_everything(seed: int, vocabulary: int, k: int) -> None:
    logp, k = random_pair(seed, vocabulary=vocabulary)[1], min(k, vocabulary)
    found = measured(logp, logp, k)
    assert (found["overlap_ratio"] == 1).all()
    torch.testing.assert_close(found["overlap_mass_student"], logp.topk(k).values.exp().sum(-1))
    assert torch.equal(found["overlap_mass_student"], found["overlap_mass_teacher"])
    assert (found[UNDEFINED] == (k < 2)).all()
    assert (found[ADVANTAGE].isnan() if k < 2 else found[ADVANTAGE].abs() < 1e-12).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 999))
def test_names_of_ids_and_their_order_do_not_matter(seed: int) -> None:
    logits, logq = random_pair(seed, vocabulary=90)
    logp, generator = logits.log_softmax(-1), torch.Generator().manual_seed(seed)
    renamed, order = torch.randperm(90, generator=generator), torch.randperm(K, generator=generator)
    expected = measured(logp, logq, K)
    assert_close(measured(logp[:, renamed], logq[:, renamed], K), expected, 1e-12)
    top = Top.of(logq, K)
    assert_close(overlap(Top.of(logp, K), Top(top.ids[:, order], top.logprobs[:, order])), expected, 1e-12)


def test_one_shared_id_has_a_mass_and_no_advantage() -> None:
    logp = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04], [0.5, 0.3, 0.1, 0.06, 0.04]]).log()
    logq = torch.tensor([[0.1, 0.5, 0.3, 0.06, 0.04], [0.1, 0.06, 0.04, 0.5, 0.3]]).log()
    found = measured(logp, logq, 2)
    torch.testing.assert_close(found["overlap_ratio"], torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(found["overlap_mass_student"], torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(found["overlap_mass_teacher"], torch.tensor([0.5, 0.0]))
    assert found[ADVANTAGE].isnan().all() and (found[UNDEFINED] == 1).all()


def test_a_teacher_that_excludes_a_shared_id_stays_finite() -> None:
    logp = torch.tensor([[0.6, 0.4]]).log()
    found = measured(logp, torch.tensor([[0.0, -torch.inf]]), 2)
    assert -50 < found[ADVANTAGE].item() < -10 and found["overlap_ratio"] == 1


@pytest.mark.parametrize("positions", [0, 1, 9])
def test_entropy_and_top_of_logits(positions: int) -> None:
    logits = random_pair(3, positions, vocabulary=400)[0]
    top, entropy = top_and_entropy(logits, K)
    logp = logits.log_softmax(-1)
    torch.testing.assert_close(entropy, -(logp.exp() * logp).sum(-1))
    torch.testing.assert_close(top.logprobs.sort(-1, descending=True).values, logp.topk(K).values)
    torch.testing.assert_close(top.logprobs, logp.gather(1, top.ids))


# In the learner's sweep.


def told(case: Case, k: int, extra_ids: int = 0) -> Case:
    """The case with what a teacher sends of itself: k ids, most likely first, and its entropy."""
    _, logq = case.log_softmaxes([x.double() for x in case.leaves])
    top = logq.topk(k)
    return replace(
        case,
        rows=replace(
            case.rows,
            teacher_top_ids=top.indices + extra_ids,
            teacher_top_logprobs=top.values.float(),
            teacher_entropy=-(logq.exp() * logq).sum(-1).float(),
            support_ids=top.indices.flip(1),
            teacher_support_logprobs=top.values.flip(1).float(),
        ),
    )


def swept(
    case: Case, config: ObjectiveConfig, k: int = K, teacher: FullTeacher | None = None
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    leaves = [x.detach().clone().requires_grad_() for x in case.leaves]
    bias = leaves[2] if case.bias is not None else None
    loss, per_token = fused_head_loss(
        leaves[0], leaves[1], bias, case.rows, build_objective(config), 8, case.transform, teacher, k
    )
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves], per_token  # type: ignore[misc]


SAMPLED = ObjectiveConfig(support=Support.sampled, gradient=Gradient.policy_gradient, importance=Importance.none)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("whole", [True, False])
def test_the_sweep_measures_both_models_at_temperature_one(whole: bool, temperature: float) -> None:
    """Whether the teacher has told its states or its top k."""
    case = told(make_case(vocabulary=97, teacher_vocabulary=97), 20)
    config = replace(ObjectiveConfig(support=Support.full) if whole else SAMPLED, teacher_temperature=temperature)
    _, _, per_token = swept(case, config, teacher=case.teacher if whole else None)
    logp, logq = case.log_softmaxes([x.double() for x in case.leaves])
    expected = reference(logp, logq, K)
    assert 0 < expected["overlap_ratio"].mean() < 1 and (expected[UNDEFINED] == 0).any()
    assert_close({name: per_token[name] for name in expected}, expected, 2e-5)


@pytest.mark.parametrize(
    "config",
    [
        SAMPLED,
        ObjectiveConfig(k=4),
        ObjectiveConfig(support=Support.teacher_topk, divergence="forward_kl", k=4),
        ObjectiveConfig(support=Support.intersection, k=4),
        replace(SAMPLED, teacher_temperature=2.0),
    ],
    ids=lambda config: f"{config.support.value}-{config.teacher_temperature:g}",
)
def test_measuring_changes_nothing_that_is_learned(config: ObjectiveConfig) -> None:
    """The objective takes its own k of the ids that came for the overlap."""
    plain, wide = told(make_case(), 4), told(make_case(), K)
    wide = replace(
        wide, rows=replace(wide.rows, **{n: vars(plain.rows)[n] for n in ("support_ids", "teacher_support_logprobs")})
    )
    loss, grads, values = swept(plain, config, 0)
    other_loss, other_grads, other_values = swept(wide, config, K)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(one, other) for one, other in zip(grads, other_grads, strict=True))
    assert all(torch.equal(value, other_values[name]) for name, value in values.items())
    assert {"overlap_ratio", "entropy_gap"} <= other_values.keys() - values.keys()


def test_ids_beyond_the_students_head_are_not_shared() -> None:
    case = told(make_case(vocabulary=97), K, extra_ids=97)
    _, _, per_token = swept(case, SAMPLED)
    assert (per_token["overlap_ratio"] == 0).all() and per_token["overlap_mass_teacher"].sum() == 0


def test_no_rows_have_all_names() -> None:
    """An idle rank's batch has one id a row, and no rows."""
    case = told(make_case(), K)
    rows = replace(case.rows.slice(0, 0), teacher_top_ids=torch.zeros(0, 1, dtype=torch.int64))
    rows = replace(rows, teacher_top_logprobs=torch.zeros(0, 1))
    _, _, idle = swept(replace(case, hidden=case.hidden[:0], rows=rows), SAMPLED)
    assert idle.keys() == swept(case, SAMPLED)[2].keys()
    assert all(len(value) == 0 for value in idle.values())
