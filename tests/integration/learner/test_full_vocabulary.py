"""Objectives over the whole vocabulary on real ranks: two against one, ZeRO stages, scaled logits, plain autograd."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, GraniteConfig

from learner.config import LearnerConfig, LearnerSetup, StudentConfig
from learner.engine import LearnerEngine
from learner.objectives import ObjectiveConfig
from learner.objectives.config import Gradient, Importance, ReturnsConfig, Support
from learner.packing import pack
from learner.records import Example, StepReport
from tests.integration.ranks import Ranks
from tests.learner.examples import make_examples
from tutelage.lm.head import LMHead
from tutelage.settings import DType

pytestmark = pytest.mark.integration

VOCABULARY, TEACHER_VOCABULARY, TEACHER_WIDTH = 576, 640, 48
OBJECTIVES = {
    "reverse KL": ObjectiveConfig(support=Support.full),
    "JSD": ObjectiveConfig(support=Support.full, divergence="jsd", beta=0.3),
    "control variate": ObjectiveConfig(
        support=Support.sampled,
        gradient=Gradient.policy_gradient,
        importance=Importance.truncated,
        control_variate=True,
    ),
    "MiniLLM": ObjectiveConfig(support=Support.full, importance=Importance.truncated, returns=ReturnsConfig(0.9)),
}


@dataclass(frozen=True)
class Job:
    model: Path
    objective: ObjectiveConfig
    stage: int
    head: LMHead

    def engine(self) -> LearnerEngine:
        config = LearnerConfig(
            zero_stage=self.stage, dtype=DType.float32, learning_rate=1e-3, max_grad_norm=1e9, head_chunk_tokens=16
        )
        return LearnerEngine(LearnerSetup(str(self.model), StudentConfig(), config, self.objective, 10))


def teacher_weight() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((TEACHER_VOCABULARY, TEACHER_WIDTH), dtype=np.float32)


def steps(job: Job, examples: Sequence[Example], ranks: int) -> list[StepReport]:
    engine = job.engine()
    engine.set_teacher_head("teacher", job.head)
    return [engine.step(pack(examples, ranks, 40, engine.version)) for _ in range(3)]


def refusal(job: Job, examples: Sequence[Example], head: bool) -> str:
    engine = job.engine()
    if head:
        engine.set_teacher_head("teacher", job.head)
    try:
        engine.step(pack(examples, 1, 40, 0))
    except ValueError as error:
        return str(error)
    return ""


def plain_loss(model_path: Path, examples: Sequence[Example]) -> tuple[float, float]:
    """Reverse KL and its gradient norm through transformers and autograd, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    weight = torch.from_numpy(teacher_weight())[:VOCABULARY]
    total, value = sum(example.trajectory.loss_tokens for example in examples), 0.0
    for example in examples:
        t = example.trajectory
        ids = torch.tensor(np.concatenate([t.prompt_ids, t.response_ids]), dtype=torch.int64)
        logp = model(ids[None]).logits[0, len(t.prompt_ids) - 1 : -1].log_softmax(-1)
        logq = (torch.tensor(example.signal.hidden_states) @ weight.T).log_softmax(-1)
        terms: Tensor = (logp.exp() * (logp - logq)).sum(-1)
        loss = terms[torch.tensor(t.loss_mask)].sum() / total
        loss.backward()
        value += float(loss.detach())
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return value, float(norm)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that divides its logits by 4."""
    config = GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        logits_scaling=4.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("scaled")
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["tied", "untied", "scaled"])
def test_a_step_is_the_plain_gradient_on_one_and_on_two_ranks(
    kind: str, one: Ranks, two: Ranks, tiny_tied: Path, tiny_untied: Path, scaled: Path
) -> None:
    model = {"tied": tiny_tied, "untied": tiny_untied, "scaled": scaled}[kind]
    examples = make_examples(teacher_width=TEACHER_WIDTH)
    loss, norm = plain_loss(model, examples)
    job = Job(model, OBJECTIVES["reverse KL"], 2, LMHead(teacher_weight(), None))
    for reports in (*one.run(steps, job, examples, 1), *two.run(steps, job, examples, 2)):
        assert reports[0].loss == pytest.approx(loss, rel=1e-4)
        assert reports[0].grad_norm == pytest.approx(norm, rel=1e-4)
        assert reports[0].metrics["reverse_kl"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_zero_stages_and_ranks_agree(name: str, one: Ranks, two: Ranks, tiny_tied: Path) -> None:
    """Over three steps, so that a wrong gradient shows in the losses that follow."""
    examples = make_examples(teacher_width=TEACHER_WIDTH)
    head = LMHead(teacher_weight(), None)
    (expected,) = one.run(steps, Job(tiny_tied, OBJECTIVES[name], 0, head), examples, 1)
    assert expected[0].loss != pytest.approx(expected[2].loss, rel=1e-3)
    for stage in (0, 2, 3):
        (reports, _) = two.run(steps, Job(tiny_tied, OBJECTIVES[name], stage, head), examples, 2)
        assert [r.loss for r in reports] == pytest.approx([r.loss for r in expected], rel=1e-3)
        assert [r.grad_norm for r in reports] == pytest.approx([r.grad_norm for r in expected], rel=1e-3)


def test_what_is_missing_is_named(one: Ranks, tiny_tied: Path) -> None:
    job = Job(tiny_tied, OBJECTIVES["reverse KL"], 0, LMHead(teacher_weight(), None))
    (without_head,) = one.run(refusal, job, make_examples(teacher_width=TEACHER_WIDTH), False)
    assert "no LM head for teacher 'teacher'" in without_head
    (without_states,) = one.run(refusal, job, make_examples(), True)
    assert "set ScoringRequest.hidden_states" in without_states
