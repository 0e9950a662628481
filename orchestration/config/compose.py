"""From what Hydra composes to a checked, read-only configuration."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from orchestration.config.rules import refusals
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from tutelage.settings import Refusal, Refusals


@cache
def register_schema() -> None:
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def build(
    composed: DictConfig,
    preset: str | None = None,
    further: Callable[[RunConfig], Iterable[Refusal]] = lambda config: (),
) -> RunConfig:
    """Turn Hydra's composition into a checked, read-only RunConfig.

    Args:
        preset: the choice of the group `objective`, if it is to be checked.
        further: what a command has against a configuration, beside what no run could be made of.

    Raises:
        ConfigError: with everything that cannot work.
    """
    config = cast(RunConfig, OmegaConf.to_object(composed))
    wrong = Refusals([*_preset_refusals(config, preset), *refusals(config)])
    if config.stage in STAGES:
        wrong.extend(further(config))
    wrong.raise_all()
    config.freeze()
    return config


def _preset_refusals(config: RunConfig, chosen: str | None) -> Iterator[Refusal]:
    """A name that is set beside the choice of a preset would label one objective and train another."""
    name = config.objective.name
    if chosen is not None and name != chosen:
        fix = f"names the chosen preset, which is {chosen}; to choose another one write objective={name}"
        yield Refusal("objective.name", name, fix)
