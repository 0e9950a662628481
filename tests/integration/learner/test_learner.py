"""The DeepSpeed learner with real ranks: what one step does, whatever the number of ranks and the ZeRO stage."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.checkpoint import save_checkpoint
from learner.config import Schedule
from learner.export import export
from learner.packing import pack
from learner.records import Batch, Example, ExampleDivergence, StepReport
from learner.totals import NonFiniteError
from tests.integration.learner.jobs import BUDGET, STEPS, Job, assert_same_update, plain_loss, settings, weights
from tests.integration.ranks import Ranks
from tests.learner.examples import make_example, make_examples
from tests.models import make_tiny_model
from tutelage.lm.head import LMHead
from tutelage.settings import DType

pytestmark = pytest.mark.integration


# What runs on the ranks.


def train(
    job: Job, examples: Sequence[Example], ranks: int, budget: int, out: Path, steps: int = STEPS
) -> list[StepReport]:
    engine = job.engine()
    reports = [engine.step(pack(examples, ranks, budget, engine.version)) for _ in range(steps)]
    export(engine, out)
    return reports


def step_on_bad_scores(job: Job, bad: Batch, good: Batch, directory: Path) -> tuple[StepReport, float]:
    """A step that is skipped and one after it, and the latter alone."""
    engine = job.engine()
    skipped = engine.step(bad)
    export(engine, directory / "skipped")
    engine.step(replace(good, policy_version=1))
    export(engine, directory / "then")
    alone = job.engine()
    alone.step(good)
    export(alone, directory / "alone")
    return skipped, float(engine.version)


def export_late(job: Job, out: Path) -> None:
    """Rank 1 comes when rank 0 has had time to write everything."""
    engine = job.engine()
    deadline = time.monotonic() + engine.rank * 3
    while time.monotonic() < deadline and not out.exists():
        time.sleep(0.01)
    export(engine, out)


def spoil_weights(job: Job, directory: Path) -> list[str]:
    engine = job.engine()
    with torch.no_grad():
        for parameter in engine.deepspeed.module.parameters():
            share = getattr(parameter, "ds_tensor", parameter)
            if engine.rank == 1 and share.numel():
                share.view(-1)[0] = torch.inf
                break
    errors = []
    for act in (engine.check_weights, lambda: save_checkpoint(engine, directory / "checkpoint")):
        try:
            act()
        except NonFiniteError as error:
            errors.append(str(error))
    return errors


def step_twice(job: Job, examples: Sequence[Example], ranks: int) -> tuple[StepReport, StepReport, str, int]:
    engine = job.engine()
    batch = pack(examples, ranks, BUDGET, 0)
    first, second = engine.step(batch), engine.step(batch)
    try:
        engine.step(replace(batch, policy_version=7))
    except ValueError as error:
        return first, second, str(error), engine.version
    return first, second, "no error", engine.version


def evaluate(
    job: Job, examples: Sequence[Example], ranks: int, weight: Tensor
) -> tuple[list[ExampleDivergence], float]:
    """Divergences, and the loss of a step taken after the evaluation."""
    engine = job.engine()
    engine.set_teacher_head("teacher", LMHead(weight.numpy(), None))
    records = engine.evaluate(pack(examples, ranks, BUDGET, 0))
    return records, engine.step(pack(examples, ranks, BUDGET, 0)).loss


# One step.


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_is_the_plain_gradient_on_one_and_on_two_ranks(
    tied: bool, one: Ranks, two: Ranks, tiny_tied: Path, tiny_untied: Path, tmp_path: Path
) -> None:
    model = tiny_tied if tied else tiny_untied
    examples = make_examples(top_k=20)
    loss, norm = plain_loss(model, examples)
    job = Job(model, settings())
    single = one.run(train, job, examples, 1, BUDGET, tmp_path / "one")
    double = two.run(train, job, examples, 2, BUDGET, tmp_path / "two")
    for reports in (*single, *double):
        assert reports[0].loss == pytest.approx(loss, rel=1e-4)
        assert reports[0].grad_norm == pytest.approx(norm, rel=1e-4)
    assert_same_update(tmp_path / "one", tmp_path / "two", model, 1e-3)
    first, second = double
    assert [replace(r, seconds=0) for r in first] == [replace(r, seconds=0) for r in second]
    alone, shared = single[0][0].metrics, first[0].metrics
    assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert {"overlap_ratio", "entropy_gap/tokens_0_1", "entropy_gap/tokens_16_32"} <= alone.keys()
    assert "entropy_gap/tokens_32_64" not in alone  # the longest response has 20 tokens


@pytest.mark.parametrize("tied", [True, False])
def test_zero_stages_agree_in_float32(
    tied: bool, two: Ranks, tiny_tied: Path, tiny_untied: Path, tmp_path: Path
) -> None:
    model = tiny_tied if tied else tiny_untied
    norms = []
    for stage in (0, 1, 2, 3):
        job = Job(model, settings(stage, max_grad_norm=0.05))
        (reports, _) = two.run(train, job, make_examples(), 2, BUDGET, tmp_path / str(stage))
        norms.append([report.grad_norm for report in reports])
    for stage in (1, 2, 3):
        assert_same_update(tmp_path / "0", tmp_path / str(stage), model, 1e-3)
        assert norms[stage] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_follows_float32(stage: int, two: Ranks, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", tied=True, dtype=torch.bfloat16)
    reports = {}
    for dtype in (DType.float32, DType.bfloat16):
        job = Job(model, settings(stage, dtype=dtype, learning_rate=2e-3))
        (reports[dtype], _) = two.run(train, job, make_examples(), 2, BUDGET, tmp_path / dtype.value)
    exported = weights(tmp_path / "bfloat16")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert_same_update(tmp_path / "float32", tmp_path / "bfloat16", model, 0.5)
    exact, rounded = reports[DType.float32], reports[DType.bfloat16]
    assert rounded[0].grad_norm == pytest.approx(exact[0].grad_norm, rel=0.05)
    assert rounded[0].loss == pytest.approx(exact[0].loss, abs=2e-3)


def test_cutting_into_micro_batches_changes_nothing(one: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    job = Job(tiny_tied, settings())
    one.run(train, job, make_examples(), 1, 10_000, tmp_path / "whole")
    one.run(train, job, make_examples(), 1, 1, tmp_path / "singles")
    assert_same_update(tmp_path / "whole", tmp_path / "singles", tiny_tied, 1e-3)


def test_gradient_checkpointing_changes_nothing(one: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    for name, on in (("off", False), ("on", True)):
        job = Job(tiny_tied, settings(gradient_checkpointing=on))
        one.run(train, job, make_examples(), 1, BUDGET, tmp_path / name)
    assert_same_update(tmp_path / "off", tmp_path / "on", tiny_tied, 1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_rank_without_work_stays_in_step(stage: int, one: Ranks, two: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    examples = [make_example(1, 5, 9, top_k=16), make_example(2, 3, 6, top_k=16, masked=True)]
    job = Job(tiny_tied, settings(stage))
    (alone,) = one.run(train, job, examples[:1], 1, 1, tmp_path / "one")
    (idle, _) = two.run(train, job, examples[:1], 2, 1, tmp_path / "idle")
    (masked, _) = two.run(train, job, examples, 2, 1, tmp_path / "masked")
    assert "overlap_mass_teacher/tokens_8_16" in alone[0].metrics
    for reports in (idle, masked):
        assert reports[0].metrics == pytest.approx(alone[0].metrics, rel=1e-4, abs=1e-6)
    for name in ("idle", "masked"):
        assert_same_update(tmp_path / "one", tmp_path / name, tiny_tied, 1e-3)


def test_sampled_objective_reports_ratio_and_gap(two: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    job = Job(tiny_tied, settings(), objective="sampled_reverse_kl")
    (reports, _) = two.run(train, job, make_examples(), 2, BUDGET, tmp_path / "out", 1)
    metrics = reports[0].metrics
    assert 0 <= metrics["importance_ratio_clipped"] < 1 and metrics["importance_ratio"] > 0
    assert metrics["rollout_logprob_gap_max"] >= metrics["rollout_logprob_gap_mean"] > 0
    assert {"importance_ratio", "sampled_reverse_kl", "student_entropy"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())


def test_schedule_warms_up_and_decays(one: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    job = Job(tiny_tied, settings(schedule=Schedule.linear, warmup_steps=2), total_steps=4)
    (reports,) = one.run(train, job, make_examples(), 1, BUDGET, tmp_path / "out", 4)
    assert [r.learning_rate for r in reports] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 0.5e-3])


def test_a_step_is_idempotent_and_versioned(one: Ranks, tiny_tied: Path) -> None:
    (result,) = one.run(step_twice, Job(tiny_tied, settings()), make_examples(), 1)
    first, second, error, version = result
    assert first == second and first.policy_version == 1
    assert error == "step: the batch starts from version 7, the weights are at 1" and version == 1


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, DType.float32), (1, DType.float32), (2, DType.float32), (2, DType.bfloat16), (3, DType.bfloat16)],
)
def test_a_step_with_a_nan_is_skipped_on_both_ranks_and_leaves_no_trace(
    stage: int, dtype: DType, two: Ranks, tiny_tied: Path, tmp_path: Path
) -> None:
    examples = make_examples()
    spoilt = examples[3].signal.support_logprobs.copy()
    spoilt[0] = np.nan
    bad = [*examples]
    bad[3] = replace(examples[3], signal=replace(examples[3].signal, support_logprobs=spoilt))
    job = Job(tiny_tied, settings(stage, dtype=dtype, schedule=Schedule.constant))
    batches = pack(bad, 2, BUDGET, 0), pack(examples, 2, BUDGET, 0)
    results = two.run(step_on_bad_scores, job, *batches, tmp_path)
    reports = [report for report, _ in results]
    assert [(report.policy_version, version) for report, version in results] == [(1, 2.0), (1, 2.0)]
    assert all(report.skipped and math.isnan(report.grad_norm) for report in reports)
    assert any("the loss" in report.skipped for report in reports)
    assert all(math.isfinite(value) for report in reports for value in report.metrics.values())
    skipped, then, alone = (weights(tmp_path / name) for name in ("skipped", "then", "alone"))
    if dtype is DType.float32:
        before = weights(tiny_tied)
        assert all(torch.equal(before[name], skipped[name]) for name in before)
    assert all(torch.equal(alone[name], then[name]) for name in alone)
    assert any(not torch.equal(skipped[name], then[name]) for name in then)


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_are_not_finite_are_neither_sent_nor_saved(
    stage: int, two: Ranks, tiny_tied: Path, tmp_path: Path
) -> None:
    dtype = DType.bfloat16 if stage == 3 else DType.float32
    for errors in two.run(spoil_weights, Job(tiny_tied, settings(stage, dtype=dtype)), tmp_path):
        assert len(errors) == 2 and all("version 0: the weights of" in error for error in errors)
    assert not (tmp_path / "checkpoint" / "manifest.json").exists()


# Exports.


def test_a_rank_that_is_late_does_not_take_the_export_for_an_earlier_one(
    two: Ranks, tiny_tied: Path, tmp_path: Path
) -> None:
    two.run(export_late, Job(tiny_tied, settings()), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_export_loads_in_transformers(
    stage: int, tied: bool, two: Ranks, tiny_tied: Path, tiny_untied: Path, tmp_path: Path
) -> None:
    model_path = tiny_tied if tied else tiny_untied
    out = tmp_path / "out"
    two.run(train, Job(model_path, settings(stage)), make_examples(), 2, BUDGET, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.generation_config.eos_token_id is not None
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


# Evaluation.


@pytest.mark.parametrize("stage", [2, 3])
def test_evaluation_is_the_exact_divergence(
    stage: int, one: Ranks, two: Ranks, tiny_tied: Path, tmp_path: Path
) -> None:
    width, vocabulary = 48, 640  # the teacher's head is padded beyond the student's 576 ids
    weight = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(0))
    examples = make_examples(teacher_width=width)
    job = Job(tiny_tied, settings(stage))
    first, second = two.run(evaluate, job, examples, 2, weight)
    assert first == second
    (alone,) = one.run(evaluate, job, examples, 1, weight)
    (reports,) = one.run(train, job, examples, 1, BUDGET, tmp_path / "out", 1)
    assert alone[1] == pytest.approx(reports[0].loss, rel=1e-5)

    model = AutoModelForCausalLM.from_pretrained(tiny_tied, dtype=torch.float32)
    for example, record, other in zip(examples, first[0], alone[0], strict=True):
        t = example.trajectory
        ids = torch.tensor(np.concatenate([t.prompt_ids, t.response_ids]), dtype=torch.int64)
        mask = torch.tensor(t.loss_mask)
        with torch.no_grad():
            logp = model(ids[None]).logits[0, len(t.prompt_ids) - 1 : -1][mask].double().log_softmax(-1)
        states = torch.tensor(example.signal.hidden_states)[mask].double()
        logq = (states @ weight[:576].double().T).log_softmax(-1)
        overlap = [
            len(set(a.tolist()) & set(b.tolist())) / 16
            for a, b in zip(logp.topk(16).indices, logq.topk(16).indices, strict=True)
        ]
        expected = ExampleDivergence(
            record.example_index,
            t.loss_tokens,
            reverse_kl=pytest.approx(float((logp.exp() * (logp - logq)).sum()), rel=1e-4),
            forward_kl=pytest.approx(float((logq.exp() * (logq - logp)).sum()), rel=1e-4),
            overlap_ratio=pytest.approx(sum(overlap), abs=1e-6),
        )
        assert record == expected and other == expected
