"""One experiment of the lab, on the models that are shipped: a compatible and stronger teacher helps, and it shows."""

from pathlib import Path

import pytest

from orchestration.lab.outcome import Outcome
from orchestration.prepare.checkpoints import LAB_MODELS
from tests.integration.launching import KeptWorkers, Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_a_compatible_teacher_helps(kept_workers: KeptWorkers, tmp_path: Path) -> None:
    lab = Series(kept_workers, ["experiment=lab/compatible", "pipeline.steps=20"])
    run = lab.run(tmp_path / "run", "evaluation.prompts=128", "evaluation.every=0")
    outcome = Outcome.read(run.run_dir)
    teacher = outcome.accuracy_teacher
    assert teacher is not None and teacher > outcome.accuracy_before + 0.3
    assert outcome.gain > 0.1
    assert outcome.last("train/reverse_kl") < 0.8 * outcome.first("train/reverse_kl")
    assert outcome.change("train/overlap_mass_student") > 0
    assert outcome.change("train/overlap_token_advantage") > 0
    assert outcome.change("train/entropy_gap") < 0
    whole, parts = outcome.steps[0]["train/overlap_ratio"], outcome.steps[0]
    buckets = [value for name, value in parts.items() if name.startswith("train/overlap_ratio/")]
    assert len(buckets) > 3 and min(buckets) < whole < max(buckets)


def test_what_is_shipped_is_small() -> None:
    assert sum(path.stat().st_size for path in LAB_MODELS.rglob("*") if path.is_file()) < 20 * 2**20
