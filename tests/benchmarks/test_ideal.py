"""The arithmetic behind the benchmarks' ratios."""

import pytest

from benchmarks.ideal import StageTimes, Workload, ideal_seconds, ideal_step_seconds, interleaved_ratio


def workload(rollout: list[float], batch_size: int, scoring: float = 0.0) -> Workload:
    return Workload("", batch_size, tuple(rollout), (scoring,) * len(rollout), learning=2.0, weight_sync=1.0)


def test_strictly_on_policy_every_step_waits_for_its_slowest_sample() -> None:
    work = workload([1, 5, 1, 1, 7, 2], batch_size=2, scoring=0.5)
    assert ideal_seconds(work, 0) == pytest.approx((5.5 + 3) + (1.5 + 3) + (7.5 + 3))


def test_short_rollouts_hide_behind_the_learner() -> None:
    work = workload([1] * 8, batch_size=2)
    assert ideal_seconds(work, 1) == pytest.approx(1 + 4 * 3)


def test_long_rollouts_are_spread_over_the_steps_that_may_pass() -> None:
    """With s = 1 what starts at T_v is in version v + 2: two steps every 9 + 3 seconds, and the last of them."""
    work = workload([9] * 12, batch_size=2)
    assert ideal_seconds(work, 1) == pytest.approx(3 * (9 + 3) + 3)


def test_the_first_batch_passes_by_a_slow_sample_and_the_last_allowed_step_waits_for_it() -> None:
    work = workload([10, 1, 1, 1, 1, 1], batch_size=2)
    first = 1 + 3  # slots 1 and 2
    second = 10 + 3  # slot 0 is as old as it may get
    assert ideal_seconds(work, 1) == pytest.approx(max(first + 3, second) + 3)


def test_more_staleness_is_never_slower() -> None:
    work = workload([(7 * n) % 11 for n in range(40)], batch_size=4)
    seconds = [ideal_seconds(work, staleness) for staleness in range(5)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] >= work.steps * 3


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (StageTimes(rollout=2, scoring=1, learning=6, weight_sync=1), 7),  # the learner
        (StageTimes(rollout=8, scoring=1, learning=2, weight_sync=1), 9),  # the engine
        (StageTimes(rollout=4, scoring=5, learning=4, weight_sync=1), 7),  # two cores
        (StageTimes(rollout=1, scoring=9, learning=1, weight_sync=1), 9),  # the teacher
    ],
)
def test_the_ideal_step_is_the_tightest_bottleneck(times: StageTimes, seconds: float) -> None:
    assert ideal_step_seconds(times, cores=2) == pytest.approx(seconds)


def test_interleaved_ratios_compare_neighbours() -> None:
    """In the order ours, theirs, ours, theirs: 20/10, 10/10 and 10/5."""
    assert interleaved_ratio([20.0, 10.0], [10.0, 5.0]) == pytest.approx(2.0)
    assert interleaved_ratio([30.0], [10.0]) == pytest.approx(3.0)
