"""The names in metrics.jsonl: what an alarm can watch, and the nearest to a name that there is not."""

import difflib
import re
from collections.abc import Collection

from diagnostics.monitors import MONITORS

_TRAIN = [
    "loss",
    "skipped",
    "grad_norm",
    "learning_rate",
    "loss_tokens",
    "gated_share",
    "student_entropy",
    "entropy_gap",
    "sampled_reverse_kl",
    "reverse_kl",
    "forward_kl",
    "overlap_ratio",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "overlap_token_advantage",
    "overlap_undefined_share",
]  # of every objective
_TERM = [
    "advantage",
    "importance_ratio",
    "importance_ratio_clipped",
    "student_tail_mass",
    "teacher_tail_mass",
    "support_reverse_kl",
    "support_forward_kl",
    "top_overlap_ratio",
]  # of its terms, further ones under their own names
_EVAL = [
    "mean_response_tokens",
    "truncated_share",
    "accuracy",
    "reverse_kl",
    "forward_kl",
    "overlap_ratio",
    "base_reverse_kl",
]
_ROLLOUT = [
    "mean_response_tokens",
    "truncated_share",
    "staleness_mean",
    "staleness_max",
    "on_policy_fraction",
    "accuracy",
    "restarts",
]
_TEACHER = [
    "mean_logprob",
    "mean_entropy",
    "unmatched_share",
    "merged_share",
    "privileged_share",
    "retries",
    "restarts",
]
_TIME = ["learn", "learn_cpu", "monitors_cpu", "rollout", "scoring", "learning", "weight_sync", "waiting"]
_HEALTH = ["rollout_logprob_gap_mean", "rollout_logprob_gap_max"]  # beside the monitors
# What runs add: places in the response, teachers by their keys, counts of what was left out.
_ADDED = re.compile(
    r"train/\w+/tokens_\d+_\d+|teacher/[^/]+/(?:requests|steps_without_request)"
    r"|rollout/(?:sequences_\w+|groups_\w+)|(?:rollout|eval)/grading_\w+"
)


def metric_names(further_terms: Collection[str] = ()) -> list[str]:
    """List the names that a run may have; monitors of users' own packages are among them.

    Args:
        further_terms: names of `objective.further_terms`.
    """
    terms = [*_TERM, *(f"{term}_{name}" for term in further_terms for name in _TERM)]
    groups = {
        "train": [*_TRAIN, *terms],
        "eval": _EVAL,
        "rollout": _ROLLOUT,
        "teacher": _TEACHER,
        "run": ["restarts"],
        "time": _TIME,
        "health": [*_HEALTH, *MONITORS],
    }
    return [f"{group}/{name}" for group, names in groups.items() for name in names]


def unknown_metric(name: str, further_terms: Collection[str] = ()) -> str | None:
    """Name the metric that was most likely meant by one that no run can have; None: a run can have it."""
    names = metric_names(further_terms)
    if name in names or _ADDED.fullmatch(name):
        return None
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
