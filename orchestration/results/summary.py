"""What a run found out: evaluations, kept so that a resumed run does not repeat them, and summary.json."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from diagnostics.intervals import Interval
from tutelage.files import read_sealed, write_sealed

log = logging.getLogger("tutelage")
ROLES = ("student_before", "student_after", "teacher")  # whose evaluations a run has
STAGES = ("rollout", "scoring", "learning", "weight_sync", "waiting")  # that a run's seconds are counted for


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
    grading_timeouts: int = 0  # answers that the verifier did not get done with; they count as wrong
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """An evaluation with the texts behind it."""

    evaluation: Evaluation
    texts: dict[str, str] = field(default_factory=dict)  # prompt id -> answer


class EvaluationStore:
    """One JSON file a role, so that a resumed run does not evaluate the untrained student again.

    One that is damaged counts as none, so it is evaluated again.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "evaluations"
        self._folder.mkdir(exist_ok=True)

    def has(self, role: str) -> bool:
        return role in self.load()

    def keep(self, role: str, answers: Answers) -> None:
        write_sealed(self._path(role), asdict(answers))

    def load(self) -> dict[str, Answers]:
        """Return what is kept, by role."""
        answers = {}
        for role in ROLES:
            path = self._path(role)
            read = read_sealed(path)
            try:
                if read is not None:
                    evaluation, texts = read[0]["evaluation"], read[0]["texts"]
                    intervals = {name: Interval(**value) for name, value in evaluation.pop("intervals").items()}
                    answers[role] = Answers(Evaluation(intervals=intervals, **evaluation), texts)
            except (KeyError, TypeError, AttributeError):  # of another version
                read = None
            if read is None and path.exists():
                path.rename(path.with_suffix(".damaged"))
                log.warning("%s is damaged: put aside, and evaluated again where that can still be done", path)
        return answers

    def _path(self, role: str) -> Path:
        return self._folder / f"{role}.json"


def gap_recovery(evaluation: Mapping[str, Evaluation | None]) -> float | None:
    """(after − before) / (teacher − before) in accuracy; None where the teacher does not score higher."""
    before, after, teacher = (item.accuracy if item else None for item in (evaluation[role] for role in ROLES))
    if before is None or after is None or teacher is None or teacher <= before:
        return None
    return (after - before) / (teacher - before)


@dataclass(frozen=True)
class Summary:
    """The machine-readable outcome of a run, as summary.json has it."""

    status: str  # completed, stopped (by a remedy), interrupted, preempted or failed
    steps: int
    wall_seconds: float
    stage_seconds: dict[str, float]
    tokens: dict[str, int]
    tokens_per_second: float  # trained
    evaluation: dict[str, Evaluation | None]
    gap_recovery: float | None
    counts: dict[str, int] = field(default_factory=dict)  # of what the stage left out, by reason
    restarts: dict[str, int] = field(default_factory=dict)  # of workers, and of the whole run, by role
    alarms: list[str] = field(default_factory=list)  # "step N: rule: what was seen", in the order in which they came
    remedies: list[str] = field(default_factory=list)  # that were taken
