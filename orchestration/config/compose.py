"""From what Hydra composes to a checked, read-only configuration."""

from dataclasses import fields, is_dataclass
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from orchestration.config.rules import check
from orchestration.config.schema import RunConfig
from tutelage.settings import require


def register_schema() -> None:
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def _refuse_assignment(self: Any, name: str, value: Any = None) -> None:
    raise AttributeError(f"the configuration is frozen after composition: {name} cannot change")


def _freeze(node: Any) -> None:
    """Make a composed config read-only, all the way down.

    OmegaConf refuses command-line overrides of frozen dataclasses, so they are plain until here.
    """
    for item in fields(node):
        value = getattr(node, item.name)
        parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else (value,)
        for part in parts:
            if is_dataclass(part):
                _freeze(part)
    cls = type(node)
    node.__class__ = type(cls.__name__, (cls,), {"__setattr__": _refuse_assignment, "__delattr__": _refuse_assignment})


def build(composed: DictConfig, preset: str | None = None) -> RunConfig:
    """Turn Hydra's composition into a checked, read-only RunConfig.

    Args:
        preset: the choice of the group `objective`, if it is to be checked.

    Raises:
        ConfigError: when two settings do not go together.
    """
    config = cast(RunConfig, OmegaConf.to_object(composed))
    if preset is not None:
        _check_preset(config, preset)
    check(config)
    _freeze(config)
    return config


def _check_preset(config: RunConfig, chosen: str) -> None:
    """A name that is set beside the choice of a preset would label one objective and train another."""
    name = config.objective.name
    fix = f"names the chosen preset, which is {chosen}; to choose another one write objective={name}"
    require(name == chosen, "objective.name", name, fix)
