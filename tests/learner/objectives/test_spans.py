"""Tokens that were scored together: the loss of each span as one action, whatever chunks and ranks it is cut into."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.head.fused_loss import fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import (
    Gradient,
    Importance,
    Normalisation,
    ReturnsConfig,
    Shaping,
    Spans,
    Support,
    TermConfig,
    TokenMaskConfig,
)
from learner.objectives.spans import span_groups, sums_of_others
from learner.packing import pack
from learner.records import Example, Rows
from learner.tensors import to_tensors
from tests.learner.examples import make_example
from tests.learner.positions import backward, close, compute, make_rows, random_pair

SAMPLED = ObjectiveConfig(support=Support.sampled, gradient=Gradient.policy_gradient)
DIRECT = replace(SAMPLED, gradient=Gradient.backprop)
# A span's loss from its log-probs (student, teacher, sampling), for autograd to differentiate.
FORMULAS: dict[str, tuple[ObjectiveConfig, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "reverse KL": (SAMPLED, lambda p, q, r: -(q - p).detach() * p),
    "forward KL": (
        replace(SAMPLED, divergence="forward_kl"),
        lambda p, q, r: -((q - p).exp() - 1).detach() * p,
    ),
    "reverse KL, truncated ratio": (
        replace(SAMPLED, importance=Importance.truncated, ratio_cap=1.2),
        lambda p, q, r: -((p - r).exp().clamp(max=1.2) * (q - p)).detach() * p,
    ),
    "reverse KL, tanh": (replace(SAMPLED, shaping=Shaping.tanh), lambda p, q, r: -(q - p).tanh().detach() * p),
    "PPO clip": (
        replace(SAMPLED, importance=Importance.ppo_clip),
        lambda p, q, r: (
            -torch.minimum((p - r).exp() * (q - p).detach(), (p - r).exp().clamp(0.8, 1.2) * (q - p).detach())
        ),
    ),
    "k2": (replace(DIRECT, estimator="k2"), lambda p, q, r: (p - q) ** 2 / 2),
    "k3": (
        replace(DIRECT, estimator="k3", divergence="forward_kl"),
        lambda p, q, r: (q - p).exp() - 1 - (q - p),
    ),
}
SPANS = torch.tensor([0, 1, 1, 1, 2, 0, 0, 1])  # of two trajectories
TRAJECTORY = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
TOGETHER = [[0], [1, 2, 3], [4], [5, 6], [7]]


def spanned(logits: Tensor, logq: Tensor) -> Rows:
    """Rows as the head hands them to the objective."""
    rows = make_rows(logits, logq)
    sampling = rows.sampling_logprobs - torch.linspace(-0.3, 0.3, len(rows), dtype=logits.dtype)
    groups, tokens = span_groups(TRAJECTORY, SPANS)
    now = make_rows(logits, logq, targets=rows.target_ids).sampling_logprobs
    rest = sums_of_others(torch.stack([now, rows.teacher_logprobs, sampling, now], 1), groups, tokens)
    return replace(rows, sampling_logprobs=sampling, spans=SPANS, merged=tokens > 1, span_tokens=tokens, span_rest=rest)


def by_span(logp: Tensor, rows: Rows, formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack(
        [formula(logp[s].sum(), rows.teacher_logprobs[s].sum(), rows.sampling_logprobs[s].sum()) for s in TOGETHER]
    ).sum()


@pytest.mark.verifies("spans of tokens", "loss and gradient of a span as one action against autograd of the formula")
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("seed", range(3))
def test_a_span_is_one_action(name: str, seed: int) -> None:
    config, formula = FORMULAS[name]
    logits, logq = random_pair(seed, positions=8)
    rows = spanned(logits, logq)
    leaf = logits.clone().requires_grad_()
    logp = leaf.log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]
    loss = by_span(logp, rows, formula)
    found = compute(config, logits, rows)
    close(found.loss.sum(), loss.detach())
    close(found.grad_logits, backward(loss[None], leaf))


@pytest.mark.verifies("spans of tokens", "the mean of a span's policy gradient over all spans is that of its exact KL")
def test_the_policy_gradient_of_spans_is_unbiased() -> None:
    logits, logq = random_pair(4, positions=2, vocabulary=5)
    leaf = logits.clone().requires_grad_()
    logp_V, teacher_V = leaf.log_softmax(-1), logq
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    joint_p = logp_V[0][pairs[:, 0]] + logp_V[1][pairs[:, 1]]
    joint_q = teacher_V[0][pairs[:, 0]] + teacher_V[1][pairs[:, 1]]
    exact = backward((joint_p.exp() * (joint_p - joint_q)).sum()[None], leaf)
    mean = torch.zeros_like(logits)
    for pair, weight in zip(pairs, joint_p.detach().exp(), strict=True):
        rows = make_rows(logits, logq, targets=pair)
        groups, tokens = span_groups(torch.zeros(2), torch.zeros(2))
        own = rows.sampling_logprobs
        values = torch.stack([own, rows.teacher_logprobs, own, own], 1)
        rows = replace(rows, span_tokens=tokens, span_rest=sums_of_others(values, groups, tokens))
        mean += weight * compute(SAMPLED, logits, rows).grad_logits
    close(mean, exact)


@pytest.mark.verifies(
    "the fused head (float32, against float64)", "spans: PPO's clip at a sampling temperature, 1e-5, norm-wise"
)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_the_clip_of_a_span_is_about_the_policies_at_the_sampling_temperature(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(8, D, generator=generator), torch.randn(V, D, generator=generator) / 3
    logits = hidden.double() @ weight.double().T
    rows = spanned(logits, random_pair(1, positions=8, vocabulary=V)[1])
    tempered = (logits / temperature).log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]
    rows = replace(
        rows,
        temperatures=torch.full((8,), temperature),
        sampling_logprobs=tempered - torch.linspace(-0.4, 0.4, 8),
        example_index=TRAJECTORY,
    )
    low = {name: x.float() for name, x in vars(rows).items() if x is not None and x.is_floating_point()}
    leaf = weight.clone().requires_grad_()
    clipped = replace(SAMPLED, importance=Importance.ppo_clip)
    loss, values = fused_head_loss(hidden, leaf, None, replace(rows, **low), build_objective(clipped), 3)
    loss.backward()
    exact = weight.double().requires_grad_()
    logp = (hidden.double() @ exact.T).log_softmax(-1).gather(1, rows.target_ids[:, None])[:, 0]
    expected = exact.sum() * 0
    for s in TOGETHER:
        own, advantage = logp[s].sum(), (rows.teacher_logprobs[s].sum() - logp[s].sum()).detach()
        ratio = (tempered[s].sum() + own - own.detach() - rows.sampling_logprobs[s].sum()).exp()
        weighed = (own.detach() - tempered[s].sum()).exp()
        expected = expected - weighed * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    expected.backward()
    assert values["importance_ratio_clipped"].any() and not values["importance_ratio_clipped"].all()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (leaf.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm()


@pytest.mark.verifies("spans of tokens", "term masks split the tokens between one-to-one and merged spans")
def test_masks_choose_by_span() -> None:
    logits, logq = random_pair(5, positions=8)
    rows = spanned(logits, logq)
    whole = compute(SAMPLED, logits, rows).grad_logits
    parts = [
        compute(replace(SAMPLED, tokens=TokenMaskConfig(spans=kind)), logits, rows).grad_logits
        for kind in (Spans.one_to_one, Spans.merged)
    ]
    close(parts[0] + parts[1], whole)
    assert rows.merged is not None
    assert not parts[0][rows.merged].any() and not parts[1][~rows.merged].any()
    with pytest.raises(ValueError, match=r"teacher\.cross_tokenizer"):
        compute(replace(SAMPLED, tokens=TokenMaskConfig(spans=Spans.merged)), logits, make_rows(logits, logq))


def test_ids_without_an_equal_are_left_out_of_the_support() -> None:
    """The last of the student's ids has none, and at one place none has."""
    logits, logq = random_pair(6, positions=3)
    config = ObjectiveConfig(support=Support.student_topk, k=4, normalisation=Normalisation.renormalised)
    rows = make_rows(logits, logq)
    fewer = replace(
        rows, support_ids=rows.support_ids.clone(), teacher_support_logprobs=rows.teacher_support_logprobs.clone()
    )
    fewer.support_ids[:, 3], fewer.teacher_support_logprobs[:, 3] = -1, -torch.inf
    fewer.support_ids[2], fewer.teacher_support_logprobs[2] = -1, -torch.inf
    expected = compute(replace(config, k=3), logits, rows)
    found = compute(config, logits, fewer)
    close(found.grad_logits[:2], expected.grad_logits[:2])
    assert found.loss[2] == 0 and not found.grad_logits[2].any()
    assert all(values.isfinite().all() for values in found.metrics.values())


# Through the head, in float32


V, D = 50, 12
PRESET = ObjectiveConfig(
    k=8,
    normalisation=Normalisation.renormalised,
    tokens=TokenMaskConfig(spans=Spans.one_to_one),
    further_terms={
        "merged": TermConfig(
            support=Support.sampled,
            gradient=Gradient.policy_gradient,
            importance=Importance.truncated,
            tokens=TokenMaskConfig(spans=Spans.merged),
        )
    },
)


def cross_example(slot: int, response: int) -> Example:
    """Spans of one to four tokens; now and then one is unknown."""
    rng = np.random.default_rng([slot, 7])
    spans = np.repeat(np.arange(response), rng.integers(1, 5, response))[:response]
    sizes = np.bincount(spans)[spans]
    known = rng.random(response)[spans] < 0.8
    example = make_example(slot, 3, response, vocabulary=V, k=8)
    assert example.signal is not None
    signal = replace(
        example.signal,
        known=known,
        spans=np.where(known, spans, -1),
        merged=known & (sizes > 1),
        logprobs=np.where(known, example.signal.logprobs, np.nan).astype(np.float32),
        entropy=np.where(known, example.signal.entropy, np.nan).astype(np.float32),
    )
    mask = np.ones(response, dtype=np.bool_)
    return replace(example, signal=signal, trajectory=replace(example.trajectory, loss_mask=mask, temperature=1.0))


def gradient(
    examples: list[Example], ranks: int, budget: int, chunk: int, config: ObjectiveConfig
) -> tuple[float, Tensor]:
    """Summed over all micro-batches of all ranks."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(100, 40, D, generator=generator)  # a state for each slot and position
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    batch = pack(examples, ranks, budget, 0)
    total = 0.0
    for micro_batch in (m for rank in batch.ranks for m in rank):
        rows = to_tensors(micro_batch, torch.device("cpu")).rows
        assert rows.slots is not None and rows.positions is not None
        hidden = table[rows.slots, rows.positions]
        loss, values = fused_head_loss(hidden, weight, None, rows, build_objective(config), chunk)
        loss.backward()
        assert all(v.isfinite().all() for v in values.values())
        total += float(loss.detach())
    assert weight.grad is not None
    return total, weight.grad


@pytest.mark.verifies(
    "the fused head (float32, against float64)", "spans: gradients do not depend on chunks, micro-batches or ranks"
)
@pytest.mark.parametrize("config", [SAMPLED, PRESET], ids=["sampled", "preset"])
@pytest.mark.parametrize(("ranks", "budget", "chunk"), [(1, 1000, 1), (1, 20, 3), (2, 40, 7), (5, 1000, 64)])
def test_chunks_and_ranks_do_not_matter(config: ObjectiveConfig, ranks: int, budget: int, chunk: int) -> None:
    examples = [cross_example(slot, 5 + 4 * slot) for slot in range(4)]
    loss, grad = gradient(examples, 1, 1000, 1000, config)
    other_loss, other_grad = gradient(examples, ranks, budget, chunk, config)
    assert other_loss == pytest.approx(loss, rel=1e-4)
    assert (other_grad - grad).norm() <= 1e-5 * grad.norm()


@pytest.mark.verifies("the fused head (float32, against float64)", "spans: sampled term as one action, 1e-5, norm-wise")
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), chunk=st.sampled_from([1, 3, 64]), later=st.booleans()
)
def test_the_head_sums_spans_exactly(lengths: list[int], chunk: int, later: bool) -> None:
    """Each span by its own log-ratio, or with those of all later spans of its trajectory."""
    examples = [cross_example(slot, length) for slot, length in enumerate(lengths)]
    config = replace(SAMPLED, returns=ReturnsConfig(discount=1, exact_first_step=False)) if later else SAMPLED
    _, found = gradient(examples, 1, 1000, chunk, config)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(100, 40, D, generator=generator).double()
    weight = torch.randn(V, D, generator=generator).double().requires_grad_()
    loss = weight.sum() * 0
    for slot, example in enumerate(examples):
        signal, ids = example.signal, torch.from_numpy(example.trajectory.response_ids).long()
        assert signal is not None and signal.spans is not None
        logp = (table[slot, : len(ids)] @ weight.T).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        future = torch.zeros((), dtype=torch.float64)
        for span in sorted(set(signal.spans.tolist()) - {-1}, reverse=True):
            rows = torch.from_numpy(np.flatnonzero(signal.spans == span))
            own = logp[rows].sum()
            theirs = float(signal.logprobs[rows.numpy()].astype(np.float64).sum())
            advantage = (theirs - own).detach()
            loss = loss - (advantage + future * later) * own
            future = future + advantage
    loss.backward()
    assert weight.grad is not None
    assert (found - weight.grad).norm() <= 1e-5 * max(float(weight.grad.norm()), 1e-3)


def test_unknown_tokens_are_not_in_the_normaliser() -> None:
    examples = [cross_example(slot, 30) for slot in range(3)]
    known = sum(int(e.signal.known.sum()) for e in examples if e.signal is not None and e.signal.known is not None)
    batch = pack(examples, 2, 50, 0)
    assert batch.loss_tokens == known < 90
