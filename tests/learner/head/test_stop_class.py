"""Ids that are one action, through the fused head: against float64 autograd of the distribution with one id for all.

Shape suffixes: R positions, V vocabulary, A actions: V without the ids that another one stands for.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.head.compare import divergences, examine_rows, token_logprobs
from learner.head.fused_loss import FullTeacher, fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Normalisation, Support
from learner.objectives.returns import future_advantages
from learner.records import Rows
from tests.factories import CONF, NEEDED_BY_PRESETS, configured
from tests.learner.objectives.compositions import DIVERGENCES, WIDE
from tests.learner.objectives.formulas import losses
from tests.learner.positions import compute, make_rows
from tutelage.lm.head import Head, LogitTransform
from tutelage.stops import StopClass

SECTION = "the stop class (float32, against float64)"
PRESETS = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
R, V, D = 14, 83, 7
STOPS = StopClass(kept=5, others=(2, 11))
ACTIONS = [v for v in range(V) if v not in STOPS.others]
PLAIN, CAPPED = LogitTransform(), LogitTransform(1.5, 4.0)


class Pair:
    """A student's head and states in float64, and a teacher of another width, with one action for all stops."""

    def __init__(self, seed: int, transform: LogitTransform = PLAIN) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).double()

        self.transform = transform
        self.hidden, self.weight = normal(R, D).requires_grad_(), normal(V, D).requires_grad_()
        self.teacher_hidden, self.teacher_weight = normal(R, D + 2), normal(V, D + 2) / 2
        self.logits_RV = self.merged(self.transformed(self.hidden @ self.weight.T))
        self.logq_RV = self.merged(self.teacher_hidden @ self.teacher_weight.T).log_softmax(-1)

    def transformed(self, logits_RV: Tensor) -> Tensor:
        factor, cap = self.transform.factor, self.transform.cap
        return logits_RV * factor if cap is None else (logits_RV * factor / cap).tanh() * cap

    def merged(self, logits_RV: Tensor) -> Tensor:
        """By the definition: p(stop) = sum p(s), the others impossible."""
        p_RV = logits_RV.softmax(-1)
        total_R = p_RV[:, list(STOPS.ids)].sum(-1)
        columns = [
            total_R.log() if v == STOPS.kept else torch.full_like(total_R, -500.0) if v in STOPS.others else p.log()
            for v, p in enumerate(p_RV.unbind(-1))
        ]
        return torch.stack(columns, -1)

    @property
    def teacher(self) -> FullTeacher:
        return FullTeacher(self.teacher_hidden.float(), Head(self.teacher_weight.float(), None, LogitTransform()))

    def rows(self, k: int = 4) -> Rows:
        """On-policy; every third token ends a turn, with whichever of the ends."""
        targets = torch.randint(0, V, (R,), generator=torch.Generator().manual_seed(1))
        targets[::3] = torch.tensor([STOPS.ids[i % 3] for i in range(len(targets[::3]))])
        rows = make_rows(self.logits_RV.detach(), self.logq_RV, k, targets=STOPS.renamed(targets))
        sevenths = torch.linspace(-2, -0.2, R).double()
        rows = replace(rows, sampling_logprobs=rows.sampling_logprobs - 0.1)
        return replace(rows, target_ids=targets, reference_logprobs=sevenths, task_advantages=sevenths.flip(0) + 1)

    def fused(self, config: ObjectiveConfig, rows: Rows, chunk: int = 5) -> tuple[Tensor, list[Tensor]]:
        leaves = [x.detach().float().requires_grad_() for x in (self.hidden, self.weight)]
        objective = build_objective(config)
        teacher = self.teacher if objective.requirements.hidden_states else None
        loss, _ = fused_head_loss(
            leaves[0], leaves[1], None, single_precision(rows), objective, chunk, self.transform, teacher, stops=STOPS
        )
        loss.backward()
        return loss.detach(), [leaf.grad for leaf in leaves]  # type: ignore[misc]

    def expect(self, actual: tuple[Tensor, list[Tensor]], loss: Tensor, through: Tensor) -> None:
        """Compare with a loss, and with the autograd of `through`."""
        wanted = torch.autograd.grad(through, [self.hidden, self.weight], retain_graph=True)
        near(actual[0], loss)
        for grad, want in zip(actual[1], wanted, strict=True):
            near(grad, want)


def near(actual: Tensor, expected: Tensor) -> None:
    error = (actual.double() - expected).norm()
    assert error <= 2e-5 * expected.norm() + 1e-6, f"{error} against {expected.norm()}"


@pytest.mark.verifies(SECTION, "every divergence on every wide support is that of V - |S| + 1 actions")
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", WIDE)
@pytest.mark.parametrize("transform", [PLAIN, CAPPED], ids=["plain", "capped"])
def test_a_wide_support_is_of_actions(divergence: str, support: Support, transform: LogitTransform) -> None:
    pair = Pair(3, transform)
    few = [Normalisation.renormalised, Normalisation.tail] if support is not Support.full else []
    for normalisation in (Normalisation.raw, *few):
        config = ObjectiveConfig(support=support, normalisation=normalisation, k=4, **DIVERGENCES[divergence])
        logp_RA, logq_RA = pair.logits_RV.log_softmax(-1)[:, ACTIONS], pair.logq_RV[:, ACTIONS]
        expected = losses(config, logp_RA, logq_RA).sum()
        pair.expect(pair.fused(config, pair.rows()), expected.detach(), expected)


@pytest.mark.verifies(SECTION, "every preset: loss and gradient, the sum's own gradient by autograd")
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str) -> None:
    config = configured(f"objective={preset}", *NEEDED_BY_PRESETS.get(preset, ())).objective
    pair, needs = Pair(4), build_objective(config).requirements
    rows = pair.rows(k=64)
    if preset == "cross_tokenizer":
        rows = replace(rows, spans=torch.arange(R), merged=torch.zeros(R, dtype=torch.bool))
    temperature = needs.softmax_temperature
    known = replace(rows, target_ids=STOPS.renamed(rows.target_ids))
    if needs.future_advantages:
        logp_R = pair.logits_RV.detach().log_softmax(-1).gather(1, known.target_ids[:, None])[:, 0]
        gaps_R, told = rows.teacher_logprobs - logp_R, (needs.discount, needs.length_normalised)
        ahead = future_advantages(gaps_R, torch.zeros(R, dtype=torch.int64), torch.arange(R), *told)
        known = replace(known, future_advantages=ahead)
    if rows.spans is not None:
        known = replace(known, span_tokens=torch.ones(R, dtype=torch.int64), span_rest=torch.zeros(R, 4).double())
    whole = (pair.logq_RV / temperature).log_softmax(-1) if needs.hidden_states else None
    tempered = pair.logits_RV / temperature
    result = compute(config, tempered.detach(), known, whole)
    through = (
        tempered * result.grad_logits.masked_fill(torch.isin(torch.arange(V), torch.tensor(STOPS.others)), 0)
    ).sum()
    pair.expect(pair.fused(config, rows), result.loss.sum(), through)


def single_precision(rows: Rows) -> Rows:
    return Rows(**{n: x.float() if x.is_floating_point() else x for n, x in vars(rows).items() if x is not None})


def test_what_is_measured_is_of_actions() -> None:
    pair = Pair(6)
    rows = pair.rows()
    student = Head(pair.weight.detach().float(), None, LogitTransform())
    hidden, teacher = pair.hidden.detach().float(), pair.teacher
    logp, logq = pair.logits_RV.detach().log_softmax(-1), pair.logq_RV
    known = STOPS.renamed(rows.target_ids)[:, None]
    found = divergences(student, hidden, teacher.head, teacher.hidden, 4, k=4, stops=STOPS)
    torch.testing.assert_close(found["reverse_kl"].double(), (logp.exp() * (logp - logq)).sum(-1), rtol=1e-4, atol=1e-5)
    examined = examine_rows(student, hidden, teacher.head, teacher.hidden, rows.target_ids, 4, 4, STOPS)
    torch.testing.assert_close(examined["student_logprob"].double(), logp.gather(1, known)[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(examined["teacher_logprob"].double(), logq.gather(1, known)[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.isin(examined["student_top_ids"], torch.tensor(STOPS.others)).any()
    temperatures = torch.linspace(0.5, 2, R)
    told = token_logprobs(student, hidden, rows.target_ids, temperatures, 4, STOPS)["logprob"]
    tempered = (logp / temperatures[:, None].double()).log_softmax(-1)  # the sampler merges before it tempers
    torch.testing.assert_close(told.double(), tempered.gather(1, known)[:, 0], rtol=1e-4, atol=1e-5)


def test_an_end_that_nobody_writes_changes_nothing() -> None:
    pair, config = Pair(7), ObjectiveConfig(support=Support.full)
    rows = single_precision(pair.rows())
    rows = replace(rows, target_ids=STOPS.renamed(rows.target_ids))
    bias = torch.zeros(V)
    bias[list(STOPS.others)] = -1e4
    teacher = FullTeacher(pair.teacher.hidden, replace(pair.teacher.head, bias=bias))
    hidden, weight = pair.hidden.detach().float(), pair.weight.detach().float()
    merged, plain = (
        fused_head_loss(hidden, weight, bias, rows, build_objective(config), 5, teacher=teacher, stops=stops)[0]
        for stops in (STOPS, None)
    )
    torch.testing.assert_close(merged, plain)


@given(st.data())
def test_a_merged_gradient_is_autograds(data: st.DataObject) -> None:
    vocabulary = data.draw(st.integers(3, 30))
    ids = data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=2, max_size=vocabulary, unique=True))
    stops = StopClass(ids[0], tuple(ids[1:]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = (8 * torch.randn(3, vocabulary, generator=generator)).double().requires_grad_()
    upstream = torch.randn(3, vocabulary, generator=generator).double()
    sums = torch.logsumexp(logits[:, ids], -1)
    alive = [v for v in range(vocabulary) if v not in ids]
    (expected,) = torch.autograd.grad(
        (sums * upstream[:, ids[0]]).sum() + (logits[:, alive] * upstream[:, alive]).sum(), logits
    )
    merged = logits.detach().clone()
    shares = stops.merge_(merged)
    torch.testing.assert_close(merged[:, ids[0]], sums.detach())
    assert torch.isneginf(merged[:, ids[1:]]).all()
    torch.testing.assert_close(merged[:, alive], logits.detach()[:, alive])
    torch.testing.assert_close(stops.spread_(upstream.clone(), shares), expected)
