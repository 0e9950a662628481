"""Settings of the diagnosis."""

from dataclasses import dataclass, field
from enum import Enum


@dataclass
class PreflightConfig:
    enabled: bool = True  # launch checks the set-up on the real workers before it trains


@dataclass
class ProbeConfig:
    """The compatibility probe: what student and teacher do with held-out prompts, without training."""

    prompts: int = 64  # the first n of evaluation.prompts, at most 200
    samples_per_prompt: int = 4  # answers of each model to each of them
    depths: list[float] = field(default_factory=lambda: [0.125, 0.25, 0.5, 0.75])  # shares of a student's answer
    max_tokens: int = 200_000  # generated and scored, prompts included; the probe is made smaller to fit
    shown: int = 8  # trajectories in the token view
    earlier_teacher: str | None = None  # the teacher's checkpoint before its reinforcement, to compare it with
    representation: int = 0  # of the student's answers that both models' internals are compared on; 0: none


class NodeSelection(Enum):
    """Which places of an answer targeted rollouts start from, within windows of positions that double in length."""

    uniform = "uniform"  # any: the same places whatever the teacher
    kl = "kl"  # in proportion to how far apart student and teacher are


@dataclass
class AlignmentTeacher:
    """A further teacher that is looked at on the same places as the run's own."""

    model: str
    sees_context: bool = False  # the context that the run's own teacher sees


@dataclass
class AlignmentConfig:
    """Targeted rollouts: where does the teacher's gradient point to what the student succeeds with?"""

    enabled: bool = False
    questions: int = 24  # the first n training prompts
    rollouts_per_question: int = 4  # the student's answers, graded
    rollouts_per_stratum: int = 1  # of them looked at, of the correct and of the incorrect ones each
    nodes_per_window: int = 1  # places in each window of positions [2^i, 2^(i+1))
    selection: NodeSelection = NodeSelection.uniform
    candidates: int = 3  # most likely tokens of student and teacher each that are forced, beside the sampled one
    completions: int = 16  # of each candidate, by the student
    min_completions: int = 8  # a candidate with fewer is left out
    alpha: float = 0.5  # of the Beta prior of the probability of success
    min_signal_to_noise: float = 2.0  # a place whose ideal gradient is below so many standard errors is left out
    max_tokens: int = 1_000_000  # generated and scored, the common prompt of a candidate's completions counted once
    teachers: list[AlignmentTeacher] = field(default_factory=list)


class Remedy(Enum):
    """What is done when an alarm is raised; it is logged whatever it is."""

    warn = "warn"
    stop = "stop"  # end the run after the step, as it is
    roll_back = "roll_back"  # end it with the last checkpoint from before the alarm's window


class Statistic(Enum):
    """Of a window."""

    mean = "mean"
    median = "median"


class Comparison(Enum):
    """When the statistic of a window is out of bounds; "first" is that of the metric's first window in the run."""

    above = "above"  # > threshold
    below = "below"  # < threshold
    rises_by = "rises_by"  # > first + threshold
    falls_by = "falls_by"  # < first - threshold
    grows_to = "grows_to"  # > threshold * max(first, floor)
    shrinks_to = "shrinks_to"  # < threshold * first


@dataclass
class AlarmRule:
    """An alarm is raised when the window of `patience` consecutive steps is out of bounds."""

    metric: str  # a name in metrics.jsonl
    threshold: float
    comparison: Comparison = Comparison.above
    statistic: Statistic = Statistic.mean
    window: int = 3  # steps that have the metric; evaluations for eval/…
    patience: int = 1  # steps
    floor: float = 0.0  # of the first window's statistic in grows_to: what is smaller is noise
    matches: str = ""  # the published failure that looks so
    remedy: Remedy = Remedy.warn
    optional: bool = False  # no warning where a run does not have the metric


@dataclass
class AlarmsConfig:
    rules: dict[str, AlarmRule] = field(default_factory=dict)  # by name
