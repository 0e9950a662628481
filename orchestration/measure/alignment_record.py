"""What the measurement of a teacher's gradients found, and what it took: the section `alignment` of diagnosis.json."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diagnostics.alignment import summary
from diagnostics.alignment.gradients import NodeAlignment


@dataclass(frozen=True)
class AlignmentCost:
    """Tokens generated and scored; the common prompt of a candidate's completions counts once."""

    questions: int
    nodes: int
    candidates: int
    requests: int
    completions: int  # a candidate
    max_tokens: int  # the bound
    tokens_at_most: int  # stated beforehand
    tokens_predicted: int
    seconds_predicted: float  # from the pace of the student's own answers
    tokens: int
    seconds: float


@dataclass(frozen=True)
class GradientAlignment:
    """Every node under every teacher, and the tables that are made of them."""

    rows: tuple[NodeAlignment, ...]  # of every node under every teacher; the run's own teacher first
    teachers: tuple[str, ...]
    cost: AlignmentCost
    accuracy: dict[str, float]  # of the student, by question
    texts: dict[int, str]  # of the candidates

    def of(self, teacher: str) -> list[NodeAlignment]:
        return [row for row in self.rows if row.view.teacher == teacher]

    def as_json(self) -> dict[str, Any]:
        """Summary, proxies, questions and candidates are of the run's own teacher, the other tables of all."""
        own = self.of(self.teachers[0])
        strata = summary.summarise(own)
        return {
            "teacher": self.teachers[0],
            "cost": asdict(self.cost),
            "summary": {name: {key: i.as_json() for key, i in part.items()} for name, part in strata.items()},
            "nodes": {name: len(part) for name, part in summary.strata(summary.counting(own)).items()},
            "skipped": dict(Counter(row.skipped for row in own if row.skipped)),
            "tables": self._tables(own),
            "proxies": {name: estimate.as_json() for name, estimate in summary.proxies(own).items()},
            "candidates": [summary.candidate_rows(row, self.texts) for row in own],
        }

    def _tables(self, own: Sequence[NodeAlignment]) -> dict[str, list[dict[str, Any]]]:
        contexts = {True: "more than the student sees", False: "what the student sees"}
        by_context = [
            (name, has, [row for row in self.of(name) if row.view.has_context is has])
            for name in self.teachers
            for has in contexts
        ]
        return {
            "by teacher": [
                row for name in self.teachers for row in summary.group_rows(self.of(name), {"teacher": name})
            ],
            "by context": [
                row
                for name, has, rows in by_context
                if rows
                for row in summary.group_rows(rows, {"teacher": name, "context": contexts[has]})
            ],
            "between teachers": [
                row
                for name in self.teachers[1:]
                for row in summary.difference_rows(own, self.of(name), {"teacher": self.teachers[0], "minus": name})
            ],
            "by question": summary.question_rows(own, self.accuracy),
            "by token": [summary.token_row(row, self.texts) for row in self.rows],
        }
