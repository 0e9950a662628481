"""How numbers are written for people, and what they are called."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

NOTHING = "–"
ROLES = {"student_before": "student before", "student_after": "student after", "teacher": "teacher"}


@dataclass(frozen=True)
class Wording:
    """What a statistic of student and teacher is called, and how to read it."""

    label: str
    unit: str
    reading: str


WORDINGS = {
    "overlap_ratio": Wording("overlap ratio", "", "share of the two top k that coincides; higher is better"),
    "overlap_mass_student": Wording("overlap mass, student", "", "student's probability of the shared ids"),
    "overlap_mass_teacher": Wording("overlap mass, teacher", "", "teacher's probability of the shared ids"),
    "overlap_token_advantage": Wording(
        "overlap-token advantage", "nats", "0 is good; strongly negative: the student is over-confident"
    ),
    "overlap_undefined_share": Wording("share without an advantage", "", "positions that share fewer than two ids"),
    "entropy_gap": Wording("entropy gap", "nats", "|H(teacher) − H(student)|; smaller is better"),
    "student_entropy": Wording("entropy of the student", "nats", "how undecided the student is"),
    "teacher_entropy": Wording("entropy of the teacher", "nats", "how undecided the teacher is"),
    "reverse_kl": Wording("reverse KL", "nats a token", "KL(student ‖ teacher), what is left to learn"),
    "forward_kl": Wording("forward KL", "nats a token", "KL(teacher ‖ student)"),
    "base_reverse_kl": Wording(
        "KL to its initial weights", "nats a token", "how far the student has gone: what it may have forgotten"
    ),
    "sampled_log_ratio": Wording("log-ratio of the tokens", "nats a token", "log q − log p, teacher minus student"),
    "earlier_teacher_log_ratio": Wording(
        "log-ratio to the earlier teacher", "nats a token", "log q − log q₀ of the student's tokens"
    ),
    "sampled_reverse_kl": Wording("reverse KL, sampled", "nats a token", "log p − log q of the student's tokens"),
    "loss": Wording("loss", "", ""),
    "grad_norm": Wording("gradient norm", "", ""),
    "rollout_logprob_gap_mean": Wording("log-prob gap, engine and learner", "nats", ""),
    "accuracy": Wording("accuracy", "", "graded by the verifier"),
    "mean_response_tokens": Wording("answer length", "tokens", ""),
    "truncated_share": Wording("truncated share", "", "answers that hit the length limit"),
}


def describe(name: str) -> Wording:
    """Say what a statistic is called; one that is not known is called by its name."""
    return WORDINGS.get(name, Wording(name.replace("_", " "), "", ""))


def figure(value: float | None, signed: bool = False, scale: float | None = None) -> str:
    """Write about three significant digits, a minus that can be seen; a dash for what is missing.

    Args:
        scale: a magnitude that sets the number of decimals; none: the value's own.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    scale = abs(value) if scale is None else scale
    if value == 0 and not scale:
        return "0"
    decimals = (3 if scale >= 0.1 else 4) if scale < 1 else max(0, 2 - math.floor(math.log10(scale)))
    text = f"{value:.1e}" if scale < 5e-4 else f"{value:.{decimals}f}"
    sign = "+" if signed and value > 0 else ""
    return sign + text.replace("-", "−")


def interval(record: Mapping[str, Any] | None, signed: bool = False) -> str:
    """Write mean [low, high]."""
    if record is None or record["mean"] is None:
        return NOTHING
    low, high = record.get("low"), record.get("high")
    if low is None or high is None:
        return figure(record["mean"], signed)
    scale = max(abs(record["mean"]), (high - low) / 2)
    ends = (figure(value, signed, scale) for value in (record["mean"], low, high))
    return "{} [{}, {}]".format(*ends)


def ends(value: Mapping[str, Any], signed: bool = False) -> str:
    """Write low to high, with the decimals of the mean."""
    low, high = (figure(value.get(end), signed, abs(value["mean"])) for end in ("low", "high"))
    return f"{low} to {high}"


def is_interval(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value of a record is a mean with its interval."""
    return isinstance(value, Mapping) and "mean" in value


def interval_of(evaluation: Mapping[str, Any], role: str, name: str) -> Mapping[str, Any] | None:
    """Return the interval of a statistic of an evaluation's role, None where it has none."""
    value = ((evaluation.get(role) or {}).get("intervals") or {}).get(name)
    return value if is_interval(value) else None
