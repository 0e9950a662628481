"""What a step tells of the student's responses, and of the signal that it had."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import monitors
from diagnostics.alarms import Watch
from diagnostics.config import AlarmRule
from diagnostics.monitors import MONITORS, Step, compression_ratio, measure, repetition
from tests.learner.examples import make_example
from tutelage.records.trajectory import FinishReason, Trajectory


def response(ids: list[int], reason: FinishReason = FinishReason.STOP, reward: float | None = None) -> Trajectory:
    trajectory = make_example(0, 4, len(ids)).trajectory
    return replace(trajectory, response_ids=np.array(ids, np.int32), finish_reason=reason, reward=reward)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_repetition_counts_the_ngrams_that_were_there_before(ids: list[int], n: int) -> None:
    grams = [ids[i : i + n] for i in range(len(ids) - n + 1)]
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repetition(ids, n) == pytest.approx(again / len(grams) if grams else 0.0)


def test_a_loop_repeats_and_compresses_and_prose_does_not() -> None:
    assert repetition([7, 8] * 20, 3) > 0.9 and repetition(list(range(40)), 3) == 0
    assert compression_ratio("so it goes " * 50) > 10 > 3 > compression_ratio("Light travels fast, sound does not.")
    assert compression_ratio("") == 1


def test_shares_are_counted_each_by_itself() -> None:
    own = [
        response([1, 2, 3, 4], reward=1.0),
        response([1, 2, 3, 4], FinishReason.LENGTH, reward=0.0),
        response([1, 2, 3, 4], reward=0.5),
        response([5, 5, 5, 5], FinishReason.LENGTH, reward=0.0),
    ]
    found = measure(Step(own, ["#### 4", "Wait, maybe 5? Await.", r"\boxed{3}", "5555"]))
    assert found["health/stopped_share"] == 0.5
    assert found["health/answer_marked_share"] == 0.5
    assert found["health/correct_share"] == 0.25
    assert found["health/repetition"] == pytest.approx(0.5 / 4)  # one of the last one's two 3-grams
    assert found["health/hedges_per_1k_tokens"] == 1000 * 2 / 16


def test_without_a_verifier_or_the_students_own_responses_there_is_less_to_say() -> None:
    assert not {"health/correct_share", "health/answer_marked_share"} & measure(Step([response([1])], ["a"])).keys()
    assert measure(Step()) == {}


def test_the_signal_is_read_as_far_as_it_goes() -> None:
    before = {"train/reverse_kl": 0.4}
    metrics = {"train/reverse_kl": 0.3, "train/student_tail_mass": 0.1, "train/importance_ratio": 0.95}
    assert measure(Step(metrics=metrics, before=before)) == pytest.approx(
        {"health/absorption_rate": 0.25, "health/support_mass": 0.9, "health/importance_ratio_drift": 0.05}
    )
    assert measure(Step(metrics={"train/reverse_kl": 0.3})) == {}
    assert measure(Step(metrics={"train/sampled_reverse_kl": 0.3}, before=before)) == {}


def test_a_monitor_of_ones_own_is_one_registration_and_an_alarm_can_watch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = type(MONITORS)[monitors.Monitor](MONITORS.key)
    registry.add("shouting", lambda step: float(np.mean([text.isupper() for text in step.texts])))
    registry.add("undefined", lambda step: float("nan"))
    registry.add("silent", lambda step: None)
    monkeypatch.setattr(monitors, "MONITORS", registry)
    numbers = measure(Step([response([1])] * 2, ["HELP", "well"]))
    assert numbers == {"health/shouting": 0.5}
    (alarm,) = Watch({"shouts": AlarmRule("health/shouting", 0.4, window=1)}).observe(1, numbers)
    assert alarm.name == "shouts"
