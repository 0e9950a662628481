"""Who scores what: one decision, taken before anything starts.

    role (a teacher's key, "reference", "base") ─► checkpoint and settings ─► a group of workers

Roles with the same checkpoint and the same settings share a group, whatever their contexts and domains are.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from learner.objectives import requirements
from orchestration.config.facts import teachers_of
from orchestration.config.schema import BaseDivergence, RunConfig
from orchestration.prepare.models import PreparedTeacher
from scoring.backends.factory import kind_of
from scoring.config import TEACHER, TeacherConfig
from scoring.group import Scorer
from scoring.pool import BASE, REFERENCE

TEACHER_GROUP = "scoring"  # and the teacher's key, but for the teacher that every run has
_NOT_THE_WORKERS = {"context", "domains", "tokenizer", "cross_tokenizer", "twin_candidates", "mixture"}


@dataclass(frozen=True)
class Roles:
    scorers: Mapping[str, Scorer] = field(default_factory=dict)  # by role
    mixtures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by key: weights of other teachers

    @property
    def groups(self) -> list[Scorer]:
        """Each group of workers once."""
        return list({scorer.name: scorer for scorer in self.scorers.values()}.values())


def decide_roles(
    config: RunConfig,
    teachers: Mapping[str, PreparedTeacher],
    student_path: str,
    reference_path: str | None,
    asked: Collection[str],
) -> Roles:
    """Decide which groups of scoring workers a run has, and which role each of them plays.

    Args:
        teachers: those that answer for themselves, by key.
        reference_path: of the model behind objective.reference.model; None: the objective has none.
        asked: keys of the teachers, mixtures included, that score a prompt of the run.
    """
    settings = {key: teacher for key, teacher in teachers_of(config).items() if key in asked}
    members = dict.fromkeys(member for key, teacher in settings.items() for member in teacher.mixture or (key,))
    scorers: dict[str, Scorer] = {}
    for key in members:
        name = TEACHER_GROUP if key == TEACHER else f"{TEACHER_GROUP}-{key}"
        scorer = Scorer(name, teachers[key].path, teachers_of(config)[key])
        work = _work(scorer)
        scorers[key] = next((other for other in scorers.values() if _work(other) == work), scorer)
    if reference_path is not None:
        states = requirements(config.objective).hidden_states
        holder = _holder(scorers.values(), reference_path, states)
        plain = TeacherConfig(trust_remote_code=config.teacher.trust_remote_code)
        scorers[REFERENCE] = holder or Scorer(REFERENCE, reference_path, plain)
    if config.evaluation.base_kl is not BaseDivergence.never:
        holder = _holder(scorers.values(), student_path, True)
        if holder is not None:
            scorers[BASE] = holder
        elif config.evaluation.base_kl is BaseDivergence.always:
            plain = TeacherConfig(trust_remote_code=config.student.trust_remote_code)
            scorers[BASE] = Scorer(BASE, student_path, plain, occasional=True)
    return Roles(scorers, {key: teacher.mixture for key, teacher in settings.items() if teacher.mixture})


def _work(scorer: Scorer) -> tuple[str, dict[str, Any]]:
    """What workers depend on: the path, which stands for the model unless that runs elsewhere, and the settings.

    A context and a choice of prompts are not the workers': where all of this is equal, one could answer for the other.
    """
    teacher = scorer.teacher
    ignored = _NOT_THE_WORKERS if kind_of(teacher).is_remote(teacher) else _NOT_THE_WORKERS | {"model"}
    return scorer.path, {name: value for name, value in asdict(teacher).items() if name not in ignored}


def _holder(scorers: Iterable[Scorer], path: str, states: bool) -> Scorer | None:
    """The first group whose workers have a checkpoint's own weights throughout, whole; with `states`, show them too."""
    for scorer in scorers:
        kind = kind_of(scorer.teacher)
        shows_states = kind.capabilities(scorer.teacher, gpus=0).hidden_states
        if scorer.path == path and kind.holds_checkpoint(scorer.teacher) and (shows_states or not states):
            return scorer
    return None
