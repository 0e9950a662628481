"""What every room's settings are made of: shared enums, deadlines, and how a wrong value is refused."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any


class WeightTransfer(Enum):
    shared_memory = "shared_memory"  # CPU engines on the learner's node
    nccl = "nccl"  # GPUs, any node
    ipc = "ipc"  # learner and engine on the same GPU


@dataclass
class ClusterConfig:
    address: str = "local"  # "local": a Ray of this run's own; "auto" or host:port: one that runs already
    cpus: int | None = None  # logical CPUs of a local cluster; none: what the workers ask for
    object_store_gib: float = 1.0  # of a local cluster


@dataclass
class TimeoutConfig:
    """Deadlines in seconds: nothing waits longer."""

    start: float = 600  # of one worker: models loaded, engine up
    rollout: float = 600  # from one finished rollout to the next
    scoring: float = 600  # of one scoring request, its time in the queue included
    learning: float = 1800  # of one optimiser step or evaluation pass
    weight_sync: float = 300
    checkpoint: float = 1800


@dataclass(frozen=True)
class Refusal:
    """One setting that cannot work, and what to write instead."""

    key: str  # full name of the setting, for instance learner.zero_stage
    value: object
    fix: str  # what is wrong with it and what to change, after "key=value: "

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.fix}"


class ConfigError(ValueError):
    """Settings that cannot work; the message names the key, the value and the fix of each, a line for each."""

    def __init__(self, *refusals: Refusal | str) -> None:
        super().__init__("\n".join(map(str, refusals)))
        self.refusals = refusals


def require(condition: bool, key: str, value: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {fix}")


@dataclass(frozen=True)
class Bounds:
    """Which values a number may have; None: no bound on that side."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    meaning: str = ""  # of a bound, where it is not plain: "0 (strictly on-policy)"

    def refusal(self, key: str, value: float) -> Refusal | None:
        """What is wrong with a value; None: nothing."""
        sides = (
            (self.at_least, "at least", operator.ge),
            (self.above, "above", operator.gt),
            (self.at_most, "at most", operator.le),
            (self.below, "below", operator.lt),
        )
        wanted = [(f"{words} {bound:g}", holds(value, bound)) for bound, words, holds in sides if bound is not None]
        if all(ok for _, ok in wanted):
            return None
        meaning = f"; {self.meaning}" if self.meaning else ""
        return Refusal(key, value, f"must be {' and '.join(words for words, _ in wanted)}{meaning}")


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    meaning: str = "",
    resume: bool = True,
) -> Any:
    """A field of a configuration: its default, its range, and whether a resumed run may have another value.

    Args:
        default: a value, or a function that makes one.
        meaning: said after the bounds where they are not plain.
        resume: False: a run that is resumed with another value would be another run, and is refused.
    """
    metadata = {"bounds": Bounds(at_least, above, at_most, below, meaning), "resume": resume}
    if callable(default) and not isinstance(default, Enum):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Settings:
    """A part of a configuration: plain while it is composed, read-only once it is frozen."""

    def __setattr__(self, name: str, value: Any) -> None:
        if "_frozen" in vars(self):
            raise AttributeError(f"the configuration is frozen after composition: {name} cannot change")
        object.__setattr__(self, name, value)

    def freeze(self) -> None:
        """Make this part read-only, all the way down.

        OmegaConf refuses command-line overrides of frozen dataclasses, so they are plain until here.
        """
        for value in list(vars(self).values()):
            parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else (value,)
            for part in parts:
                if isinstance(part, Settings):
                    part.freeze()
        object.__setattr__(self, "_frozen", True)

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Every value here, and below, that is out of the bounds of its field.

        Args:
            prefix: full name of this part, with a dot behind it.
        """
        for item in fields(self):  # type: ignore[arg-type]
            value, key = getattr(self, item.name), f"{prefix}{item.name}"
            if isinstance(value, Settings):
                yield from value.refusals(f"{key}.")
            elif isinstance(value, dict):
                for name, part in value.items():
                    if isinstance(part, Settings):
                        yield from part.refusals(f"{key}.{name}.")
            elif isinstance(value, list):
                for index, part in enumerate(value):
                    if isinstance(part, Settings):
                        yield from part.refusals(f"{key}[{index}].")
            elif value is not None and "bounds" in item.metadata:
                refusal = item.metadata["bounds"].refusal(key, value)
                if refusal is not None:
                    yield refusal


class DType(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
