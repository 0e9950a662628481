"""What a step tells of the student's responses, and of the signal that it had."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.monitors import compression_ratio, repetition, signal_monitors, text_monitors
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
    found = text_monitors(own, ["#### 4", "Wait, maybe 5? Await.", r"\boxed{3}", "5555"])
    assert found["health/stopped_share"] == 0.5
    assert found["health/answer_marked_share"] == 0.5
    assert found["health/correct_share"] == 0.25
    assert found["health/repetition"] == pytest.approx(0.5 / 4)  # one of the last one's two 3-grams
    assert found["health/hedges_per_1k_tokens"] == 1000 * 2 / 16


def test_without_a_verifier_or_the_students_own_responses_there_is_less_to_say() -> None:
    assert not {"health/correct_share", "health/answer_marked_share"} & text_monitors([response([1])], ["a"]).keys()
    assert text_monitors([], []) == {}


def test_the_signal_is_read_as_far_as_it_goes() -> None:
    before = {"train/reverse_kl": 0.4}
    found = signal_monitors(
        {"train/reverse_kl": 0.3, "train/student_tail_mass": 0.1, "train/importance_ratio": 0.95}, before
    )
    assert found == pytest.approx(
        {"health/absorption_rate": 0.25, "health/support_mass": 0.9, "health/importance_ratio_drift": 0.05}
    )
    assert signal_monitors({"train/reverse_kl": 0.3}, {}) == {}
    assert signal_monitors({"train/sampled_reverse_kl": 0.3}, before) == {}
