"""Settings of the diagnosis."""

from dataclasses import dataclass, field


@dataclass
class PreflightConfig:
    enabled: bool = True  # launch checks the set-up on the real workers before it trains


@dataclass
class ProbeConfig:
    """The compatibility probe: what student and teacher do on training prompts, without training."""

    prompts: int = 64  # the first n training prompts, at most 200
    samples_per_prompt: int = 4  # answers of each model to each of them
    depths: list[float] = field(default_factory=lambda: [0.125, 0.25, 0.5, 0.75])  # shares of a student's answer
    max_tokens: int = 200_000  # generated and scored, prompts included; the probe is made smaller to fit
    shown: int = 8  # trajectories in the token view


@dataclass
class AlignmentConfig:
    """Targeted rollouts: where does the teacher's gradient point to what the student succeeds with?"""

    enabled: bool = False
