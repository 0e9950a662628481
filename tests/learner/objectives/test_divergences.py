"""What every registered divergence must keep, and one that a user's own code registers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learner.objectives.config import Gradient, Normalisation, ObjectiveConfig, Support, TermConfig
from learner.objectives.describe import describe
from learner.objectives.divergences import DIVERGENCES, Divergence, Formula, divergence_of
from learner.objectives.rules.case import RunFacts
from learner.objectives.rules.refusals import refusals
from tests.learner.positions import backward, close, compute, make_rows, random_pair


class SquaredHellinger(Divergence):
    """(sqrt p - sqrt q)^2; g = p - sqrt(p q), the full derivative."""

    formula = Formula("squared Hellinger distance", "(√p - √q)²", "p - √(pq)", "√(q/p) - 1")

    def terms(self, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        p, mean = logp.exp(), ((logp + logq) / 2).exp()
        return p + logq.exp() - 2 * mean, p - mean

    def advantage(self, logp: Tensor, logq: Tensor) -> Tensor:
        return ((logq - logp) / 2).expm1()


@pytest.fixture
def hellinger(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(DIVERGENCES, "_items", dict(DIVERGENCES._items))
    DIVERGENCES.add("hellinger", SquaredHellinger)
    return "hellinger"


def keeps_its_promises(divergence: Divergence) -> None:
    logits, logq = random_pair(60)
    logp = logits.log_softmax(-1).requires_grad_()
    value, g = divergence.terms(logp, logq)
    (full,) = torch.autograd.grad(value.sum(), logp)
    p = logp.detach().exp()
    assert (value.sum(-1) >= 0).all()
    close(g.detach() + divergence.excess * p, full)
    close(divergence.advantage(logp, logq).detach(), -g.detach() / p)
    same, _ = divergence.terms(logq, logq)
    close(same.sum(-1), torch.zeros(len(same), dtype=same.dtype))
    expected = torch.full_like(same[:, 0], divergence.baseline)
    close((logq.exp() * divergence.advantage(logq, logq)).sum(-1), expected)


@pytest.mark.verifies("divergences", "g, excess, baseline and advantage are what each registered divergence says")
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_keeps_its_promises(name: str) -> None:
    keeps_its_promises(divergence_of(TermConfig(divergence=name)))


def test_one_of_a_users_own_takes_part(hellinger: str) -> None:
    keeps_its_promises(divergence_of(TermConfig(divergence=hellinger)))
    config = ObjectiveConfig(divergence=hellinger, support=Support.full)
    assert refusals(config, RunFacts()) == []
    assert describe(config).words[0].startswith("squared Hellinger distance on the whole vocabulary")
    assert "(√p - √q)², g(v) = p - √(pq)" in describe(config).formula[0]
    logits, logq = random_pair(61)
    leaf = logits.clone().requires_grad_()
    expected = (leaf.softmax(-1).sqrt() - logq.exp().sqrt()).square().sum(-1)
    for gradient in (Gradient.backprop, Gradient.policy_gradient):
        result = compute(replace(config, gradient=gradient), logits, make_rows(logits, logq), logq)
        close(result.grad_logits, backward(expected, leaf))
        expected = (leaf.softmax(-1).sqrt() - logq.exp().sqrt()).square().sum(-1)


def test_the_rules_know_one_of_a_users_own(hellinger: str) -> None:
    said = {
        r.key for r in refusals(ObjectiveConfig(divergence=hellinger, normalisation=Normalisation.averaged), RunFacts())
    }
    assert said == {"objective.normalisation"}
    control = ObjectiveConfig(
        divergence=hellinger, support=Support.sampled, gradient=Gradient.policy_gradient, control_variate=True
    )
    assert "objective.control_variate" in {refusal.key for refusal in refusals(control, RunFacts())}
