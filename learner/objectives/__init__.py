"""Objectives by name. Adding one is adding one file here and importing it below, which registers it."""

from learner.objectives import sampled_reverse_kl, student_topk_reverse_kl  # noqa: F401 (registration)
from learner.objectives.base import (
    Objective,
    Requirements,
    Rows,
    StudentChunk,
    Support,
    TeacherChunk,
    TokenLosses,
    available,
    get_objective,
    register,
)

__all__ = [
    "Objective",
    "Requirements",
    "Rows",
    "StudentChunk",
    "Support",
    "TeacherChunk",
    "TokenLosses",
    "available",
    "get_objective",
    "register",
]
