"""What became of a run of the lab, read from the files that it left."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestration.results.directory import stage_folders
from orchestration.results.tracker import read_metrics

WINDOW = 5  # steps that a figure at the beginning or the end of a run is the mean of


@dataclass(frozen=True)
class Outcome:
    """Figures of one run, or of one recipe."""

    summary: dict[str, Any]  # of the run, or of a recipe's last stage
    before: dict[str, Any]  # evaluation of the student that it began with, in its first stage
    steps: list[dict[str, float]]  # metrics of every step of that stage
    evaluations: list[dict[str, float]]  # on held-out prompts, as the stage went on
    teacher_tokens: int  # that the teacher wrote or scored, in all stages

    @classmethod
    def read(cls, folder: Path) -> "Outcome":
        stages = stage_folders(folder) or [folder]
        summaries = [json.loads((stage / "summary.json").read_text(encoding="utf-8")) for stage in stages]
        rows = read_metrics(stages[-1])
        return cls(
            summary=summaries[-1],
            before=summaries[0]["evaluation"]["student_before"],
            steps=[row for row in rows if "train/loss" in row],
            evaluations=[row for row in rows if "eval/mean_response_tokens" in row],
            teacher_tokens=sum(
                int(tokens["scored"] or tokens["rollout"]) for tokens in (s["tokens"] for s in summaries)
            ),
        )

    @property
    def accuracy_before(self) -> float:
        return float(self.before["accuracy"])

    @property
    def accuracy_started(self) -> float:
        """Accuracy of the student that the last stage began with."""
        return float(self.summary["evaluation"]["student_before"]["accuracy"])

    @property
    def accuracy_after(self) -> float:
        return float(self.summary["evaluation"]["student_after"]["accuracy"])

    @property
    def truncated_after(self) -> float:
        """Share of the student's answers that did not come to an end."""
        return float(self.summary["evaluation"]["student_after"]["truncated_share"])

    @property
    def accuracy_teacher(self) -> float | None:
        teacher = self.summary["evaluation"]["teacher"]
        return None if teacher is None else float(teacher["accuracy"])

    @property
    def gain(self) -> float:
        return self.accuracy_after - self.accuracy_before

    @property
    def recovery(self) -> float | None:
        """Share of the gap to the teacher that was closed; None where the teacher does not score higher."""
        teacher = self.accuracy_teacher
        if teacher is None or teacher <= self.accuracy_before:
            return None
        return self.gain / (teacher - self.accuracy_before)

    def domain_accuracy(self, domain: str, role: str = "student_after") -> float:
        evaluation = self.before if role == "student_before" else self.summary["evaluation"][role]
        return float(evaluation["intervals"][f"accuracy/{domain}"]["mean"])

    def first(self, name: str) -> float:
        return fmean(row[name] for row in self.steps[:WINDOW])

    def last(self, name: str) -> float:
        return fmean(row[name] for row in self.steps[-WINDOW:])

    def mean(self, name: str) -> float:
        return fmean(row[name] for row in self.steps)

    def change(self, name: str) -> float:
        return self.last(name) - self.first(name)
