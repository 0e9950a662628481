"""Off-line distillation: the teacher scores the data's completions once, and runs only read."""

import json
from pathlib import Path

import pytest

from tests.integration.launching import Run, Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

OFFLINE = (
    "objective=teacher_topk_forward_kl",
    "objective.sequences.on_policy_fraction=0",
    "objective.sequences.other_source=dataset",
    "data.train.completion_column=completion",
    "pipeline.steps=2",
    "pipeline.max_staleness=0",
    "scoring.max_tokens_per_forward=1",  # one request a forward: how they meet in a packed one changes the last bits
    "checkpoint.every=0",
    "cluster.cpus=4",
)


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in run.step_rows()]


def test_marks_computed_before_a_run_are_those_of_the_run(series: Series, tmp_path: Path) -> None:
    cache = f"scoring.cache_dir={tmp_path / 'marks'}"
    filled = series.run(tmp_path / "fill", *OFFLINE, cache, command="precompute")
    assert "8 completions of" in filled.text()
    assert "0 of 8 requests were there already, 8 were not" in filled.text()
    again = series.run(tmp_path / "again", *OFFLINE, cache, command="precompute")
    assert "8 of 8 requests were there already" in again.text()

    read = series.run(tmp_path / "read", *OFFLINE, cache, "teacher.backend=cache")
    assert "8 of 8 requests were there already" in read.text()
    computed = series.run(tmp_path / "computed", *OFFLINE, "preflight.enabled=false")
    assert losses(read) == losses(computed) and len(losses(read)) == 2

    evaluation = read.summary()["evaluation"]
    assert evaluation["student_after"]["mean_response_tokens"] > 0
    assert evaluation["student_after"]["reverse_kl"] is None and evaluation["teacher"] is None
    checks = {row["name"]: row for row in json.loads((read.run_dir / "preflight.json").read_text())["checks"]}
    assert "not checked" in checks["canary: teacher's scores"]["seen"]


def test_a_response_that_nobody_marked_ends_the_run_with_the_way_to_mark_it(series: Series, tmp_path: Path) -> None:
    cache = f"scoring.cache_dir={tmp_path / 'marks'}"
    one_step = "pipeline.steps=1"
    series.run(tmp_path / "fill", *OFFLINE, one_step, cache, command="precompute")
    quick = "preflight.enabled=false"
    run = series.run(tmp_path / "run", *OFFLINE, quick, cache, "teacher.backend=cache", exit_code=1)
    said = (run.run_dir / "run.log").read_text()  # in lines of any length
    assert "no scores are kept of a response" in said and "orchestration.precompute" in said
