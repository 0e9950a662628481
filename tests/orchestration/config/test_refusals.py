"""One way to say no: ranges on the fields, rules that say refusals, and one place that raises them all."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_module

from diagnostics.config import AlarmRule, AlarmsConfig, AlignmentConfig, AlignmentTeacher
from learner.objectives.config import ObjectiveConfig, TermConfig
from orchestration.config.compose import build, register_schema
from orchestration.config.schema import RecipeConfig, RecipeStage, RunConfig
from orchestration.diagnose import diagnosis_refusals
from orchestration.precompute import precompute_refusals
from scoring.config import TeacherConfig
from tests.factories import message
from tutelage.settings import Bounds, ConfigError, Refusal, Refusals, Settings

MISTAKES = {
    "learner.zero_stage=4": "at most 3",  # the range of a field
    "objective.teacher_temperature=2.0": "support=full",  # a rule of the objective
    "teacher.backend=telepathy": "transformers",  # a choice that there is not
    "stage=dreaming": "distil",  # another, on which other rules rest
    "further_teachers.7.ema_rate=1.0": "below 1",  # a teacher of several
    "data.train.path=''": "JSONL",  # a rule of the data
    "learner.weight_transfer=nccl": "shared_memory",  # a rule across rooms
    "scoring.attention=flash_attention_2": "runs on GPUs only",  # a rule of the scoring room
}


def test_a_user_with_a_mistake_in_every_room_sees_a_message_for_each() -> None:
    second = ["+teacher@further_teachers.7=checkpoint", "further_teachers.7.ema_rate=1"]
    written = [mistake for mistake in MISTAKES if not mistake.startswith("further_teachers")]
    lines = message(*second, *written).splitlines()
    for setting, fix in MISTAKES.items():
        (line,) = (line for line in lines if line.startswith(f"{setting}: "))
        assert fix in line
    assert len(lines) == len(MISTAKES) + 1 and any(line.startswith("further_teachers=7: ") for line in lines)


@pytest.mark.parametrize(
    ("rules", "overrides", "keys"),
    [
        (diagnosis_refusals, ["stage=cold_start"], ["stage", "objective.name", "pipeline.steps"]),
        (precompute_refusals, [], ["objective.sequences.other_source", "scoring.cache_dir", "pipeline.steps"]),
    ],
)
def test_what_a_command_refuses_is_said_with_all_the_rest(
    rules: Callable[[RunConfig], Iterable[Refusal]], overrides: list[str], keys: list[str]
) -> None:
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        composed = compose("config", overrides=["objective.name=mine", "pipeline.steps=0", *overrides])
    with pytest.raises(ConfigError) as caught:
        build(composed, "student_topk_reverse_kl", rules)
    assert {*keys, "objective.name"} <= {refusal.key for refusal in caught.value.refusals}


def schema() -> RunConfig:
    """A configuration with every kind of part, also of those that a plain run has none of."""
    return RunConfig(
        further_teachers={"a": TeacherConfig()},
        objective=ObjectiveConfig(further_terms={"more": TermConfig()}),
        alignment=AlignmentConfig(teachers=[AlignmentTeacher("x")]),
        alarms=AlarmsConfig(rules={"one": AlarmRule("train/loss", 1.0)}),
        recipe=RecipeConfig(stages=[RecipeStage("a")]),
    )


def every_part(part: Settings, prefix: str = "") -> Iterator[tuple[str, Settings]]:
    yield prefix, part
    for name, below in part.parts():
        yield from every_part(below, f"{prefix}{name}.")


def outside(bounds: Bounds) -> list[float]:
    """A value beyond each bound of a field."""
    beyond = (bounds.at_least, -1), (bounds.above, 0), (bounds.at_most, 1), (bounds.below, 0)
    return [bound + step for bound, step in beyond if bound is not None]


BEYOND = [
    (prefix, item.name, value)
    for prefix, part in every_part(schema())
    for item in fields(part)  # type: ignore[arg-type]
    for value in outside(item.metadata.get("bounds") or Bounds())
]


def test_all_ranges_hold_for_the_defaults_and_none_lies_unread() -> None:
    assert [str(refusal) for refusal in RunConfig().refusals()] == []
    assert len(BEYOND) > 60


@pytest.mark.parametrize(("prefix", "name", "value"), BEYOND)
def test_every_range_is_enforced(prefix: str, name: str, value: float) -> None:
    config = schema()
    setattr(dict(every_part(config))[prefix], name, value)
    assert prefix + name in [refusal.key for refusal in config.refusals()]


UNBOUNDED = {
    "mixture": "weights are judged together, in scoring.rules",
}


def test_every_number_has_bounds_or_a_reason_to_have_none() -> None:
    """The next numeric field without a range is named here."""
    parts = {type(part) for _, part in every_part(schema())}
    bare = [
        item.name
        for part in parts
        for item in fields(part)
        if {int, float} & {*get_args(hint := get_type_hints(part)[item.name]), hint} and not item.metadata.get("bounds")
    ]
    assert set(bare) == set(UNBOUNDED)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("prefix", "name"), sorted({(prefix, name) for prefix, name, _ in BEYOND}))
def test_no_setting_is_infinite_or_no_number(prefix: str, name: str, value: float) -> None:
    config = schema()
    setattr(dict(every_part(config))[prefix], name, value)
    assert prefix + name in [refusal.key for refusal in config.refusals()]


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.95, 0.99], [0.9, 1.0], [-0.1, 0.9], []])
def test_betas_are_two_shares(betas: list[float]) -> None:
    assert "learner.betas=" in message(f"learner.betas={betas}")


ALARM = "+alarms.rules={mine: {metric: %s, threshold: 0.5}}"


def test_settings_that_cannot_work_together() -> None:
    text = message(ALARM % "rollout/truncatd_share")
    assert "alarms.rules.mine.metric=rollout/truncatd_share" in text and "rollout/truncated_share?" in text


def test_bounds_say_what_holds() -> None:
    bounds = Bounds(at_least=0, below=1, meaning="a share")
    assert bounds.refusal("a.b", 0) is None
    assert str(bounds.refusal("a.b", 1)) == "a.b=1: must be at least 0 and below 1; a share"


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (True, "true"), ("", "''"), ("x", "x"), (0.5, "0.5")])
def test_values_are_shown_as_they_are_written(value: object, shown: str) -> None:
    assert str(Refusal("a", value, "no")) == f"a={shown}: no"


def test_refusals_are_collected_and_raised_together() -> None:
    refusals = Refusals()
    for name in ("a", "b"):
        with refusals.collecting():
            raise ConfigError(Refusal(name, 1, "no"))
    with pytest.raises(ConfigError, match="a=1: no\nb=1: no"):
        refusals.raise_all()
    Refusals().raise_all()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "paged|sdpa"])
def test_an_attention_in_which_packed_sequences_would_meet_is_refused(attention: str) -> None:
    for room in ("learner", "scoring"):
        assert f"{room}.attention" in message(f"{room}.attention='{attention}'")
