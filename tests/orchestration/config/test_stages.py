"""A stage is a name in the config; what it needs of a run is known without importing it."""

from collections.abc import Iterator
from pkgutil import resolve_name

import pytest

from orchestration.config.facts import needs_teacher_rollouts, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES, StageKind
from orchestration.stages.training import TrainingStage
from tests.factories import configured, message
from tutelage.settings import Refusal


def _needs_many_steps(config: RunConfig) -> Iterator[Refusal]:
    if config.pipeline.steps < 3:
        yield Refusal("pipeline.steps", config.pipeline.steps, "imitation takes time; set 3 or more")


@pytest.fixture(scope="module", autouse=True)
def imitation() -> None:
    """A stage of another package, as its module would register it: no class has to be there to check a config."""
    kind = StageKind("not_there.imitation:Imitation", "imitated", "imitation", _needs_many_steps, has_teacher=False)
    STAGES.add("imitation", kind)


@pytest.mark.parametrize("name", ["distil", "cold_start", "reinforce"])
def test_every_stage_of_ours_has_its_class(name: str) -> None:
    assert issubclass(resolve_name(STAGES[name].implementation), TrainingStage)


def test_a_stage_from_outside_takes_part_in_the_rules_and_the_facts() -> None:
    config = configured("stage=imitation", "objective=gkd", "objective.sequences.on_policy_fraction=0.5")
    assert teachers_of(config) == {} and not needs_teacher_rollouts(config)
    assert message("stage=imitation", "pipeline.steps=2").startswith("pipeline.steps=2: imitation takes time")
    assert "max_replaced_groups=1" in message("stage=imitation", "pipeline.max_replaced_groups=1")


def test_an_unknown_stage_is_refused_with_those_that_there_are() -> None:
    said = message("stage=distill", "pipeline.batch_size=0")
    assert "stage=distill: is none of distil, cold_start, reinforce" in said
    assert "pipeline.batch_size=0" in said  # what does not depend on it is said at once
