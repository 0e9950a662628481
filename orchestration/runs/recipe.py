"""A recipe: stages that run one after the other, each from the model that the one before it left behind.

    the run's command line ─┐
                            ├─► Hydra ─► the stage's own configuration, checked ─► stages, in order
    the stage's overrides ──┘              ▲
                                           └ student.model: the artifact of the stage before

A stage that sets `student.model` itself begins there instead; all other models stay those of the run unless the stage
sets them, also where the run has them follow the student's. `stage:NAME` as a student's, teacher's or reference's model
stands for the artifact of the earlier stage NAME.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from orchestration.cli import explain
from orchestration.config.compose import build
from orchestration.config.schema import RecipeStage, RunConfig
from orchestration.runs.artifact import CHECKPOINT
from tutelage.settings import ConfigError, Refusal, Refusals

MODEL_KEYS = ("student.model", "teacher.model", "objective.reference.model")
_REFERENCE = "stage:"  # and the name of a stage: its artifact
_NO_STAGES = "recipe.stages=[]"
_OF_THE_WHOLE = ("recipe", "output_root", "run_dir", "resume", "dry_run", "hydra")
_SETS_STUDENT = ("student", "student.model")


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a recipe, composed."""

    name: str
    folder: Path  # a run's folder, inside the recipe's
    composed: DictConfig
    config: RunConfig
    preset: str  # the choice of the group `objective`
    base_model: str  # the model that the first of the stages behind this one begins with

    @property
    def model(self) -> str:
        """Where its model lies once it is completed."""
        return str(self.folder / CHECKPOINT)


def compose_stages(run: RunConfig, folder: Path, config_name: str, overrides: Sequence[str]) -> list[PlannedStage]:
    """Every stage's configuration, checked. Hydra must be initialised.

    Args:
        folder: the recipe's.
        config_name, overrides: what the run itself was composed from.

    Raises:
        ConfigError: naming the stage, and what is wrong with it.
    """
    _check_names(run.recipe.stages)
    stages: dict[str, PlannedStage] = {}
    for position, spec in enumerate(run.recipe.stages, start=1):
        with naming_stage(spec.name):
            path = folder / f"{position}-{spec.name}"
            stages[spec.name] = _compose(spec, path, stages, config_name, overrides)
    return list(stages.values())


def compose_run(config_name: str, overrides: Sequence[str]) -> tuple[DictConfig, str]:
    """A run's configuration and its choice of the group `objective`. Hydra must be initialised."""
    composed = compose(config_name, list(overrides), return_hydra_config=True)
    preset = composed.hydra.runtime.choices["objective"]
    with open_dict(composed):
        del composed["hydra"]
    return composed, preset


@contextmanager
def naming_stage(name: str) -> Iterator[None]:
    """Say which stage it is that has a wrong setting."""
    try:
        yield
    except ConfigError as error:
        of_stage = [replace(refusal, key=f"recipe stage {name!r}: {refusal.key}") for refusal in error.refusals]
        raise ConfigError(*of_stage) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"recipe stage {name!r}: {explain(error)}") from None


def _compose(
    spec: RecipeStage, folder: Path, earlier: Mapping[str, PlannedStage], config_name: str, overrides: Sequence[str]
) -> PlannedStage:
    keys = _override_keys(spec)
    composed, preset = compose_run(config_name, [*overrides, *spec.overrides, _NO_STAGES])
    composed.run_dir = str(folder)
    for key in MODEL_KEYS:  # what follows the student's model must not follow it into the stage before
        OmegaConf.update(composed, key, OmegaConf.select(composed, key))
    if earlier and not any(key in keys for key in _SETS_STUDENT):
        composed.student.model = _REFERENCE + list(earlier)[-1]
    behind = _referred(composed.student.model, "student.model", earlier)
    base_model = composed.student.model if behind is None else behind.base_model
    _refer_to_artifacts(composed, earlier)
    return PlannedStage(spec.name, folder, composed, build(composed, preset), preset, base_model)


def _refer_to_artifacts(composed: DictConfig, earlier: Mapping[str, PlannedStage]) -> None:
    for key in MODEL_KEYS:
        stage = _referred(OmegaConf.select(composed, key), key, earlier)
        if stage is not None:
            OmegaConf.update(composed, key, stage.model)


def _referred(model: str | None, key: str, earlier: Mapping[str, PlannedStage]) -> PlannedStage | None:
    """The stage that a model's name stands for, if it stands for one."""
    if model is None or not model.startswith(_REFERENCE):
        return None
    name = model.removeprefix(_REFERENCE)
    if name not in earlier:
        there = ", ".join(earlier) or "none: it is the first"
        raise ConfigError(Refusal(key, model, f"no stage of this name comes before it; there is {there}"))
    return earlier[name]


def _check_names(specs: Sequence[RecipeStage]) -> None:
    names, refusals = [spec.name for spec in specs], Refusals()
    for index, name in enumerate(names):
        key = f"recipe.stages[{index}].name"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            refusals.append(Refusal(key, name, "names a folder; use letters, digits, - and _"))
        if name in names[:index]:
            refusals.append(Refusal(key, name, f"is given to {names.count(name)} stages; use each once"))
    refusals.raise_all()


def _override_keys(spec: RecipeStage) -> set[str]:
    """What a stage sets, once none of it is the recipe's to set."""
    keys = {override.key_or_group for override in OverridesParser.create().parse_overrides(list(spec.overrides))}
    of_whole = [key for key in sorted(keys) if re.split(r"[./]", key)[0] in _OF_THE_WHOLE]
    fix = "is set for the recipe as a whole, not for one of its stages; leave it out there"
    Refusals(Refusal(f"recipe.stages.{spec.name}.overrides", key, fix) for key in of_whole).raise_all()
    return keys
