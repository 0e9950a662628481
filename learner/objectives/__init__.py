"""Objectives: composed from configuration, with their gradients in closed form."""

from learner.objectives.base import Objective, StudentChunk, TeacherChunk, TokenLosses
from learner.objectives.composition import build_objective, requirements
from learner.objectives.config import ObjectiveConfig

__all__ = [
    "Objective",
    "ObjectiveConfig",
    "StudentChunk",
    "TeacherChunk",
    "TokenLosses",
    "build_objective",
    "requirements",
]
