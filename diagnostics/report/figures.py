"""How numbers are written for people, and what they are called."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "–"


@dataclass(frozen=True)
class Statistic:
    """What a statistic of student and teacher is called, and how to read it."""

    label: str
    unit: str
    reading: str


STATISTICS = {
    "overlap_ratio": Statistic("overlap ratio", "", "share of the two top k that coincides; higher is better"),
    "overlap_mass_student": Statistic("overlap mass, student", "", "student's probability of the shared ids"),
    "overlap_mass_teacher": Statistic("overlap mass, teacher", "", "teacher's probability of the shared ids"),
    "overlap_token_advantage": Statistic(
        "overlap-token advantage", "nats", "0 is good; strongly negative: the student is over-confident"
    ),
    "overlap_undefined_share": Statistic("share without an advantage", "", "positions that share fewer than two ids"),
    "entropy_gap": Statistic("entropy gap", "nats", "|H(teacher) − H(student)|; smaller is better"),
    "student_entropy": Statistic("entropy of the student", "nats", "how undecided the student is"),
    "teacher_entropy": Statistic("entropy of the teacher", "nats", "how undecided the teacher is"),
    "reverse_kl": Statistic("reverse KL", "nats a token", "KL(student ‖ teacher), what is left to learn"),
    "forward_kl": Statistic("forward KL", "nats a token", "KL(teacher ‖ student)"),
    "sampled_log_ratio": Statistic("log-ratio of the tokens", "nats a token", "log q − log p, teacher minus student"),
    "sampled_reverse_kl": Statistic("reverse KL, sampled", "nats a token", "log p − log q of the student's tokens"),
    "accuracy": Statistic("accuracy", "", "graded by the verifier"),
    "mean_response_tokens": Statistic("answer length", "tokens", ""),
    "truncated_share": Statistic("truncated share", "", "answers that hit the length limit"),
}


def statistic(name: str) -> Statistic:
    """Of that name; one that is not known is called by its name."""
    return STATISTICS.get(name, Statistic(name.replace("_", " "), "", ""))


def figure(value: float | None, signed: bool = False) -> str:
    """Three significant digits, a minus that can be seen; a dash for what is missing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    digits = 3 if abs(value) < 1 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    if 0 < abs(value) < 1e-3:
        text = f"{value:.1e}"
    sign = "+" if signed and value > 0 else ""
    return sign + text.replace("-", "−")


def interval(found: Mapping[str, Any] | None, signed: bool = False) -> str:
    """mean [low, high]."""
    if not is_interval(found) or found["mean"] is None:
        return NOTHING
    low, high = (figure(found.get(end), signed) for end in ("low", "high"))
    mean = figure(found["mean"], signed)
    return mean if low == high == NOTHING else f"{mean} [{low}, {high}]"


def is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and "mean" in value


def cell(value: Any) -> str:
    """Any value that a table may hold."""
    if value is None:
        return NOTHING
    if is_interval(value):
        return interval(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value).replace("-", "−")
    return figure(value) if isinstance(value, float) else str(value)


def is_number(value: Any) -> bool:
    return is_interval(value) or (isinstance(value, int | float) and not isinstance(value, bool))
