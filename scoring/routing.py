"""Which teachers a run has, and which of them scores a prompt.

A prompt's teacher is the one that its row names; else the one whose `domains` has the prompt's domain; else `teacher`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scoring.config import TEACHER, TeacherConfig
from tutelage.records.prompt import Prompt
from tutelage.settings import ConfigError, Refusal


def route(prompts: Sequence[Prompt], teachers: Mapping[str, TeacherConfig], source: str, column: str) -> list[Prompt]:
    """The prompts with the keys of their teachers.

    Args:
        teachers: of the run, by key; none: no teacher takes part.
        source: full name of the setting that the prompts come from, for messages.
        column: of the data that names a row's teacher, for messages.

    Raises:
        ConfigError: a row names a teacher that there is not.
    """
    if not teachers:
        return list(prompts)
    by_domain = {domain: key for key, teacher in teachers.items() for domain in teacher.domains}
    routed = []
    for row, prompt in enumerate(prompts):
        key = prompt.teacher or by_domain.get(prompt.domain, TEACHER)
        if key not in teachers:
            fix = (
                f"row {row} of {source} (prompt {prompt.id!r}) names the teacher {key!r} and there are "
                f"{', '.join(teachers)}; correct that column, or add it: +teacher@further_teachers.{key}=checkpoint"
            )
            raise ConfigError(Refusal(f"{source}.teacher_column", column, fix))
        routed.append(replace(prompt, teacher=key))
    return routed
