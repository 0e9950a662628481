"""Which teachers cannot do what a run wants of them, judged on the configuration alone."""

import math
from collections.abc import Iterator, Mapping

from scoring.backends.base import BackendUse
from scoring.backends.factory import BACKENDS, kind_of
from scoring.config import TEACHER, TeacherConfig, teacher_setting
from tutelage.settings import Refusal

_TAKEN = {TEACHER, "reference", "base"}  # whom scoring workers speak for otherwise


def name_refusals(further: Mapping[str, TeacherConfig]) -> Iterator[Refusal]:
    for key in further:
        if key in _TAKEN or not key.isidentifier():
            fix = (
                f"is no name for a further teacher; use letters, digits and _, and none of {', '.join(sorted(_TAKEN))}"
            )
            yield Refusal("further_teachers", key, fix)


def domain_refusals(teachers: Mapping[str, TeacherConfig]) -> Iterator[Refusal]:
    owners: dict[str, str] = {}
    for key, teacher in teachers.items():
        for domain in teacher.domains:
            other = owners.setdefault(domain, key)
            if other != key:
                fix = f"{teacher_setting(other)}.domains has it too; a domain has one teacher, which may mix others"
                yield Refusal(f"{teacher_setting(key)}.domains", domain, fix)


def mixture_refusals(key: str, teacher: TeacherConfig, teachers: Mapping[str, TeacherConfig]) -> Iterator[Refusal]:
    name = f"{teacher_setting(key)}.mixture"
    for member, weight in teacher.mixture.items():
        if member not in teachers or member == key or teachers[member].mixture:
            others = ", ".join(other for other in teachers if other != key and not teachers[other].mixture)
            yield Refusal(name, member, f"is no other teacher that answers for itself; there are {others or 'none'}")
        elif teachers[member].cross_tokenizer:
            yield Refusal(name, member, "has a tokenizer of its own, so its ids are not the others'; leave it out")
        if weight <= 0:
            yield Refusal(f"{name}.{member}", weight, "must be above 0; leave a teacher without weight out")
    total = sum(teacher.mixture.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        yield Refusal(name, dict(teacher.mixture), f"the weights sum to {total:g}; make it 1")


def backend_refusals(key: str, teacher: TeacherConfig, use: BackendUse) -> Iterator[Refusal]:
    """Say everything that is wrong with a teacher's backend for a run.

    Args:
        key: full name of the teacher's settings, for instance further_teachers.maths.
    """
    unknown = BACKENDS.refusal(teacher.backend, f"{key}.backend")
    if unknown is not None:
        yield unknown
    else:
        yield from kind_of(teacher).refusals(key, teacher, use)
