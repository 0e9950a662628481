"""Collapses planted in real runs of the lab: each is caught soon after its start, and a good run is left alone."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from orchestration.prepare.checkpoints import LAB_MODELS
from tests.integration.launching import KeptWorkers, Run, Series
from tests.integration.planted import teacher_that_never_stops, teacher_that_repeats

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SOON = 10  # steps


@pytest.fixture(scope="module")
def lab(kept_workers: KeptWorkers) -> Series:
    settings = ("evaluation.every=0", "evaluation.prompts=32", "pipeline.steps=20", "learner.learning_rate=1e-3")
    return Series(kept_workers, ("experiment=lab/compatible", *settings))


def alarm_steps(run: Run) -> dict[str, int]:
    """Step of each alarm, by the name of its rule."""
    found = [re.match(r"step (\d+): (\w+): ", text) for text in run.summary()["alarms"]]
    return {match[2]: int(match[1]) for match in found if match}


def start(run: Run, metric: str, change: float) -> int:
    """The first step at which a metric is above its value at the first step by so much."""
    rows = run.step_rows()
    return next(int(row["policy_version"]) for row in rows if row[metric] > rows[0][metric] + change)


def test_a_run_that_succeeds_raises_none(lab: Series, tmp_path: Path) -> None:
    run = lab.run(tmp_path / "run", "learner.learning_rate=5e-4")
    assert run.summary()["alarms"] == run.summary()["remedies"] == []
    assert run.step_rows()[-1]["rollout/accuracy"] > run.step_rows()[0]["rollout/accuracy"]
    for row in run.step_rows():
        assert row["health/stopped_share"] == 1 - row["rollout/truncated_share"]
        assert row["health/correct_share"] == row["rollout/accuracy"] <= row["health/answer_marked_share"]


def test_the_naive_top_k_is_seen_to_lose_its_support(lab: Series, tmp_path: Path) -> None:
    naive = ("objective=naive_student_topk", "objective.unsafe_baseline=true", "objective.k=4")
    run = lab.run(tmp_path / "run", *naive, "learner.learning_rate=2e-3")
    found = alarm_steps(run)["support_mass_lost"] - start(run, "train/student_tail_mass", 0.001)
    assert 0 <= found <= SOON
    assert run.summary()["status"] == "completed" and "alarm: step" in (run.run_dir / "run.log").read_text()


def test_endless_lengths_stop_the_run(lab: Series, tmp_path: Path) -> None:
    teacher = teacher_that_never_stops(tmp_path / "teacher")
    stopping = (f"teacher.model={teacher}", "alarms.rules.endless_lengths.remedy=stop", "pipeline.steps=30")
    run = lab.run(tmp_path / "run", *stopping, exit_code=3)
    step, summary = alarm_steps(run)["endless_lengths"], run.summary()
    assert 0 <= step - start(run, "rollout/truncated_share", 0.1) <= SOON
    assert (summary["status"], summary["steps"], run.steps()[-1]) == ("stopped", step, step)
    assert summary["remedies"] == [f"stop after step {step} (endless_lengths): final/ is step {step}"]
    assert summary["evaluation"]["student_after"]["truncated_share"] > 0.1
    assert (run.run_dir / "final" / "model.safetensors").is_file()

    lab.run(run.run_dir, *stopping, "resume=auto", f"pipeline.steps={step + 1}")
    assert run.steps() == list(range(1, step + 2)) and run.summary()["status"] == "completed"
    assert run.summary()["remedies"] == summary["remedies"]


def test_repetition_rolls_the_run_back_to_the_initial_student(lab: Series, tmp_path: Path) -> None:
    teacher = teacher_that_repeats(tmp_path / "teacher")
    run = lab.run(tmp_path / "run", f"teacher.model={teacher}", "alarms.rules.repetition.remedy=roll_back", exit_code=3)
    step, summary = alarm_steps(run)["repetition"], run.summary()
    assert 0 <= step - start(run, "health/repetition", 0.1) <= SOON
    assert (summary["status"], summary["steps"]) == ("stopped", 0)
    assert summary["remedies"] == [f"roll_back after step {step} (repetition): final/ is step 0"]
    initial, final = (
        load_file(folder / "model.safetensors") for folder in (LAB_MODELS / "student", run.run_dir / "final")
    )
    assert all((final[name].float() == weight.float()).all() for name, weight in initial.items())
