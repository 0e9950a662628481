"""summary.json: the machine-readable outcome of a run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diagnostics.intervals import Interval
from tutelage.files import write_json


@dataclass(frozen=True)
class Evaluation:
    """One policy on the held-out prompts.

    KLs are exact, over the full vocabulary, at temperature 1, in nats per response token, on this policy's own
    answers; the teacher's own are None.
    """

    n_prompts: int
    mean_response_tokens: float
    truncated_share: float
    accuracy: float | None = None
    reverse_kl: float | None = None
    forward_kl: float | None = None
    overlap_ratio: float | None = None
    base_reverse_kl: float | None = None  # from the student's initial weights: what it may have forgotten
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """An evaluation with the texts behind it."""

    evaluation: Evaluation
    texts: dict[str, str] = field(default_factory=dict)  # prompt id -> answer


ROLES = ("student_before", "student_after", "teacher")


class EvaluationStore:
    """One JSON file a role, so that a resumed run does not evaluate the untrained student again."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "evaluations"
        self._folder.mkdir(exist_ok=True)

    def has(self, role: str) -> bool:
        return self._path(role).is_file()

    def keep(self, role: str, answers: Answers) -> None:
        write_json(self._path(role), asdict(answers))

    def load(self) -> dict[str, Answers]:
        return {role: _parse(json.loads(self._path(role).read_text())) for role in ROLES if self.has(role)}

    def _path(self, role: str) -> Path:
        return self._folder / f"{role}.json"


def _parse(raw: Mapping[str, Any]) -> Answers:
    fields = dict(raw["evaluation"])
    intervals = {name: Interval(**value) for name, value in fields.pop("intervals").items()}
    return Answers(Evaluation(intervals=intervals, **fields), dict(raw["texts"]))


STAGES = ("rollout", "scoring", "learning", "weight_sync", "waiting")


def gap_recovery(evaluation: Mapping[str, Evaluation | None]) -> float | None:
    """(after − before) / (teacher − before) in accuracy; None where the teacher does not score higher."""
    scores = [
        found.accuracy if found else None
        for found in (evaluation[role] for role in ("student_before", "student_after", "teacher"))
    ]
    before, after, teacher = scores
    if before is None or after is None or teacher is None or teacher <= before:
        return None
    return (after - before) / (teacher - before)


@dataclass(frozen=True)
class Summary:
    status: str  # completed, stopped (by a remedy), interrupted or failed
    steps: int
    wall_seconds: float
    stage_seconds: dict[str, float]
    tokens: dict[str, int]
    tokens_per_second: float  # trained
    evaluation: dict[str, Evaluation | None]
    gap_recovery: float | None
    counts: dict[str, int] = field(default_factory=dict)  # of what the stage left out, by reason
    alarms: list[str] = field(default_factory=list)  # "step N: rule: what was seen", in the order in which they came
    remedies: list[str] = field(default_factory=list)  # that were taken
