"""What every room's settings are made of: shared enums, deadlines, and how a wrong value is refused."""

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

SEEDS = 2**32 - 1  # the largest seed that numpy and torch both take
TEMPLATE_TIME = "2026-01-01T00:00:00"  # what a clock in a chat template shows where nobody says otherwise


@dataclass(frozen=True)
class Refusal:
    """One setting that cannot work, and what to write instead."""

    key: str  # full name of the setting, for instance learner.zero_stage
    value: object
    fix: str  # what is wrong with it and what to change, after "key=value: "

    def __str__(self) -> str:
        return f"{self.key}={_as_written(self.value)}: {self.fix}"


def _as_written(value: object) -> str:
    """A value as it stands on the command line."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"


class ConfigError(ValueError):
    """Settings that cannot work; the message names the key, the value and the fix of each, a line for each."""

    def __init__(self, *refusals: Refusal) -> None:
        super().__init__("\n".join(map(str, refusals)))
        self.refusals = refusals


class Refusals(list[Refusal]):
    """What several checks have against a run's settings, to be raised together."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep what a block refuses, and go on behind it."""
        try:
            yield
        except ConfigError as error:
            self.extend(error.refusals)

    def raise_all(self) -> None:
        """
        Raises:
            ConfigError: with every refusal, if there is one.
        """
        if self:
            raise ConfigError(*self)


@dataclass(frozen=True)
class Bounds:
    """Which values a number may have, or each number of a list; None: no bound on that side. None is infinite."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    meaning: str = ""  # of a bound, where it is not plain: "0 (strictly on-policy)"
    length: int | None = None  # of a list; None: any

    def refusal(self, key: str, value: float | list[float] | dict[str, float]) -> Refusal | None:
        """What is wrong with a value; None: nothing."""
        numbers = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if all(map(self._holds, numbers)) and self.length in (None, len(numbers)):
            return None
        return Refusal(key, value, f"must be {self}")

    def _holds(self, number: float) -> bool:
        sides = (
            (self.at_least, operator.ge),
            (self.above, operator.gt),
            (self.at_most, operator.le),
            (self.below, operator.lt),
        )
        return math.isfinite(number) and all(holds(number, bound) for bound, holds in sides if bound is not None)

    def __str__(self) -> str:
        """The bounds as a message has them: "at least 0 and below 1; it is a share"."""
        sides = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        bounds = " and ".join(
            f"{words} {bound:.10g}" for words, bound in sides.items() if bound is not None and math.isfinite(bound)
        )
        each = f"{self.length} numbers, each " if self.length else ""
        return f"{each}{bounds or 'a finite number'}" + (f"; {self.meaning}" if self.meaning else "")


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    meaning: str = "",
    length: int | None = None,
    resume: bool = True,
    finished: bool = True,
) -> Any:
    """A field of a configuration: its default, its range, and until when it may have another value.

    Args:
        default: a value, or a function that makes one.
        meaning: said after the bounds where they are not plain.
        length: of a list, each number of which has the bounds.
        resume: False: a run that is resumed with another value would be another run, and is refused.
        finished: False: a finished stage was trained with it, so a recipe that goes on with another value is refused.
    """
    bounds = Bounds(at_least, above, at_most, below, meaning, length)
    metadata = {"bounds": bounds if bounds != Bounds() else None, "resume": resume, "finished": resume and finished}
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
        for _, part in self.parts():
            part.freeze()
        object.__setattr__(self, "_frozen", True)

    def parts(self) -> Iterator[tuple[str, "Settings"]]:
        """The parts that this one is made of, by name: "lora", "further_terms.forward", "teachers[0]"."""
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            named = {item.name: value}
            if isinstance(value, dict):
                named = {f"{item.name}.{key}": part for key, part in value.items()}
            elif isinstance(value, list):
                named = {f"{item.name}[{index}]": part for index, part in enumerate(value)}
            yield from ((name, part) for name, part in named.items() if isinstance(part, Settings))

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """What is wrong with this part alone, and with those below: values out of the bounds of their fields.

        A part with rules of its own adds them.

        Args:
            prefix: full name of this part, with a dot behind it.
        """
        for item in fields(self):  # type: ignore[arg-type]
            value, bounds = getattr(self, item.name), item.metadata.get("bounds")
            refusal = bounds.refusal(prefix + item.name, value) if bounds and value is not None else None
            if refusal is not None:
                yield refusal
        for name, part in self.parts():
            yield from part.refusals(f"{prefix}{name}.")


class DType(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(Enum):
    """What runs attention on packed sequences; any other would let them see each other, or need padding."""

    packed_sdpa = "packed_sdpa"  # anywhere
    flash_attention_2 = "flash_attention_2"  # on GPUs
    flash_attention_3 = "flash_attention_3"

    def refusals(self, key: str, gpus_key: str, gpus: float) -> Iterator[Refusal]:
        """Refuse what runs on GPUs only where there are none."""
        if self is not Attention.packed_sdpa and not gpus:
            yield Refusal(key, self, f"runs on GPUs only, and {gpus_key}=0; set packed_sdpa, or give GPUs")


class WeightTransfer(Enum):
    auto = "auto"  # whichever of the others fits
    shared_memory = "shared_memory"  # CPU engines on the learner's node
    object_store = "object_store"  # CPU engines, any node
    nccl = "nccl"  # GPUs, any node
    ipc = "ipc"  # learner and engine on the same GPU

    @property
    def backend(self) -> str:
        """Its name in vLLM's registries: an engine reads shared memory, whoever has brought the weights there."""
        return (WeightTransfer.shared_memory if self is WeightTransfer.object_store else self).value


class Placement(Enum):
    """Where the workers of a role go."""

    spread = "spread"  # over as many nodes as there are
    pack = "pack"  # to as few nodes as hold them
    near = "near"  # to the learner's nodes only
    away = "away"  # to other nodes than the learner's only


@dataclass
class PlacementConfig(Settings):
    """Which nodes of a cluster the workers go to."""

    learner: Placement = Placement.pack
    engines: Placement = Placement.spread  # of rollout

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        yield from super().refusals(prefix)
        if self.learner in (Placement.near, Placement.away):
            yield Refusal(
                f"{prefix}learner", self.learner.value, "is about others than the learner; use pack or spread"
            )


@dataclass
class ClusterConfig(Settings):
    address: str = "local"  # "local": a Ray of this run's own; "auto" or host:port: one that runs already
    cpus: int | None = setting(None, at_least=1)  # logical CPUs of a local cluster; none: what the workers ask for
    object_store_gib: float = setting(1.0, above=0)  # of a local cluster
    placement: PlacementConfig = field(default_factory=PlacementConfig)


@dataclass
class RecoveryConfig(Settings):
    """What is made of processes that die, and of steps that fail, while a run is under way."""

    # of the workers of one role, before the next death ends the run
    max_restarts: int = setting(3, at_least=0, meaning="0: a lost worker ends the run")
    # the driver too is started again where it is killed, or Ray dies under it
    restart_driver: bool = False
    # seconds in which a lost node may come back, or room come free elsewhere, for workers that are missing
    wait_for_node: float = setting(600, at_least=0)
    # in a row, whose loss or gradient is not finite, before the next one ends the run
    max_skipped_steps: int = setting(3, at_least=0, meaning="0: the first ends the run")


@dataclass
class TimeoutConfig(Settings):
    """Deadlines in seconds: nothing waits longer."""

    start: float = setting(600, above=0)  # of one worker: models loaded, engine up
    rollout: float = setting(600, above=0)  # from one finished rollout to the next
    scoring: float = setting(600, above=0)  # of one scoring request, its time in the queue included
    grading: float = setting(10, above=0)  # of one response by the verifier; one that takes longer scores 0
    learning: float = setting(1800, above=0)  # of one optimiser step or evaluation pass
    weight_sync: float = setting(300, above=0)
    preemption: float = setting(25, above=0)  # from SIGTERM to the end of the process, a last checkpoint included
    checkpoint: float = setting(1800, above=0)
