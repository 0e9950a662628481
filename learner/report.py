"""What one optimiser step did."""

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
