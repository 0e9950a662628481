"""Token masks and weights: which tokens a term learns from, the same on every rank and after a resume."""

from dataclasses import replace

import pytest
import torch

from learner.objectives import ObjectiveConfig, StudentChunk, build_objective
from learner.objectives.config import Gradient, Support, TokenMaskConfig, Trust
from learner.records import Rows
from tests.learner.positions import close, compute, make_rows, random_pair

MANY = 4000


def weights(tokens: TokenMaskConfig, rows: Rows, logits: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """What each token weighs, read from losses of a term without and with the mask."""
    plain = ObjectiveConfig(k=4)
    masked = build_objective(replace(plain, tokens=tokens), seed)
    return compute(masked, logits, rows).loss / compute(plain, logits, rows).loss


@pytest.mark.verifies("tokens", "positions, teacher entropy and special tokens select what they say")
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (TokenMaskConfig(first=2), [0, 0, 1, 1, 1]),
        (TokenMaskConfig(last=2), [1, 1, 0, 0, 0]),
        (TokenMaskConfig(first=1, last=3), [0, 1, 1, 0, 0]),
        (TokenMaskConfig(teacher_entropy_above=1.0), [0, 0, 1, 1, 0]),
        (TokenMaskConfig(teacher_entropy_below=1.0), [1, 1, 0, 0, 0]),
        (TokenMaskConfig(special_tokens=False), [1, 0, 1, 1, 0]),
        (TokenMaskConfig(special_tokens=False, first=1), [0, 0, 1, 1, 0]),
    ],
)
def test_masks(tokens: TokenMaskConfig, expected: list[int]) -> None:
    logits, logq = random_pair(60)
    rows = replace(
        make_rows(logits, logq),
        teacher_entropy=torch.tensor([0.2, 0.9, 1.5, 2.0, 1.0], dtype=torch.float64),
        is_special=torch.tensor([False, True, False, False, True]),
    )
    close(weights(tokens, rows, logits), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.verifies("tokens", "a random share of tokens is rescaled: the mean of loss and gradient stays")
def test_share_keeps_the_mean() -> None:
    logits, logq = (x.expand(MANY, -1) for x in random_pair(61, positions=1))
    found = weights(TokenMaskConfig(share=0.25), make_rows(logits, logq), logits)
    assert set(found.round(decimals=6).tolist()) == {0.0, 4.0}
    assert abs(found.mean() - 1) <= 5 * found.std() / MANY**0.5


@pytest.mark.verifies("tokens", "trust is drawn with probability min(q/p, 1); inside and outside split the tokens")
def test_trust() -> None:
    logits, logq = (x.expand(MANY, -1) for x in random_pair(62, positions=1))
    rows = make_rows(logits, logq, targets=logits.argmax(-1))
    inside, outside = (weights(TokenMaskConfig(trust=trust), rows, logits) for trust in (Trust.inside, Trust.outside))
    close(inside + outside, torch.ones(MANY, dtype=torch.float64))
    probability = (rows.teacher_logprobs[0] - logits.log_softmax(-1)[0].max()).clamp(max=0).exp()
    assert 0.05 < probability < 0.95
    assert abs(inside.mean() - probability) <= 5 * inside.std() / MANY**0.5


@pytest.mark.verifies(
    "tokens", "random masks are a function of seed, trajectory and position: any chunk or order has the same"
)
@pytest.mark.parametrize("tokens", [TokenMaskConfig(share=0.5), TokenMaskConfig(trust=Trust.inside)])
def test_masks_do_not_depend_on_chunks(tokens: TokenMaskConfig) -> None:
    logits, logq = random_pair(63, positions=60)
    logits = logits[:1].expand(60, -1)
    slots = torch.arange(60) // 20
    rows = replace(make_rows(logits, logq, slots=slots), positions=torch.arange(60) % 20)
    whole = weights(tokens, rows, logits)
    parts = [weights(tokens, rows.slice(i, i + 7), logits[i : i + 7]) for i in range(0, 60, 7)]
    close(torch.cat(parts), whole)
    order = torch.randperm(60)
    shuffled = Rows(**{name: None if x is None else x[order] for name, x in vars(rows).items()})
    close(weights(tokens, shuffled, logits), whole[order])
    if tokens.share < 1:
        assert not torch.equal(weights(tokens, rows, logits, seed=1), whole)
        assert not torch.equal(whole[:20], whole[20:40])


@pytest.mark.verifies("tokens", "trusted tokens take the sampled reverse KL, the others the teacher's top-k forward KL")
def test_terms_divide_the_tokens() -> None:
    logits, logq = random_pair(64, positions=50)
    rows = make_rows(logits, logq)
    sampled = ObjectiveConfig(support=Support.sampled, gradient=Gradient.policy_gradient)
    forward = ObjectiveConfig(support=Support.teacher_topk, divergence="forward_kl", k=4)
    both = replace(
        sampled,
        tokens=TokenMaskConfig(trust=Trust.inside),
        further_terms={"outside": replace(forward, tokens=TokenMaskConfig(trust=Trust.outside))},
    )
    found = compute(both, logits, rows).grad_logits
    first, second = (compute(config, logits, rows).grad_logits for config in (sampled, forward))
    is_first, is_second = ((found - grad).norm(dim=-1) < 1e-12 for grad in (first, second))
    assert (is_first ^ is_second).all() and is_first.any() and is_second.any()


@pytest.mark.verifies("tokens", "trajectory weights multiply loss and gradient")
def test_row_weights() -> None:
    logits, logq = random_pair(65)
    rows, config = make_rows(logits, logq), ObjectiveConfig(k=4)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    plain, weighed = compute(config, logits, rows), compute(config, logits, replace(rows, weights=weight))
    close(weighed.loss, weight * plain.loss)
    close(weighed.grad_logits, weight[:, None] * plain.grad_logits)


def test_a_chunk_is_finite_where_the_student_excludes_ids() -> None:
    chunk = StudentChunk.from_logits(torch.tensor([[0.0, -torch.inf, 1.0]]))
    assert chunk.entropy().isfinite().all() and chunk.logprobs.isfinite().all()
    close(chunk.probs.sum(-1), torch.ones(1))
