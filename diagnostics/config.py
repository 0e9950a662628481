"""Settings of the diagnosis."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tutelage.registry import Registry
from tutelage.settings import Bounds, Refusal, Settings, setting


@dataclass
class PreflightConfig(Settings):
    """Checks before the first step."""

    enabled: bool = True  # launch checks the set-up on the real workers before it trains


@dataclass
class ProbeConfig(Settings):
    """The compatibility probe: what student and teacher do with held-out prompts, without training."""

    # the first n of evaluation.prompts; at most so many that a probe is a matter of minutes
    prompts: int = setting(64, at_least=1, at_most=200)
    samples_per_prompt: int = setting(4, at_least=1)  # answers of each model to each of them
    depths: list[float] = setting(
        lambda: [0.125, 0.25, 0.5, 0.75], above=0, below=1, meaning="shares of an answer"
    )  # shares of a student's answer
    # generated and scored, prompts included; the probe is made smaller to fit
    max_tokens: int = setting(200_000, at_least=1)
    shown: int = setting(8, at_least=0, meaning="0: none")  # trajectories in the token view
    earlier_teacher: str | None = None  # the teacher's checkpoint before its reinforcement, to compare it with
    # of the student's answers that both models' internals are compared on
    representation: int = setting(0, at_least=0, meaning="0: none")

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse to look at no depth."""
        yield from super().refusals(prefix)
        if not self.depths:
            fix = "are shares of a student's answer; give one or more, for instance"
            yield Refusal(f"{prefix}depths", self.depths, f"{fix} [0.125,0.25,0.5,0.75]")


class NodeSelection(Enum):
    """Which places of an answer targeted rollouts start from, within windows of positions that double in length."""

    uniform = "uniform"  # any: the same places whatever the teacher
    kl = "kl"  # in proportion to how far apart student and teacher are


@dataclass
class AlignmentTeacher(Settings):
    """A further teacher that is looked at on the same places as the run's own."""

    model: str
    sees_context: bool = False  # the context that the run's own teacher sees


@dataclass
class AlignmentConfig(Settings):
    """Targeted rollouts: where does the teacher's gradient point to what the student succeeds with?"""

    enabled: bool = False
    questions: int = setting(24, at_least=1)  # the first n training prompts
    rollouts_per_question: int = setting(4, at_least=1)  # the student's answers, graded
    rollouts_per_stratum: int = setting(1, at_least=1)  # looked at, of the correct and of the incorrect ones each
    nodes_per_window: int = setting(1, at_least=1)  # places in each window of positions [2^i, 2^(i+1))
    selection: NodeSelection = NodeSelection.uniform
    # most likely tokens of student and teacher each that are forced, beside the sampled one
    candidates: int = setting(3, at_least=1)
    completions: int = setting(16, at_least=2)  # of each candidate, by the student
    # a candidate with fewer is left out
    min_completions: int = setting(8, at_least=2, meaning="there must be halves to compare")
    # of the Beta prior of the probability of success
    alpha: float = setting(0.5, above=0, meaning="0.5 is the Jeffreys prior")
    # a place whose ideal gradient is below so many standard errors is left out
    min_signal_to_noise: float = setting(2.0, at_least=0)
    # generated and scored, the common prompt of a candidate's completions counted once
    max_tokens: int = setting(1_000_000, at_least=1)
    teachers: list[AlignmentTeacher] = field(default_factory=list)

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse to leave out every candidate."""
        yield from super().refusals(prefix)
        if self.min_completions > self.completions:
            fix = f"every candidate would be left out; set at most {prefix}completions={self.completions}"
            yield Refusal(f"{prefix}min_completions", self.min_completions, fix)


class Remedy(Enum):
    """What is done when an alarm is raised; it is logged whatever it is."""

    warn = "warn"
    stop = "stop"  # end the run after the step, as it is
    roll_back = "roll_back"  # end it with the last checkpoint from before the alarm's window


STATISTICS: Registry[Callable[[Sequence[float]], float]] = Registry("alarms.rules.*.statistic")  # of a window
STATISTICS.add("mean", statistics.fmean)
STATISTICS.add("median", statistics.median)


@dataclass(frozen=True)
class Comparison:
    """When the statistic of a window is out of bounds."""

    bound: Callable[["AlarmRule", float], float]  # of a rule, given its statistic in the first window of the run
    upward: bool  # out of bounds is above it, else below
    is_ratio: bool = False  # the rule's threshold multiplies what the run began with


COMPARISONS: Registry[Comparison] = Registry("alarms.rules.*.comparison")
COMPARISONS.add("above", Comparison(lambda rule, first: rule.threshold, upward=True))
COMPARISONS.add("below", Comparison(lambda rule, first: rule.threshold, upward=False))
COMPARISONS.add("rises_by", Comparison(lambda rule, first: first + rule.threshold, upward=True))
COMPARISONS.add("falls_by", Comparison(lambda rule, first: first - rule.threshold, upward=False))
COMPARISONS.add(
    "grows_to", Comparison(lambda rule, first: rule.threshold * max(first, rule.floor), upward=True, is_ratio=True)
)
COMPARISONS.add("shrinks_to", Comparison(lambda rule, first: rule.threshold * first, upward=False, is_ratio=True))


@dataclass
class AlarmRule(Settings):
    """An alarm is raised when the window of `patience` consecutive steps is out of bounds."""

    metric: str  # a name in metrics.jsonl
    threshold: float = field(metadata={"bounds": Bounds(below=math.inf)})
    comparison: str = "above"  # a name in COMPARISONS
    statistic: str = "mean"  # a name in STATISTICS
    window: int = setting(3, at_least=1, meaning="it counts steps")  # that have the metric; evaluations for eval/…
    patience: int = setting(1, at_least=1, meaning="it counts steps")
    floor: float = setting(0.0, at_least=0)  # of the first window's statistic in grows_to: what is smaller is noise
    matches: str = ""  # the published failure that looks so
    remedy: Remedy = Remedy.warn
    optional: bool = False  # no warning where a run does not have the metric

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """What is wrong with the rule by itself."""
        yield from super().refusals(prefix)
        if not self.metric:
            fix = "name one of metrics.jsonl, for instance rollout/truncated_share"
            yield Refusal(f"{prefix}metric", "''", fix)
        choices = (
            COMPARISONS.refusal(self.comparison, f"{prefix}comparison"),
            STATISTICS.refusal(self.statistic, f"{prefix}statistic"),
        )
        yield from (refusal for refusal in choices if refusal is not None)
        if self.comparison in COMPARISONS and COMPARISONS[self.comparison].is_ratio and self.threshold <= 0:
            fix = f"multiplies what the run began with ({self.comparison}); must be above 0"
            yield Refusal(f"{prefix}threshold", self.threshold, fix)
        if self.floor and self.comparison != "grows_to":
            fix = f"serves grows_to, and this rule is {self.comparison}; set 0"
            yield Refusal(f"{prefix}floor", self.floor, fix)


@dataclass
class AlarmsConfig(Settings):
    """What is watched while a run trains."""

    rules: dict[str, AlarmRule] = field(default_factory=dict)  # by name
