"""What every room's settings are made of: shared enums, deadlines, and how a wrong value is refused."""

from dataclasses import dataclass
from enum import Enum


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


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, the value and the fix."""


def require(condition: bool, key: str, value: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {fix}")


@dataclass(frozen=True)
class Fault:
    """A setting that cannot work."""

    key: str
    value: object
    fix: str


class DType(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
