"""What every step tells of a run's health, cheaply: from the batch as it is, and from what the learner measured.

A monitor is a function of one step; its number is `health/<name>` in metrics.jsonl, where an alarm rule can watch it.
One more is one registration, in a user's own package too:

    MONITORS.add("questions", lambda step: fmean("?" in text for text in step.texts) if step.texts else None)

and `'+alarms.rules={asks_back: {metric: health/questions, threshold: 0.5}}'` on the command line.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from tutelage.records.trajectory import CORRECT, FinishReason, Trajectory
from tutelage.registry import Registry

REPETITION_TOKENS = 3
# Words by which a model says that it is not sure; distillation can take them away (epistemic verbalisation).
_HEDGES = re.compile(r"\b(?:wait|hmm+|perhaps|maybe|actually|alternatively|seems|might|likely|check)\b", re.IGNORECASE)
_ANSWER_MARKS = re.compile(r"####|\\boxed\s*\{|<answer>", re.IGNORECASE)
_DISTANCES = ("train/reverse_kl", "train/support_reverse_kl")  # the first that a step has is what absorption is of


@dataclass(frozen=True)
class Step:
    """What a monitor may look at."""

    own: Sequence[Trajectory] = ()  # the step's sequences that the student wrote
    texts: Sequence[str] = ()  # what their responses decode to
    metrics: Mapping[str, float] = field(default_factory=dict)  # of this step, as metrics.jsonl names them
    before: Mapping[str, float] = field(default_factory=dict)  # of the step before; empty at the first

    @property
    def rewards(self) -> list[float]:
        """Rewards of the own sequences that a verifier graded."""
        return [trajectory.reward for trajectory in self.own if trajectory.reward is not None]


Monitor = Callable[[Step], float | None]  # None: there is nothing to say of this step
MONITORS: Registry[Monitor] = Registry("alarms.rules.*.metric")


def measure(step: Step) -> dict[str, float]:
    """Return `health/<name>` of every monitor that has something to say of the step."""
    values = {f"health/{name}": MONITORS[name](step) for name in MONITORS}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def repetition(ids: Sequence[int], n: int) -> float:
    """Share of the n-grams of a response that stand in it before, from 0 to 1."""
    grams = len(ids) - n + 1
    if grams < 1:
        return 0.0
    return 1 - len(set(zip(*(ids[i:] for i in range(n)), strict=False))) / grams


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of its zlib stream: prose has 2 to 3, a loop 10 and more, an empty text 1."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 1.0


def mean_repetition(step: Step) -> float | None:
    """Mean share of repeated 3-grams of the responses."""
    return fmean(repetition(t.response_ids.tolist(), REPETITION_TOKENS) for t in step.own) if step.own else None


def mean_compression_ratio(step: Step) -> float | None:
    """Mean compression ratio of the responses' texts."""
    return fmean(map(compression_ratio, step.texts)) if step.texts else None


def hedges_per_1k_tokens(step: Step) -> float | None:
    """Hedge words in a thousand tokens of the responses."""
    tokens = sum(len(t.response_ids) for t in step.own)
    return 1000 * sum(len(_HEDGES.findall(text)) for text in step.texts) / max(tokens, 1) if step.own else None


def stopped_share(step: Step) -> float | None:
    """Share of the responses that came to their end."""
    return fmean(t.finish_reason is FinishReason.STOP for t in step.own) if step.own else None


def answer_marked_share(step: Step) -> float | None:
    """Share of the responses that mark their final answer; only where a verifier graded some."""
    return fmean(bool(_ANSWER_MARKS.search(text)) for text in step.texts) if step.rewards else None


def correct_share(step: Step) -> float | None:
    """Share of the graded responses that are right."""
    return fmean(reward >= CORRECT for reward in step.rewards) if step.rewards else None


def support_mass(step: Step) -> float | None:
    """Student's probability of the ids that the objective looks at."""
    return 1 - step.metrics["train/student_tail_mass"] if "train/student_tail_mass" in step.metrics else None


def importance_ratio_drift(step: Step) -> float | None:
    """How far the mean importance ratio is from 1."""
    return abs(step.metrics["train/importance_ratio"] - 1) if "train/importance_ratio" in step.metrics else None


def absorption_rate(step: Step) -> float | None:
    """Relative fall of the reverse KL to the teacher since the step before."""
    distance = next((name for name in _DISTANCES if name in step.metrics), None)
    if distance is None or step.before.get(distance, 0.0) <= 0:
        return None
    return 1 - step.metrics[distance] / step.before[distance]


MONITORS.add("repetition", mean_repetition)
MONITORS.add("compression_ratio", mean_compression_ratio)
MONITORS.add("hedges_per_1k_tokens", hedges_per_1k_tokens)
MONITORS.add("stopped_share", stopped_share)
MONITORS.add("answer_marked_share", answer_marked_share)
MONITORS.add("correct_share", correct_share)
MONITORS.add("support_mass", support_mass)
MONITORS.add("importance_ratio_drift", importance_ratio_drift)
MONITORS.add("absorption_rate", absorption_rate)
