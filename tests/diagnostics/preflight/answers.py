"""Answers of a student under two models, made by hand."""

from dataclasses import fields

import numpy as np

from diagnostics.compatibility import ProbedAnswer
from learner.records import ExampleTokens

TOPS = [item.name for item in fields(ExampleTokens) if "_top" in item.name]


def answer(
    prompt: str,
    reward: float | None,
    student: list[float],
    teacher: list[float],
    domain: str = "sums",
    **values: list[float],
) -> ProbedAnswer:
    """One whose tokens have these log-probs, and other statistics as given (zeros where they are not)."""
    count = len(student)
    names = ("student_entropy", "teacher_entropy", "reverse_kl", "overlap_mass_student")
    columns = {name: [0.0] * count for name in names} | values
    arrays = {name: np.array(column, dtype=np.float32) for name, column in columns.items()}
    arrays |= {
        "student_logprob": np.array(student, dtype=np.float32),
        "teacher_logprob": np.array(teacher, dtype=np.float32),
    }
    tops = {name: np.zeros((count, 1), np.int32 if name.endswith("_ids") else np.float32) for name in TOPS}
    return ProbedAnswer(
        prompt, domain, "teacher", reward, ExampleTokens(0, np.arange(count, dtype=np.int32), arrays, **tops)
    )
