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


@dataclass(frozen=True)
class ExampleDivergence:
    """How far apart student and teacher are on one response: exact, *sums* over its loss tokens."""

    example_index: int  # which example of the batch
    tokens: int
    reverse_kl: float  # KL(student || teacher), nats
    forward_kl: float  # KL(teacher || student), nats
    overlap: float  # shares of the two top-16 that coincide
