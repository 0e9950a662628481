"""Checkpoints of the DeepSpeed learner with real ranks: going on is bit-equal, and what is doubtful is refused."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from learner.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from learner.export import export
from learner.packing import pack
from learner.records import Example, StepReport
from tests.integration.learner.jobs import BUDGET, Job, settings, weights
from tests.integration.ranks import Ranks
from tests.learner.examples import make_examples
from tutelage.files import hashes_of
from tutelage.settings import DType

pytestmark = pytest.mark.integration


# What runs on the ranks.


def go_back(job: Job, examples: Sequence[Example], ranks: int, directory: Path) -> list[StepReport]:
    """A step, and the same step again from a checkpoint of the initial weights that the same engine loads."""
    engine = job.engine()
    save_checkpoint(engine, directory / "checkpoint")
    reports = []
    for _ in range(2):
        reports.append(engine.step(pack(examples, ranks, BUDGET, engine.version)))
        load_checkpoint(engine, directory / "checkpoint", directory)
    export(engine, directory / "initial")
    return reports


def train_with_a_restart(job: Job, examples: Sequence[Example], ranks: int, directory: Path) -> None:
    """Two steps, a checkpoint, two more; then the same two from the checkpoint in a new engine."""
    engine = job.engine()
    for _ in range(2):
        engine.step(pack(examples, ranks, BUDGET, engine.version))
    save_checkpoint(engine, directory / "checkpoint")
    drawn = torch.rand(3)
    for _ in range(2):
        engine.step(pack(examples, ranks, BUDGET, engine.version))
    export(engine, directory / "uninterrupted")

    restarted = job.engine()
    load_checkpoint(restarted, directory / "checkpoint", directory)
    assert restarted.version == 2
    assert torch.equal(torch.rand(3), drawn)
    again = restarted.step(pack(examples, ranks, BUDGET, 1))  # applied before the checkpoint
    assert again.policy_version == 2 and restarted.version == 2
    for _ in range(2):
        restarted.step(pack(examples, ranks, BUDGET, restarted.version))
    export(restarted, directory / "resumed")


class Harmful:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def load_only(job: Job, checkpoint: Path, run_directory: Path) -> str:
    engine = job.engine()
    try:
        load_checkpoint(engine, checkpoint, run_directory)
    except CheckpointError as error:
        return str(error)
    return ""


# Going on, and what is refused.


def test_a_file_that_would_run_code_is_refused_and_runs_none(one: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    job, run = Job(tiny_tied, settings()), tmp_path / "run"
    one.run(train_with_a_restart, job, make_examples(), 1, run)
    checkpoint = run / "checkpoint"
    (weights_file, *_) = sorted((checkpoint / "deepspeed").glob("*model_states.pt"))
    torch.save({"module": Harmful(tmp_path / "trace")}, weights_file)
    (checkpoint / "manifest.json").write_text(json.dumps(hashes_of(checkpoint, but="manifest.json")))
    (error,) = one.run(load_only, job, checkpoint, run)
    assert f"{weights_file.name} holds more than numbers" in error
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, DType.float32), (2, DType.float32), (2, DType.bfloat16), (3, DType.bfloat16)]
)
def test_resuming_is_bit_equal(stage: int, dtype: DType, two: Ranks, tiny_untied: Path, tmp_path: Path) -> None:
    two.run(train_with_a_restart, Job(tiny_untied, settings(stage, dtype=dtype)), make_examples(), 2, tmp_path)
    expected, resumed = weights(tmp_path / "uninterrupted"), weights(tmp_path / "resumed")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_learner_goes_back_to_where_it_began(stage: int, one: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    ((first, again),) = one.run(go_back, Job(tiny_tied, settings(stage)), make_examples(), 1, tmp_path)
    assert (first.loss, first.grad_norm, first.policy_version) == (again.loss, again.grad_norm, again.policy_version)
    before, after = weights(tiny_tied), weights(tmp_path / "initial")
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_a_doubtful_checkpoint_is_refused(one: Ranks, tiny_tied: Path, tmp_path: Path) -> None:
    job = Job(tiny_tied, settings())
    run = tmp_path / "run"
    one.run(train_with_a_restart, job, make_examples(), 1, run)
    checkpoint = run / "checkpoint"

    def refusal(where: Path = run, other: Job = job) -> str:
        return one.run(load_only, other, checkpoint, where)[0]

    assert refusal() == ""
    assert "is not under the run directory" in refusal(tmp_path / "elsewhere")
    assert "learner.zero_stage=2, this run has 0" in refusal(other=Job(tiny_tied, settings(0)))
    saved = sorted(p for p in (checkpoint / "deepspeed").iterdir() if p.suffix == ".pt")[0]
    intact = saved.read_bytes()
    saved.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert f"deepspeed/{saved.name} was altered" in refusal()
    saved.unlink()
    assert f"deepspeed/{saved.name} is missing" in refusal()
    saved.write_bytes(intact)
    (checkpoint / "extra.pt").write_bytes(b"")
    assert "extra.pt was added" in refusal()
    (checkpoint / "extra.pt").unlink()
    assert refusal() == ""
    (checkpoint / "manifest.json").unlink()
    assert "never completed" in refusal()
