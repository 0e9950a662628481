"""Adapters on real DeepSpeed ranks, in an engine, and with their base as the teacher."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from diagnostics.check import Status
from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.config import LearnerConfig, LearnerSetup, LoraConfig, StudentConfig
from learner.engine import LearnerEngine
from learner.export import export
from learner.lora import checkpoint_weights
from learner.objectives.config import ObjectiveConfig, SequencesConfig, Support
from learner.packing import pack
from learner.records import Batch, Example
from learner.weights.source import CausalLMSource
from tests.integration.launching import Series
from tests.integration.ranks import Ranks
from tests.learner.examples import make_examples
from tests.scoring.reference import load_teacher
from tutelage.records.signal import ScoringRequest
from tutelage.settings import DType

pytestmark = pytest.mark.integration

BUDGET = 40
STEPS = 3
CROSS_ENTROPY = ObjectiveConfig(  # what falls from step to step on the same batch
    support=Support.sampled,
    divergence="forward_kl",
    estimator="likelihood",
    sequences=SequencesConfig(on_policy_fraction=0),
)


@dataclass(frozen=True)
class Job:
    """A learner of adapters to build on every rank."""

    model: Path
    stage: int
    dtype: DType = DType.float32
    dropout: float = 0.0

    def engine(self) -> LearnerEngine:
        student = StudentConfig(lora=LoraConfig(rank=4, alpha=8, dropout=self.dropout))
        config = LearnerConfig(
            zero_stage=self.stage, dtype=self.dtype, learning_rate=1e-2, head_chunk_tokens=16, max_grad_norm=0.05
        )
        return LearnerEngine(LearnerSetup(str(self.model), student, config, CROSS_ENTROPY, 10))


def steps(engine: LearnerEngine, count: int, examples: Sequence[Example] | None = None) -> list[tuple[float, float]]:
    """Loss and gradient norm of each."""
    found = []
    for _ in range(count):
        report = engine.step(pack(examples or make_examples(), engine.ranks, BUDGET, engine.version))
        found.append((report.loss, report.grad_norm))
    return found


def sent(engine: LearnerEngine) -> dict[str, Tensor]:
    source = CausalLMSource(engine.module, engine.config.zero_stage, getattr(torch, engine.config.dtype.value), 2**18)
    return {name: weight.clone() for name, weight in source}


def bases(engine: LearnerEngine) -> dict[str, Tensor]:
    """The weights that adapters are added to or that have none: nothing of it may be trained."""
    source = CausalLMSource(engine.module, engine.config.zero_stage, torch.float32, 2**18)
    found = {}
    for bucket in source.buckets:
        with source.gathered(bucket):
            found |= {weight.name: weight.parameter.detach().clone() for weight in bucket}
    return found


def train_and_look(job: Job, out: Path) -> tuple[list[tuple[float, float]], str]:
    """Train, perturb and restore in between, export; then say what is wrong."""
    engine = job.engine()
    before = bases(engine)
    reports = steps(engine, STEPS - 1)
    kept = sent(engine)
    engine.perturb(5, 0.1)
    perturbed = sent(engine)
    engine.restore_weights()
    restored = sent(engine)
    reports += steps(engine, 1)
    trained, after = sent(engine), bases(engine)
    export(engine, out)
    problems = [
        *(f"{name}: the base has moved" for name in before if not torch.equal(before[name], after[name])),
        *(f"{name}: not perturbed" for name in kept if torch.equal(kept[name], perturbed[name])),
        *(f"{name}: not restored" for name in kept if not torch.equal(kept[name], restored[name])),
        *(f"{w.name}: not trained" for w in adapted(engine) if torch.equal(trained[w.name], before[w.name])),
    ]
    engine.close()
    return reports, ", ".join(problems)


def adapted(engine: LearnerEngine) -> list[Any]:
    return [weight for weight in checkpoint_weights(engine.module) if weight.adapter is not None]


@pytest.mark.parametrize("tied", [True, False])
def test_zero_stages_train_the_same_adapters_and_leave_the_base_alone(
    tied: bool, two: Ranks, one: Ranks, tiny_tied: Path, tiny_untied: Path, tmp_path: Path
) -> None:
    path = tiny_tied if tied else tiny_untied
    results = {"alone": one.run(train_and_look, Job(path, 2), tmp_path / "alone")}
    for stage in (0, 2, 3):
        results[str(stage)] = two.run(train_and_look, Job(path, stage), tmp_path / str(stage))
    losses = [loss for loss, _ in results["alone"][0][0]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    initial, expected = load_file(path / "model.safetensors"), load_file(tmp_path / "alone" / "model.safetensors")
    size = distance(initial, expected)
    assert size > 0
    for name, ranks in results.items():
        for reports, problems in ranks:
            assert problems == ""
            assert np.array(reports) == pytest.approx(np.array(results["alone"][0][0]), rel=1e-3)
        assert distance(load_file(tmp_path / name / "model.safetensors"), expected) < 2e-3 * size
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "3", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "3" / "adapter")
    for name, weight in theirs.merge_and_unload().named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name), rtol=1e-5, atol=1e-6)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return sum(float((one[n].double() - other[n].double()).square().sum()) for n in one) ** 0.5


def interrupted_and_not(job: Job, directory: Path) -> tuple[list[Any], list[Any], str]:
    """What follows a checkpoint, in the engine that wrote it and in a new one."""
    engine = job.engine()
    steps(engine, 2)
    save_checkpoint(engine, directory / "checkpoint")
    whole, first = steps(engine, 2), sent(engine)
    restarted = job.engine()
    load_checkpoint(restarted, directory / "checkpoint", directory)
    again, second = steps(restarted, 2), sent(restarted)
    return whole, again, ", ".join(name for name in first if not torch.equal(first[name], second[name]))


@pytest.mark.parametrize(
    ("stage", "dtype", "dropout"),
    [(0, DType.float32, 0.1), (2, DType.bfloat16, 0.0), (3, DType.float32, 0.0), (3, DType.bfloat16, 0.0)],
)
def test_resuming_is_bit_equal(
    stage: int, dtype: DType, dropout: float, two: Ranks, tiny_tied: Path, tmp_path: Path
) -> None:
    for whole, again, differing in two.run(interrupted_and_not, Job(tiny_tied, stage, dtype, dropout), tmp_path):
        assert whole == again and differing == ""
    saved = sum(path.stat().st_size for path in (tmp_path / "checkpoint" / "deepspeed").iterdir())
    assert saved < 4 * (tiny_tied / "model.safetensors").stat().st_size


def with_adapters_off(job: Job, batch: Batch) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """The log-probs of a student after training, and of the same student without its adapters."""
    engine = job.engine()
    steps(engine, STEPS)
    on = logprobs(engine, batch)
    for module in engine.module.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)
    return on, logprobs(engine, batch)


def logprobs(engine: LearnerEngine, batch: Batch) -> list[np.ndarray]:
    """Score each example, in the order of the batch."""
    found = engine.logprobs(replace(batch, policy_version=engine.version))
    return [found[index] for index in sorted(found)]


def test_the_base_of_a_trained_student_is_what_the_fixed_teacher_marks_with(one: Ranks, tiny_tied: Path) -> None:
    examples = [replace(e, trajectory=replace(e.trajectory, temperature=1.0)) for e in make_examples()]
    batch = pack(examples, 1, BUDGET, 0)
    ((on, off),) = one.run(with_adapters_off, Job(tiny_tied, 2), batch)
    trajectories = [example.trajectory for example in examples]
    asked = [ScoringRequest("teacher", item.prompt_ids, item.response_ids) for item in trajectories]
    scores = load_teacher(tiny_tied).score(asked)
    for before, after, signal_of, item in zip(on, off, scores, trajectories, strict=True):
        np.testing.assert_allclose(after, signal_of.logprobs[item.loss_mask], atol=2e-5)
        assert np.abs(before - after).max() > 1e-2


def test_a_run_trains_adapters(series: Series, tiny_tied: Path, tmp_path: Path) -> None:
    """The student is its own teacher, told more; the preflight holds the engine against base and adapters."""
    run = series.run(
        tmp_path / "run", "student.lora.rank=4", f"teacher.model={tiny_tied}", "teacher.context='Say it twice.'",
        "pipeline.steps=4", "pipeline.max_staleness=0", "learner.learning_rate=1e-2",
    )  # fmt: skip
    checks = {c["name"]: c["status"] for c in json.loads((run.run_dir / "preflight.json").read_text())["checks"]}
    assert checks["canary: new weights"] == checks["canary: old weights again"] == Status.passed.value
    assert len({row["train/loss"] for row in run.step_rows()}) == 4
    assert all(row["health/rollout_logprob_gap_max"] < 1e-3 for row in run.step_rows())
    before, after = (run.summary()["evaluation"][name] for name in ("student_before", "student_after"))
    assert before["base_reverse_kl"] == pytest.approx(0, abs=1e-4) and after["base_reverse_kl"] > 1e-3
    assert (run.run_dir / "final" / "adapter" / "adapter_config.json").is_file()
