"""Recipes that need more of a run than a rollout and a teacher's scores, through the real command.

The teacher has the student's initial weights and is told more, so that it needs no engine of its own.
"""

import shutil
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from tests.integration.launching import Run, Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

# One request a forward: how requests meet in a packed one changes the last bits.
STRICT = (
    "pipeline.max_staleness=0",
    "pipeline.steps=2",
    "scoring.max_tokens_per_forward=1",
    "checkpoint.every=0",
    "learner.warmup_steps=0",  # the second step sees new weights
)
STREAMING = ("pipeline.max_staleness=1", "pipeline.steps=4", "checkpoint.every=0")


@pytest.fixture(scope="module")
def settings(settings: list[str], tiny_tied: Path) -> list[str]:
    return [*settings, f"teacher.model={tiny_tied}", "teacher.context=Light travels fast.", "cluster.cpus=4"]


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in run.step_rows()]


def test_a_reference_with_the_initial_weights_cancels_the_student_in_the_first_step(
    series: Series, tmp_path: Path, tiny_tied: Path
) -> None:
    plain = losses(series.run(tmp_path / "plain", "objective=sampled_reverse_kl", *STRICT))
    served_by_teacher = series.run(tmp_path / "run", "objective=reward_extrapolation", *STRICT)
    first, second = losses(served_by_teacher)
    assert first == pytest.approx(1.25 * plain[0], rel=1e-4)
    assert abs(second / (1.25 * plain[1]) - 1) > 1e-3

    copy = shutil.copytree(tiny_tied, tmp_path / "copy")
    of_its_own = series.run(
        tmp_path / "other", "objective=reward_extrapolation", f"objective.reference.model={copy}", *STRICT
    )
    assert losses(of_its_own) == pytest.approx([first, second], rel=1e-4)
    logs = [{path.stem for path in (run.run_dir / "logs").iterdir()} for run in (served_by_teacher, of_its_own)]
    assert "reference-0" not in logs[0] and "reference-0" in logs[1]


def test_half_of_the_sequences_are_the_teachers(series: Series, tmp_path: Path) -> None:
    run = series.run(tmp_path / "run", "objective=gkd", "evaluation.teacher=true", *STREAMING)
    rows = run.step_rows()
    origins = [sample["origin"] for sample in run.samples()]
    assert len(origins) == 16 and set(origins) == {"student", "teacher"}
    for row, start in zip(rows, range(0, 16, 4), strict=True):
        assert row.get("rollout/on_policy_fraction", 1.0) == origins[start : start + 4].count("student") / 4
        assert 0 <= row["rollout/staleness_max"] <= 1
    for sample in run.samples():
        assert (sample["student_logprobs"] is None) == (sample["origin"] == "teacher")
    assert run.summary()["evaluation"]["teacher"]["n_prompts"] == 4


def test_the_data_can_be_learned_from(series: Series, tmp_path: Path) -> None:
    states = ("objective.sequences.on_policy_fraction=0", "objective.sequences.other_source=dataset")
    run = series.run(tmp_path / "run", "objective=full_forward_kl", *states, *STREAMING)
    rows = run.step_rows()
    assert {row["rollout/on_policy_fraction"] for row in rows} == {0}
    assert run.summary()["tokens"]["rollout"] == 0 < run.summary()["tokens"]["trained"]
    for sample in run.samples():
        words = sample["prompt"].split("train ")[1].split(" ?")[0]
        assert words.startswith(sample["response"]) and sample["response"]  # cut where a response would be


def test_task_rewards_are_compared_within_whole_groups_and_gates_hold_back(series: Series, tmp_path: Path) -> None:
    groups = ("sampling.samples_per_prompt=2", "data.verifier=exact", "objective.gate.only_finished=true")
    run = series.run(tmp_path / "run", "objective=task_reward_mix", *groups, *STREAMING)
    rows = run.step_rows()
    for _, batch in groupby(enumerate(run.samples()), key=lambda pair: pair[0] // 4):
        assert set(Counter(sample["prompt_id"] for _, sample in batch).values()) == {2}
    for row in rows:
        assert row["rollout/accuracy"] == 0 and row["rollout/staleness_max"] <= 1
        assert row.get("train/gated_share", 0.0) == row["rollout/truncated_share"]
    assert max(row["rollout/truncated_share"] for row in rows) > 0


@pytest.mark.parametrize("preset", ["tropd", "union_tail", "minillm"])
def test_what_else_a_teacher_can_be_asked_for(preset: str, series: Series, tmp_path: Path) -> None:
    run = series.run(tmp_path / "run", f"objective={preset}", *STREAMING)
    rows = run.step_rows()
    assert len(rows) == 4 and all(row["train/grad_norm"] > 0 for row in rows)
    for name in ("overlap_ratio", "overlap_mass_teacher", "entropy_gap", "sampled_reverse_kl"):
        assert all(f"train/{name}" in row and f"train/{name}/tokens_0_1" in row for row in rows)
    before, after = (run.summary()["evaluation"][f"student_{when}"]["reverse_kl"] for when in ("before", "after"))
    assert after != before
