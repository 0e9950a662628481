"""Gap recovery, intervals and the stage clock."""

import time
from pathlib import Path

import numpy as np
import pytest

from diagnostics.intervals import Interval, ratio_interval
from orchestration.pipeline.progress import StageClock
from orchestration.results.summary import Answers, Evaluation, EvaluationStore, gap_recovery


def scores(before: float | None, after: float | None, teacher: float | None) -> dict[str, Evaluation | None]:
    return {
        role: Evaluation(n_prompts=1, mean_response_tokens=1.0, truncated_share=0.0, accuracy=accuracy)
        for role, accuracy in zip(("student_before", "student_after", "teacher"), (before, after, teacher), strict=True)
    }


@pytest.mark.parametrize(
    ("before", "after", "teacher", "expected"),
    [
        (0.2, 0.5, 0.8, 0.5),
        (0.2, 0.1, 0.4, -0.5),
        (0.5, 0.9, 0.5, None),
        (0.5, 0.9, 0.4, None),
        (None, None, None, None),
    ],
)
def test_gap_recovery(before: float, after: float, teacher: float, expected: float | None) -> None:
    found = gap_recovery(scores(before, after, teacher))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_interval_is_of_tokens_not_of_prompts() -> None:
    totals, tokens = np.array([1.0, 30.0]), np.array([1.0, 10.0])
    assert ratio_interval(totals, tokens).mean == pytest.approx(31 / 11)


def test_the_interval_covers_the_mean_at_about_its_level() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        interval = ratio_interval(rng.exponential(size=40), np.ones(40))
        covered += interval.low <= 1.0 <= interval.high
    assert 170 <= covered <= 199


def test_overlapping_spans_of_a_stage_count_once() -> None:
    clock = StageClock({"rollout": 5.0})
    with clock.span("rollout"), clock.span("rollout"):
        assert clock.active("rollout") == 2
        time.sleep(0.05)
    assert 5.05 <= clock.seconds("rollout") < 5.09


@pytest.mark.parametrize("damage", ["cut", "flip", "another version"])
def test_a_damaged_evaluation_is_put_aside_and_counts_as_none(damage: str, tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path)
    answers = Answers(Evaluation(4, 8.0, 0.5, intervals={"accuracy": Interval(0.5, 0.25, 0.75)}), {"p": "é"})
    store.keep("student_before", answers)
    store.keep("teacher", answers)
    assert store.load() == {"student_before": answers, "teacher": answers}
    path = tmp_path / "evaluations" / "student_before.json"
    content = path.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "flip": content.replace(b"8.0", b"9.0"),
        "another version": b'{"evaluation": {"prompts": 4, "intervals": {}}, "texts": {}}',
    }
    path.write_bytes(damaged[damage])
    assert not store.has("student_before") and store.load() == {"teacher": answers}
    assert sorted(p.name for p in path.parent.iterdir()) == ["student_before.damaged", "teacher.json"]
    store.keep("student_before", answers)
    assert store.load() == {"student_before": answers, "teacher": answers}
