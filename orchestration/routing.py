"""Which teachers a run has, and which of them marks a prompt.

A prompt's teacher is the one that its row names; else the one whose `domains` has the prompt's domain; else `teacher`.
"""

from collections.abc import Sequence
from dataclasses import replace

from orchestration.config import ConfigError, RunConfig
from orchestration.needs import uses_teacher
from orchestration.teacher_rules import TEACHER
from rollout.prompts import Prompt
from scoring.config import TeacherConfig


def teachers_of(config: RunConfig) -> dict[str, TeacherConfig]:
    """By key, mixtures included; empty where no teacher takes part."""
    return {TEACHER: config.teacher, **config.further_teachers} if uses_teacher(config) else {}


def route(prompts: Sequence[Prompt], config: RunConfig, source: str) -> list[Prompt]:
    """The prompts with the keys of their teachers.

    Args:
        source: full name of the setting that the prompts come from, for messages.

    Raises:
        ConfigError: a row names a teacher that there is not.
    """
    teachers = teachers_of(config)
    if not teachers:
        return list(prompts)
    by_domain = {domain: key for key, teacher in teachers.items() for domain in teacher.domains}
    routed = []
    for row, prompt in enumerate(prompts):
        key = prompt.teacher or by_domain.get(prompt.domain, TEACHER)
        if key not in teachers:
            raise ConfigError(
                f"{source}: row {row} (prompt {prompt.id!r}) names the teacher {key!r} and there are "
                f"{', '.join(teachers)}; correct column {_column(config, source)!r}, or add it: "
                f"+teacher@further_teachers.{key}=checkpoint"
            )
        routed.append(replace(prompt, teacher=key))
    return routed


def _column(config: RunConfig, source: str) -> str:
    return (config.data.heldout if source == "data.heldout" else config.data.train).teacher_column
