"""What a run does about alarms, and how they are declared."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from diagnostics.alarms import Alarm, Watch
from diagnostics.config import AlarmRule, AlarmsConfig, Remedy
from orchestration.cli import explain
from orchestration.config.compose import build, register_schema
from orchestration.config.schema import RunConfig, TrackingConfig, WandbMode
from orchestration.pipeline.progress import StageClock
from orchestration.results.directory import RunDirectory, RunState, latest_checkpoint, whole_checkpoints
from orchestration.results.progress import ProgressView
from orchestration.results.tracker import Tracker
from orchestration.runs.alarms import AlarmResponder, checkpoint_to_end_with, remedies_so_far, set_aside_after

RULES = AlarmsConfig({"long": AlarmRule("length", 10, window=1, remedy=Remedy.stop), "typo": AlarmRule("lengths", 10)})


def configured(*overrides: str) -> RunConfig:
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        return build(compose("config", overrides=list(overrides)))


def desk(run_dir: Path, earlier: list[dict[str, float]]) -> AlarmResponder:
    view = ProgressView("distil", 3, 0, StageClock({}))
    return AlarmResponder(RULES, view, Tracker(run_dir, TrackingConfig(WandbMode.disabled), {}), earlier)


def test_an_alarm_is_told_and_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alarms = desk(tmp_path, [])
    alarms.tell(alarms.observe(1, {"length": 5.0}))
    assert alarms.ending is None
    alarms.tell(alarms.observe(2, {"length": 15.0}))
    assert alarms.ending is not None and alarms.ending.name == "long"
    assert "alarm: step 2: long" in capsys.readouterr().out
    assert [text.split(":")[:2] for text in alarms.raised] == [["step 2", " long"]]


def test_a_run_that_was_stopped_goes_on_when_it_is_resumed(tmp_path: Path) -> None:
    alarms = desk(tmp_path, [{"policy_version": 1, "length": 15.0}])
    alarms.tell(alarms.observe(2, {"length": 15.0}))
    assert alarms.ending is None and len(alarms.raised) == 1


def test_remedies_of_earlier_starts_are_still_listed(tmp_path: Path) -> None:
    assert remedies_so_far(tmp_path) == []
    (tmp_path / "summary.json").write_text('{"status": "stopped", "remedies": ["stop after step 3"]}')
    assert remedies_so_far(tmp_path) == ["stop after step 3"]


def test_a_rule_that_sees_nothing_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alarms = desk(tmp_path, [])
    for step in (1, 2):
        alarms.observe(step, {"length": 1.0})
        alarms.name_blind_rules()
    assert capsys.readouterr().out.count("alarms.rules.typo.metric=lengths") == 1


def test_a_roll_back_finds_the_last_checkpoint_before_the_window(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, (tmp_path / ".lock").open("a"))
    for step in (0, 4, 8, 12):
        directory.commit_checkpoint(directory.begin_checkpoint(step), RunState(step=step), keep=2)
    assert [path.name for path in whole_checkpoints(directory.path)] == ["step-000000", "step-000008", "step-000012"]
    rule = AlarmRule("length", 10, remedy=Remedy.roll_back)
    good = checkpoint_to_end_with(Alarm("long", rule, step=12, since=9, value=15, bound=10), directory)
    assert good is not None and good.name == "step-000008"
    set_aside_after(good, directory)
    assert latest_checkpoint(directory.path) == good
    assert (directory.checkpoints / "step-000012.rolled_back").is_dir()
    early = Alarm("long", rule, step=8, since=1, value=15, bound=10)
    assert checkpoint_to_end_with(early, directory) == directory.checkpoints / "step-000000"
    assert checkpoint_to_end_with(replace(early, rule=RULES.rules["long"]), directory) is None


def test_a_roll_back_without_a_checkpoint_is_said_to_be_a_stop(tmp_path: Path) -> None:
    alarms = desk(tmp_path, [])
    rule = AlarmRule("length", 10, remedy=Remedy.roll_back)
    alarms.record_remedy(Alarm("long", rule, step=12, since=9, value=15, bound=10), None, 12)
    assert alarms.remedies == [
        "stop after step 12 (long): final/ is step 12, since there is no checkpoint from before step 9"
    ]


def test_rules_are_changed_added_and_turned_off() -> None:
    config = configured(
        "alarms.rules.length_collapse.threshold=0.3",
        "+alarms.rules={mine: {metric: rollout/mean_response_tokens, threshold: 400, remedy: stop}}",
    )
    assert config.alarms.rules["length_collapse"].threshold == 0.3
    assert config.alarms.rules["mine"].remedy is Remedy.stop
    assert configured("alarms=none").alarms.rules == {}
    assert {rule.remedy for rule in configured().alarms.rules.values()} == {Remedy.warn}  # nobody's run ends unasked


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("alarms.rules.repetition.remedy=pray", ["alarms.rules.repetition.remedy", "warn, stop, roll_back"]),
        ("alarms.rules.repetition.window=-1", ["alarms.rules.repetition.window=-1", "at least 1"]),
        ("alarms.rules.entropy_collapse.threshold=0", ["alarms.rules.entropy_collapse.threshold=0", "above 0"]),
        ("alarms.rules.repetitoin.window=3", ["alarms.rules.repetitoin.window"]),
        ("+alarms.rules={mine: {metric: rollout/accuracy}}", ["alarms.rules.mine.threshold"]),
        ("+alarms.rules={mine: {metrc: rollout/accuracy}}", ["alarms.rules.mine.metrc"]),
    ],
)
def test_a_wrong_rule_is_refused_by_name(override: str, parts: list[str]) -> None:
    with pytest.raises(Exception) as caught:
        configured(override)
    assert all(part in explain(caught.value) for part in parts)


def test_shipped_rules_stay_quiet_on_a_good_run_and_speak_on_planted_ones() -> None:
    rules = configured().alarms.rules
    good = {
        "train/student_tail_mass": 0.0006,
        "rollout/truncated_share": 0.0,
        "rollout/mean_response_tokens": 26.0,
        "health/repetition": 0.03,
        "train/student_entropy": 0.03,
        "train/grad_norm": 3.5,
        "health/rollout_logprob_gap_mean": 0.005,
        "train/overlap_mass_student": 0.99,
        "train/sampled_reverse_kl": 0.18,
        "rollout/accuracy": 0.57,
    }
    planted = {
        "support_mass_lost": {"train/student_tail_mass": 0.005},
        "endless_lengths": {"rollout/truncated_share": 0.4},
        "length_collapse": {"rollout/mean_response_tokens": 2.0},
        "repetition": {"health/repetition": 0.3},
        "entropy_collapse": {"train/student_entropy": 0.001},
        "entropy_explosion": {"train/student_entropy": 1.9},
        "gradient_explosion": {"train/grad_norm": 20.0},
        "rollout_gap": {"health/rollout_logprob_gap_mean": 0.3},
        "overlap_collapse": {"train/overlap_mass_student": 0.9},
        "divergence_rises": {"train/sampled_reverse_kl": 0.6},
        "accuracy_falls": {"rollout/accuracy": 0.2},
    }
    assert planted.keys() == rules.keys()
    for name, change in planted.items():
        watch = Watch(rules)
        found = [watch.observe(step, good) for step in range(1, 11)]
        assert not any(found), json.dumps([alarm.message for alarms in found for alarm in alarms])
        later = [watch.observe(step, good | change) for step in range(11, 21)]  # within ten steps of its start
        assert [alarm.name for alarms in later for alarm in alarms] == [name]
        assert not watch.blind()
