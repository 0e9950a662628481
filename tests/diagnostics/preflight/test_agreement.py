"""Two programs' log-probs of the same tokens: agreement, rounding, and every planted fault."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diagnostics.check import Status
from diagnostics.preflight.agreement import (
    Tolerance,
    check_agreement,
    check_new_weights,
    check_packing,
    check_quantised,
    check_response_ends,
    check_restored,
    check_teacher_differs,
    gap,
)
from scoring.backends.quantization import QuantizationBias

Logprobs = list[NDArray[np.float32]]
FLOAT32 = Tolerance.of(["float32", "float32"])
SIDES = ("engine", "learner")


def logprobs(seed: int = 0, lengths: tuple[int, ...] = (1, 16, 9, 16)) -> Logprobs:
    generator = np.random.default_rng(seed)
    return [-generator.exponential(2.0, length).astype(np.float32) for length in lengths]


def moved(values: Logprobs, size: float, seed: int = 1) -> Logprobs:
    generator = np.random.default_rng(seed)
    return [(v + generator.normal(0, size, len(v))).astype(np.float32) for v in values]


def status(ours: Logprobs, theirs: Logprobs, tolerance: Tolerance = FLOAT32) -> Status:
    return check_agreement("canary", SIDES, ours, theirs, tolerance).status


def test_rounding_passes_and_more_than_rounding_does_not() -> None:
    ours = logprobs()
    assert status(ours, moved(ours, 1e-4)) is Status.passed
    assert status(ours, moved(ours, 1e-2)) is Status.warned
    assert status(ours, moved(ours, 0.2)) is Status.failed
    assert status(ours, moved(ours, 1e-2), Tolerance.of(["float32", "bfloat16"])) is Status.passed


def test_what_a_sequence_is_packed_with_must_not_matter() -> None:
    alone = logprobs()
    assert check_packing("learner", moved(alone, 1e-5), alone, FLOAT32).status is Status.passed
    check = check_packing("learner", moved(alone, 2.8), alone, FLOAT32)
    assert check.status is Status.failed and check.name == "canary: learner, long beside short"
    assert "rotary frequencies" in check.fix


@pytest.mark.parametrize("shift", [-1, 1])
def test_scores_that_are_off_by_one_fail_and_are_named(shift: int) -> None:
    ours = logprobs()
    check = check_agreement("canary", SIDES, ours, [np.roll(v, shift) for v in ours], FLOAT32)
    assert check.status is Status.failed and "off by one" in check.seen


def test_a_cut_response_and_missing_numbers_fail() -> None:
    ours = logprobs()
    cut = check_agreement("canary", SIDES, ours, [v[:-1] if len(v) > 1 else v for v in ours], FLOAT32)
    assert cut.status is Status.failed and "a response was cut" in cut.seen
    holes = [v.copy() for v in ours]
    holes[1][3] = np.nan
    check = check_agreement("canary", SIDES, ours, holes, FLOAT32)
    assert check.status is Status.failed and f"{SIDES[1]}: 1 of" in check.seen and "no numbers" in check.seen


@given(st.floats(0, 5), st.integers(0, 2**16))
def test_the_gap_is_symmetric_and_that_of_the_worst_token(size: float, seed: int) -> None:
    ours = logprobs(seed)
    theirs = moved(ours, size, seed + 1)
    there, back = gap(ours, theirs), gap(theirs, ours)
    expected = np.abs(np.concatenate(ours).astype(float) - np.concatenate(theirs).astype(float))
    assert (there.mean, there.most) == (back.mean, back.most) == (expected.mean(), expected.max())
    assert there.tokens == 42


def test_stale_weights_fail_and_a_change_too_small_to_show_them_warns() -> None:
    before, learner = logprobs(), moved(logprobs(), 0.5)
    good = check_new_weights(moved(learner, 1e-4), learner, before, learner, FLOAT32)
    assert good.status is Status.passed
    stale = check_new_weights(moved(learner, 0.1), learner, before, learner, FLOAT32)
    assert stale.status is Status.failed and "old weights" in stale.fix
    blind = check_new_weights(learner, learner, moved(learner, 1e-3), learner, FLOAT32)
    assert blind.status is Status.warned and "too little" in blind.seen


def test_weights_that_do_not_come_back_fail() -> None:
    engine = logprobs()
    assert check_restored(engine, engine, engine, engine, FLOAT32).status is Status.passed
    check = check_restored(engine, engine, engine, moved(engine, 0.1), FLOAT32)
    assert check.status is Status.failed and "did not come back" in check.fix
    assert check_restored(moved(engine, 0.3), engine, engine, engine, FLOAT32).status is Status.failed


def test_responses_end_with_eos_or_at_their_limit() -> None:
    assert check_response_ends([1, 5, 16], [False, True, False], [9, 2, 9], [1, 16, 16], {2}).status is Status.passed
    for lengths, last in (([1, 5, 15], [9, 2, 9]), ([1, 5, 16], [9, 3, 9])):
        assert check_response_ends(lengths, [False, True, False], last, [1, 16, 16], {2}).status is Status.failed


def test_answers_none_of_which_ends_do_not_pass() -> None:
    """Whether any ends was not seen."""
    check = check_response_ends([4, 4], [False, False], [9, 9], [4, 4], {2})
    assert check.status is Status.warned and check.seen.startswith("0 of 2 answers end") and check.fix


def test_a_teacher_that_is_the_student_fails_unless_it_is_told_more() -> None:
    f32 = ["float32", "float32"]
    assert check_teacher_differs(0.2, f32, False, False).status is Status.passed
    assert check_teacher_differs(1e-3, f32, False, False).status is Status.passed
    assert check_teacher_differs(1e-3, ["float32", "bfloat16"], False, False).status is Status.failed
    same = check_teacher_differs(1e-7, f32, False, False)
    assert same.status is Status.failed and "choose another teacher" in same.fix
    assert check_teacher_differs(1e-7, f32, True, False).status is Status.warned
    assert check_teacher_differs(1e-7, f32, False, True).status is Status.passed


@pytest.mark.parametrize(("kl", "expected"), [(0.004, Status.passed), (0.3, Status.warned)])
def test_a_quantised_teacher_that_says_other_things_is_a_warning(kl: float, expected: Status) -> None:
    check = check_quantised(QuantizationBias("nf4", 40, 0.1, 2.0, kl, 0.9))
    assert check.status is expected
    assert f"KL {kl:.2g} nats" in check.seen and "90.0% of 40 tokens" in check.seen
    assert ("teacher.quantization=int8 or none" in check.fix) == (expected is Status.warned)
