"""What one optimiser step and one publication of weights did."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepReport:
    """`metrics` are means over the step's loss tokens unless their name says otherwise, over all ranks."""

    policy_version: int  # after the step
    loss: float
    grad_norm: float  # before clipping
    learning_rate: float
    loss_tokens: int
    seconds: float
    cpu_seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishReport:
    """What one publication of weights did."""

    version: int
    seconds: float
    engine_seconds: float | None  # of them, spent by the slowest engine on loading; None where it cannot tell
    write_seconds: float | None  # of them, spent on copying and hashing; None where vLLM does it
    nbytes: int
    checksum: str | None  # of all buckets; None where vLLM carries them
