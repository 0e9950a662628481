"""A mixture of teachers over the whole vocabulary, against float64 autograd."""

from dataclasses import replace

import pytest
import torch

from learner.head.fused_loss import FullTeacher, fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Support
from learner.packing import pack
from tests.learner.examples import make_example
from tests.learner.head.cases import Case, make_case
from tutelage.lm.head import Head, LMHead, LogitTransform, MixedHead, Mixture

WEIGHTS = (0.3, 0.7)
WIDTHS = (12, 7)


def mixed_case() -> Case:
    generator = torch.Generator().manual_seed(3)
    parts = tuple(
        Head(torch.randn(rows, width, generator=generator) / 2, None, LogitTransform(cap=5.0))
        for rows, width in zip((97, 101), WIDTHS, strict=True)  # one has rows that pad
    )
    case = make_case()
    states = torch.randn(len(case.rows), sum(WIDTHS), generator=generator)
    return replace(case, teacher=FullTeacher(states, Mixture(parts, WEIGHTS)))


def expected_logprobs(case: Case) -> torch.Tensor:
    """[R, V] in float64: the logarithm of the weighted sum of both distributions over the ids that all have."""
    head = case.teacher.head
    assert isinstance(head, Mixture)
    total = torch.zeros(())
    for part, weight, states in zip(head.parts, WEIGHTS, case.teacher.hidden.double().split(WIDTHS, 1), strict=True):
        logits = 5 * (states @ part.weight.double()[:97].T / 5).tanh()
        total = total + weight * logits.softmax(-1)
    return total.log()


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("chunk", [4, 64])
def test_value_and_gradient_are_those_of_the_mixture(divergence: str, chunk: int) -> None:
    case, config = mixed_case(), ObjectiveConfig(support=Support.full, divergence=divergence)
    leaves = [x.detach().clone().requires_grad_() for x in case.leaves]
    loss, _ = fused_head_loss(*leaves, case.rows, build_objective(config), chunk, case.transform, teacher=case.teacher)
    loss.backward()
    wide = [x.detach().double().requires_grad_() for x in case.leaves]
    logp, logq = (wide[0] @ wide[1].T + wide[2]).log_softmax(-1), expected_logprobs(case)
    kl = (logp.exp() * (logp - logq)) if divergence == "reverse_kl" else (logq.exp() * (logq - logp))
    expected = kl.sum()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(leaves, wide, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert (ours.grad.double() - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


def test_a_head_that_travelled_is_the_same() -> None:
    case = mixed_case()
    head = case.teacher.head
    assert isinstance(head, Mixture)
    sent = MixedHead(tuple(LMHead(p.weight.numpy(), None, p.transform) for p in head.parts), WEIGHTS)
    out, again = torch.empty(2, len(case.rows), 97)
    head.logits(case.teacher.hidden, out)
    sent.on(torch.device("cpu")).logits(case.teacher.hidden, again)
    torch.testing.assert_close(out, again)
    torch.testing.assert_close(out.logsumexp(-1), torch.zeros(len(out)), atol=1e-5, rtol=0)


def test_states_of_two_teachers_never_stand_in_one_micro_batch() -> None:
    examples = [make_example(slot, 5, 6, teacher_width=4) for slot in range(6)]
    assert all(example.signal is not None for example in examples)
    named = [
        replace(e, signal=replace(e.signal, teacher="ab"[e.trajectory.slot % 2]))  # type: ignore[type-var]
        for e in examples
    ]
    batch = pack(named, ranks=1, token_budget=1000, policy_version=0)
    whose = {m.teacher: sorted(set(m.rows["slots"].tolist())) for m in batch.ranks[0] if m is not None}
    assert whose == {"a": [0, 2, 4], "b": [1, 3, 5]}
    assert batch.loss_tokens == sum(m.loss_mask.sum() for m in batch.ranks[0] if m is not None)
    assert batch.loss_tokens == sum(example.trajectory.loss_tokens for example in examples)
