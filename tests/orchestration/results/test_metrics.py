"""What a step reports of a batch whose sequences are not all the student's, or not all learned from."""

from dataclasses import replace

import numpy as np
import pytest

from learner.records import Example, StepReport
from orchestration.results.metrics import health_metrics, step_metrics
from orchestration.results.samples import SHOWN_TOP, sample
from tests.learner.examples import make_example
from tests.models import make_tokenizer
from tutelage.records.trajectory import FinishReason, Origin, RolloutRequest, foreign_trajectory

REPORT = StepReport(
    policy_version=3,
    loss=1.0,
    grad_norm=1.0,
    learning_rate=1e-3,
    loss_tokens=10,
    seconds=1.0,
    cpu_seconds=1.0,
    metrics={},
)


def own(slot: int, reward: float) -> Example:
    example = make_example(slot, 4, 6)
    return replace(example, trajectory=replace(example.trajectory, reward=reward))


def others(slot: int, reward: float) -> Example:
    example = own(slot, reward)
    t = example.trajectory
    request = RolloutRequest(slot, t.prompt_id, 0, t.prompt_ids, seed=0, max_tokens=6)
    foreign = foreign_trajectory(request, t.response_ids, FinishReason.LENGTH, Origin.DATASET)
    return replace(example, trajectory=replace(foreign, reward=reward))


def test_plain_batches_report_neither_share() -> None:
    metrics = step_metrics([own(0, 1.0), own(1, 0.0)], REPORT, {})
    assert metrics["rollout/accuracy"] == 0.5 and metrics["rollout/staleness_max"] == 2
    assert not {"rollout/on_policy_fraction", "train/gated_share"} & metrics.keys()


def test_the_learners_metrics_keep_their_names() -> None:
    report = replace(REPORT, metrics={"overlap_ratio": 0.75, "overlap_ratio/tokens_4_8": 0.5})
    metrics = step_metrics([own(0, 1.0)], report, {})
    assert metrics["train/overlap_ratio"] == 0.75 and metrics["train/overlap_ratio/tokens_4_8"] == 0.5


def test_accuracy_and_age_are_the_students_own() -> None:
    metrics = step_metrics([own(0, 0.25), others(1, 1.0), others(2, 1.0), others(3, 1.0)], REPORT, {})
    assert metrics["rollout/accuracy"] == 0.25 and metrics["rollout/on_policy_fraction"] == 0.25
    assert metrics["rollout/staleness_mean"] == 2
    assert np.isfinite(list(metrics.values())).all()


def test_responses_that_took_the_verifier_too_long_are_counted() -> None:
    late = own(2, 0.0)
    late = replace(late, trajectory=replace(late.trajectory, grading_overran=True))
    metrics = step_metrics([own(0, 1.0), own(1, 0.0), late], REPORT, {})
    assert metrics["rollout/grading_timeouts"] == 1 and metrics["rollout/accuracy"] == pytest.approx(1 / 3)
    assert step_metrics([own(0, 1.0)], REPORT, {})["rollout/grading_timeouts"] == 0


def test_a_batch_without_the_student_is_never_stale() -> None:
    metrics = step_metrics([others(0, 1.0), others(1, 1.0)], REPORT, {})
    assert metrics["rollout/on_policy_fraction"] == metrics["rollout/staleness_max"] == 0
    assert not {"rollout/accuracy", "rollout/grading_timeouts"} & metrics.keys()


def test_gated_trajectories_are_counted() -> None:
    batch = [replace(own(slot, 1.0), weight=float(slot == 0)) for slot in range(4)]
    assert step_metrics(batch, REPORT, {})["train/gated_share"] == 0.75


def test_without_a_teacher_nothing_is_said_of_it() -> None:
    bare = replace(own(0, 1.0), signal=None)
    assert not [name for name in step_metrics([bare], REPORT, {}) if name.startswith("teacher/")]
    shown = sample(bare, make_tokenizer())
    assert shown.teacher_logprobs is None and shown.mean_log_ratio is None and shown.student_logprobs is not None


def test_samples_name_their_origin() -> None:
    tokenizer = make_tokenizer()
    mine, theirs = sample(own(0, 1.0), tokenizer), sample(others(0, 1.0), tokenizer)
    assert (mine.origin, theirs.origin) == ("student", "dataset")
    assert mine.student_logprobs is not None and mine.mean_log_ratio == pytest.approx(mine.mean_log_ratio)
    assert theirs.student_logprobs is None and theirs.mean_log_ratio is None
    assert mine.teacher_logprobs == theirs.teacher_logprobs


def test_samples_show_what_either_model_would_have_written() -> None:
    tokenizer = make_tokenizer()
    example = own(0, 1.0)
    trajectory, signal = example.trajectory, example.signal
    assert signal is not None
    ids = np.tile(np.arange(10, 17, dtype=np.int32), (6, 1))
    ids[2, 1] = trajectory.response_ids[2]
    logprobs = np.linspace(-0.5, -4, 7, dtype=np.float32) * np.ones((6, 1), dtype=np.float32)
    seen = replace(
        example,
        trajectory=replace(trajectory, candidate_ids=ids),
        signal=replace(signal, support_ids=ids, support_logprobs=logprobs, top_ids=ids[:, ::-1], top_logprobs=logprobs),
    )
    shown = sample(seen, tokenizer)
    assert shown.student_top is not None and shown.teacher_top is not None
    assert [len(top) for top in (*shown.student_top, *shown.teacher_top)] == [SHOWN_TOP] * 12
    text, student, teacher = shown.student_top[2][1]
    assert text == shown.tokens[2] and student == shown.student_logprobs[2]  # type: ignore[index]
    assert teacher == pytest.approx(logprobs[2, 1], abs=1e-4)
    assert shown.teacher_top[0][0][0] == tokenizer.decode([16]) and shown.teacher_top[0][0][2] == -0.5
    assert {item[1] for item in shown.student_top[2][2:]} == {None}


def test_samples_without_candidates_show_none() -> None:
    example = own(0, 1.0)
    bare = replace(example, trajectory=replace(example.trajectory, candidate_ids=None))
    assert bare.signal is not None
    shown = sample(replace(bare, signal=replace(bare.signal, top_ids=None)), make_tokenizer())
    assert shown.student_top is None and shown.teacher_top is None


def test_health_is_of_the_students_own_responses() -> None:
    tokenizer = make_tokenizer()
    batch = [own(0, 1.0), others(1, 0.0), others(2, 0.0)]  # others' are cut off
    found = health_metrics(batch, tokenizer, {"train/reverse_kl": 0.3}, {"train/reverse_kl": 0.6})
    assert found["health/stopped_share"] == found["health/correct_share"] == 1
    assert found["health/absorption_rate"] == 0.5
    assert "health/repetition" not in health_metrics(batch[1:], tokenizer, {}, {})


def test_shares_of_another_tokenizer_are_reported_and_what_is_unknown_is_left_out() -> None:
    example = own(0, 1.0)
    signal, mask = example.signal, example.trajectory.loss_mask
    assert signal is not None and signal.entropy is not None and mask.sum() >= 3
    places = np.flatnonzero(mask)
    known = np.ones(6, np.bool_)
    known[places[0]] = False
    merged = np.isin(np.arange(6), places[1:2])
    across = replace(
        signal,
        logprobs=np.where(known, signal.logprobs, np.nan).astype(np.float32),
        entropy=np.where(known & ~merged, signal.entropy, np.nan).astype(np.float32),
        known=known,
        merged=merged,
        spans=np.arange(6),
    )
    metrics = step_metrics([replace(example, signal=across)], REPORT, {})
    assert metrics["teacher/unmatched_share"] == pytest.approx(1 / len(places))
    assert metrics["teacher/merged_share"] == pytest.approx(1 / (len(places) - 1))
    assert metrics["teacher/mean_logprob"] == pytest.approx(float(signal.logprobs[places[1:]].mean()))
    assert metrics["teacher/mean_entropy"] == pytest.approx(float(signal.entropy[places[2:]].mean()))
    shown = sample(replace(example, signal=across), make_tokenizer())
    assert shown.teacher_logprobs is not None and shown.teacher_logprobs[places[0]] is None
    assert shown.mean_log_ratio is not None and np.isfinite(shown.mean_log_ratio)
