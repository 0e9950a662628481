"""Objectives: composed from configuration, with their gradients in closed form."""

from learner.objectives.base import Objective, StudentChunk, TeacherChunk, TokenLosses
from learner.objectives.composition import build_objective, requirements
from learner.objectives.config import ObjectiveConfig
from learner.records import Rows

__all__ = [
    "Objective",
    "ObjectiveConfig",
    "Rows",
    "StudentChunk",
    "TeacherChunk",
    "TokenLosses",
    "build_objective",
    "requirements",
]
