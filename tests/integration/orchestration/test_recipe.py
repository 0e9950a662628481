"""A recipe of two stages by `python -m orchestration.launch`, stopped twice, on tiny models and real engines."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestration.results.tracker import read_metrics
from orchestration.runs.artifact import verify
from tests.integration.launching import Launched, Run, Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

SETTINGS = (
    'recipe.stages=[{name: warm, overrides: ["pipeline.steps=2", "objective=full_forward_kl"]},'
    ' {name: main, overrides: ["pipeline.steps=40", "teacher.model=stage:warm"]}]',
    "teacher.model=${student.model}",  # taught by itself, told something: no engine for the teacher's answers
    "teacher.context=Winter nights are long and cold.",
    "checkpoint.every=2",
)


def steps(folder: Path) -> list[int]:
    if not (folder / "metrics.jsonl").exists():
        return []
    return [int(row["policy_version"]) for row in read_metrics(folder) if "train/loss" in row]


def times(folder: Path) -> dict[Path, int]:
    """When each file was written; W&B's process closes its own log a moment after it was killed."""
    files = [path for path in folder.rglob("*") if path.is_file() and "wandb" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def recipe(launch: Callable[..., Launched], series: Series, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Killed in its second stage, resumed, interrupted there by Ctrl-C, and resumed again."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    warm, main = folder / "1-warm", folder / "2-main"
    killed = launch(folder, *SETTINGS)
    killed.wait_until(lambda: 3 in steps(main), 800)
    killed.kill(signal.SIGKILL)
    killed.process.wait(30)
    assert not (folder / "summary.json").exists()
    left = times(warm)

    interrupted = launch(folder, *SETTINGS)
    interrupted.wait_until(lambda: max(steps(main), default=0) > 6, 400)
    interrupted.kill(signal.SIGINT)
    assert interrupted.wait(120) == 130, interrupted.text()
    assert interrupted.summary()["status"] == "interrupted"
    assert [stage["status"] for stage in interrupted.summary()["stages"]] == ["completed", "interrupted"]

    resumed = series.run(folder, *SETTINGS, "resume=auto")
    assert times(warm) == left
    return resumed


def test_every_stage_is_trained_once_and_leaves_what_a_run_leaves(recipe: Run) -> None:
    for name, count in (("1-warm", 2), ("2-main", 40)):
        folder = recipe.run_dir / name
        assert steps(folder) == list(range(1, count + 1))
        for left in (
            "config.yaml",
            "versions.json",
            "run.log",
            "summary.json",
            "report.html",
            "final/config.json",
        ):
            assert (folder / left).is_file(), left
        assert verify(folder).stage == name[2:]
    log = (recipe.run_dir / "2-main" / "run.log").read_text()
    assert "the workers that are there go on" in log and "continuing from" in log


def test_the_second_stage_begins_with_the_model_of_the_first(recipe: Run, tiny_tied: Path) -> None:
    answers = [
        json.loads((recipe.run_dir / name / "evaluations" / f"{role}.json").read_text())["texts"]
        for name, role in (("1-warm", "student_after"), ("2-main", "student_before"))
    ]
    assert answers[0] == answers[1]
    weights = [
        load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        for folder in (tiny_tied, recipe.run_dir / "1-warm" / "final", recipe.run_dir / "2-main" / "final")
    ]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_the_summary_has_the_outcome_of_each_stage(recipe: Run) -> None:
    summary = recipe.summary()
    assert summary["status"] == "completed"
    assert [stage["status"] for stage in summary["stages"]] == ["completed", "completed"]
    assert [stage["summary"]["steps"] for stage in summary["stages"]] == [2, 40]
    for stage in summary["stages"]:
        assert (recipe.run_dir / stage["artifact"]).is_file()
