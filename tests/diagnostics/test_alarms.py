"""Rules over windows: when an alarm is raised, when it is not, and what is refused."""

from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import alarms
from diagnostics.alarms import Alarm, Watch, most_severe
from diagnostics.config import COMPARISONS, STATISTICS, AlarmRule, AlarmsConfig, Comparison, Remedy
from tutelage.registry import Registry

METRIC = "rollout/truncated_share"
VALUES = st.floats(-100, 100)


def rule(comparison: str, threshold: float, **settings: object) -> AlarmRule:
    return AlarmRule(METRIC, threshold, comparison=comparison, **settings)  # type: ignore[arg-type]


def raised(one: AlarmRule, values: list[float]) -> list[Alarm]:
    watch = Watch({"rule": one})
    return [alarm for step, value in enumerate(values, 1) for alarm in watch.observe(step, {METRIC: value})]


@pytest.mark.parametrize(
    ("one", "values", "step"),
    [
        (rule("above", 0.5, window=1), [0.5, 0.6], 2),
        (rule("below", 0.5, window=1), [0.5, 0.4], 2),
        (rule("above", 0.5, window=2), [0.9, 0.0, 0.9, 0.9], 4),
        (rule("rises_by", 1.0, window=2), [1.0, 3.0, 3.0, 4.0], 4),
        (rule("falls_by", 1.0, window=2), [3.0, 3.0, 2.0, 1.0], 4),
        (rule("grows_to", 3.0, window=1), [1.0, 3.0, 3.5], 3),
        (rule("grows_to", 3.0, window=1, floor=2.0), [1.0, 6.0, 6.5], 3),
        (rule("shrinks_to", 0.5, window=1), [2.0, 1.0, 0.9], 3),
        (rule("above", 1.0, window=1, patience=3), [2, 2, 0, 2, 2, 2], 6),
        (rule("above", 1.0, window=3, statistic="median"), [0, 99, 0, 2, 2], 4),
    ],
)
def test_it_is_raised_at_the_first_step_out_of_bounds(one: AlarmRule, values: list[float], step: int) -> None:
    assert [alarm.step for alarm in raised(one, values)] == [step]


@given(
    st.sampled_from([*COMPARISONS]), st.floats(0.01, 50), st.integers(1, 4), st.integers(1, 3),
    st.sampled_from([*STATISTICS]), st.lists(VALUES, max_size=20),
)  # fmt: skip
def test_an_alarm_tells_the_truth_and_comes_once(
    comparison: str, threshold: float, window: int, patience: int, statistic: str, values: list[float]
) -> None:
    alarms = raised(rule(comparison, threshold, window=window, patience=patience, statistic=statistic), values)
    assert len(alarms) <= 1
    for alarm in alarms:
        assert alarm.since == alarm.step - (window + patience - 1) + 1
        last = values[alarm.step - window : alarm.step]
        assert alarm.value == {"mean": fmean, "median": median}[statistic](last)
        upward = comparison in ("above", "rises_by", "grows_to")
        assert alarm.value > alarm.bound if upward else alarm.value < alarm.bound


@given(
    st.sampled_from(["rises_by", "falls_by"]),
    st.floats(0.01, 50), VALUES, st.integers(1, 5), st.integers(1, 40),
)  # fmt: skip
def test_what_stays_as_it_began_raises_nothing(
    comparison: str, threshold: float, value: float, window: int, steps: int
) -> None:
    assert not raised(rule(comparison, threshold, window=window), [value] * steps)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10))
def test_a_jump_is_caught_when_the_window_is_full_of_it(window: int, patience: int, quiet: int) -> None:
    quiet += window  # the run begins well
    (alarm,) = raised(rule("rises_by", 0.99, window=window, patience=patience), [0.0] * quiet + [1.0] * 20)
    assert alarm.step == quiet + window + patience - 1
    assert alarm.since == quiet + 1


@given(st.lists(VALUES, min_size=1, max_size=30), st.integers(0, 30))
def test_a_resumed_watch_goes_on_as_one_that_never_stopped(values: list[float], cut: int) -> None:
    one = rule("rises_by", 5.0, window=2)
    resumed, rows = Watch({"rule": one}), [{METRIC: value} for value in values]
    for step, row in enumerate(rows[:cut], 1):
        resumed.observe(step, row)
    for step, row in enumerate(rows[cut:], cut + 1):
        resumed.observe(step, row)
    assert resumed.alarms == raised(one, values)


def test_steps_without_the_metric_are_no_part_of_the_window() -> None:
    watch = Watch({"rule": rule("above", 0.5, window=2)})
    found = [watch.observe(1, {METRIC: 1.0}), watch.observe(2, {"other": 0.0}), watch.observe(3, {METRIC: 1.0})]
    assert [[alarm.since for alarm in alarms] for alarms in found] == [[], [], [1]]


def test_the_message_names_rule_figure_bound_and_failure() -> None:
    (alarm,) = raised(rule("above", 0.5, window=1, matches="they never end"), [0.75])
    assert alarm.message == (
        "step 1: rule: rollout/truncated_share is 0.75 (mean of 1), above 0.5 (above): they never end"
    )


def test_the_most_severe_remedy_wins_and_goes_furthest_back() -> None:
    rules = {
        "a": rule("above", 0, window=1, remedy=Remedy.stop),
        "b": rule("above", 0, window=1, remedy=Remedy.roll_back),
        "c": rule("above", 0, window=2, remedy=Remedy.roll_back),
        "d": rule("above", 0, window=1),
    }
    watch = Watch(rules)
    watch.observe(1, {METRIC: -1.0})
    alarms = watch.observe(2, {METRIC: 5.0})
    found = most_severe(alarms)
    assert found is not None and (found.name, found.since) == ("c", 1)
    assert most_severe([alarm for alarm in alarms if alarm.name == "d"]) is None


def test_a_rule_whose_metric_never_comes_is_named_unless_it_may_be_absent() -> None:
    watch = Watch(
        {
            "here": rule("above", 1),
            "typo": AlarmRule("rollout/truncatd_share", 1),
            "absent": AlarmRule("rollout/accuracy", 1, optional=True),
            "later": AlarmRule("eval/accuracy", 1),
        }
    )
    watch.observe(1, {METRIC: 0.0})
    assert watch.blind() == {"typo": "rollout/truncatd_share"}


@pytest.mark.parametrize(
    ("one", "setting"),
    [
        (rule("above", 1, window=0), "window"),
        (rule("above", 1, window=-3), "window"),
        (rule("above", 1, patience=0), "patience"),
        (rule("grows_to", 0), "threshold"),
        (rule("above", 1, floor=2.0), "floor"),
        (AlarmRule("", 1), "metric"),
        (rule("abvoe", 1), "comparison"),
        (rule("above", 1, statistic="maen"), "statistic"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_with_its_setting(one: AlarmRule, setting: str) -> None:
    assert [refusal.key for refusal in one.refusals("alarms.rules.long.")] == [f"alarms.rules.long.{setting}"]
    assert not [*rule("grows_to", 3, floor=0.1).refusals()]


def test_all_mistakes_of_all_rules_are_said_at_once() -> None:
    rules = {"one": rule("above", 1, window=0, patience=0), "two": rule("shrinks_to", -1)}
    assert [str(refusal).split(":")[0] for refusal in AlarmsConfig(rules).refusals("alarms.")] == [
        "alarms.rules.one.window=0", "alarms.rules.one.patience=0", "alarms.rules.two.threshold=-1",
    ]  # fmt: skip


def test_a_comparison_of_ones_own_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry[Comparison](COMPARISONS.key)
    registry.add("doubles", Comparison(lambda rule, first: 2 * first + rule.threshold, upward=True))
    monkeypatch.setattr(alarms, "COMPARISONS", registry)
    assert [alarm.step for alarm in raised(rule("doubles", 0.0, window=1), [1.0, 1.9, 2.1])] == [3]
