"""What may be asked of teachers: every rule on their settings, and on what the run wants of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learner.config import WeightTransfer
from learner.objectives import requirements
from learner.objectives.config import OtherStates
from orchestration.contexts import SIBLING, ContextTemplate
from rollout.config import VerifierKind
from scoring.capabilities import capabilities
from scoring.config import Quantization, TeacherBackend, TeacherConfig, TeacherWeights
from scoring.refusals import backend_refusals

if TYPE_CHECKING:
    from orchestration.config import RunConfig

TEACHER = "teacher"  # key of the teacher that every run has
_TAKEN = {TEACHER, "reference", "base"}  # whom scoring workers speak for otherwise


@dataclass(frozen=True)
class Fault:
    """A setting that cannot work."""

    key: str
    value: object
    fix: str


def setting(key: str) -> str:
    """The full name of a teacher's settings."""
    return TEACHER if key == TEACHER else f"further_teachers.{key}"


def teacher_faults(config: "RunConfig") -> list[str]:
    """What cannot work, of a run in which teachers take part: each text names the key, the value and the fix."""
    found = [f"{fault.key}={fault.value}: {fault.fix}" for fault in _faults(config)]
    return [*found, *_unfit_backends(config)]


def _faults(config: "RunConfig") -> Iterator[Fault]:
    teachers = {TEACHER: config.teacher, **config.further_teachers}
    yield from _names(config.further_teachers)
    yield from _domains(teachers)
    yield from _company(config)
    yield from _workers(config)
    for key, teacher in teachers.items():
        if teacher.mixture:
            yield from _mixture(key, teacher, teachers)
            yield from _mixed_marks(key, teacher, teachers, config)
        else:
            yield from _moving(key, teacher, config)
            yield from _kept(key, teacher, config)
            yield from _across(key, teacher)
        yield from _context(key, teacher, config)


def _unfit_backends(config: "RunConfig") -> Iterator[str]:
    """Whether each backend gives what the objective and the learner's monitors want."""
    states, wanted = config.objective.states, requirements(config.objective)
    overlap_k = config.learner.overlap_k if config.stage.value == "distil" else 0
    writes = states.student_share < 1 and states.others is OtherStates.teacher
    for key, teacher in {TEACHER: config.teacher, **config.further_teachers}.items():
        if not teacher.mixture:
            gpus = config.scoring.gpus_per_worker
            yield from backend_refusals(setting(key), teacher, wanted, gpus, overlap_k, writes)


def _names(further: Mapping[str, TeacherConfig]) -> Iterator[Fault]:
    for key in further:
        if key in _TAKEN or not key.isidentifier():
            fix = (
                f"is no name for a further teacher; use letters, digits and _, and none of {', '.join(sorted(_TAKEN))}"
            )
            yield Fault("further_teachers", key, fix)


def _domains(teachers: Mapping[str, TeacherConfig]) -> Iterator[Fault]:
    owners: dict[str, str] = {}
    for key, teacher in teachers.items():
        for domain in teacher.domains:
            other = owners.setdefault(domain, key)
            if other != key:
                fix = f"{setting(other)}.domains has it too; a domain has one teacher, which may mix others"
                yield Fault(f"{setting(key)}.domains", domain, fix)


def _company(config: "RunConfig") -> Iterator[Fault]:
    """Where one teacher writes the sequences, there is one."""
    states = config.objective.states
    if config.further_teachers and states.student_share < 1 and states.others is OtherStates.teacher:
        fix = "sequences of the teacher's own come from one teacher; leave it empty, or learn from the student's"
        yield Fault("further_teachers", ", ".join(config.further_teachers), fix)


def _mixture(key: str, teacher: TeacherConfig, teachers: Mapping[str, TeacherConfig]) -> Iterator[Fault]:
    name = f"{setting(key)}.mixture"
    for member, weight in teacher.mixture.items():
        if member not in teachers or member == key or teachers[member].mixture:
            others = ", ".join(other for other in teachers if other != key and not teachers[other].mixture)
            yield Fault(name, member, f"is no other teacher that answers for itself; there are {others or 'none'}")
        elif teachers[member].cross_tokenizer:
            yield Fault(name, member, "has a tokenizer of its own, so its ids are not the others'; leave it out")
        if weight <= 0:
            yield Fault(f"{name}.{member}", weight, "must be above 0; leave a teacher without weight out")
    total = sum(teacher.mixture.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        yield Fault(name, dict(teacher.mixture), f"the weights sum to {total:g}; make it 1")


def _mixed_marks(
    key: str, teacher: TeacherConfig, teachers: Mapping[str, TeacherConfig], config: "RunConfig"
) -> Iterator[Fault]:
    """What a mixture cannot tell: its entropy; its most likely ids are sought among ids that its teachers are given."""
    gpus = config.scoring.gpus_per_worker
    members = [member for member in teacher.mixture if member in teachers]
    blind = [member for member in members if not capabilities(teachers[member], gpus).given_ids]
    wanted = requirements(config.objective)
    if wanted.teacher_entropy:
        fix = "the entropy of a mixture does not follow from its teachers'; choose an objective without bounds on it"
        yield Fault(f"{setting(key)}.mixture", dict(teacher.mixture), fix)
    if blind and (wanted.teacher_top_k or (config.learner.overlap_k and not wanted.hidden_states)):
        fix = (
            f"backend={teachers[blind[0]].backend.value} marks no given ids, among which a mixture's most likely ones "
            "are sought; set learner.overlap_k=0 and an objective without them, for instance "
            "objective=sampled_reverse_kl"
        )
        yield Fault(f"{setting(key)}.mixture", blind[0], fix)


def _across(key: str, teacher: TeacherConfig) -> Iterator[Fault]:
    """A tokenizer of the teacher's own."""
    name = setting(key)
    if teacher.twin_candidates < 1:
        fix = "counts the student's most likely ids that equals are looked for among; must be at least 1, 64 is usual"
        yield Fault(f"{name}.twin_candidates", teacher.twin_candidates, fix)
    if teacher.cross_tokenizer and teacher.backend is TeacherBackend.server and teacher.tokenizer is None:
        fix = f"a server does not tell its tokenizer, and {name}.cross_tokenizer=true needs it; name its checkpoint"
        yield Fault(f"{name}.tokenizer", "null", fix)


def _moving(key: str, teacher: TeacherConfig, config: "RunConfig") -> Iterator[Fault]:
    """Weights that follow the student's."""
    if teacher.weights is TeacherWeights.fixed:
        return
    name, value = f"{setting(key)}.weights", teacher.weights.value
    if teacher.quantization is not Quantization.none:
        yield Fault(name, value, f"new weights are not quantised; set fixed, or {setting(key)}.quantization=none")
    if teacher.model != config.student.model:
        yield Fault(name, value, f"follows the student's weights; set {setting(key)}.model={config.student.model}")
    if config.learner.weight_transfer is not WeightTransfer.shared_memory:
        transfer = config.learner.weight_transfer.value
        fix = f"follows the student through shared memory, and learner.weight_transfer={transfer}; use weights=fixed"
        yield Fault(name, value, fix)
    if requirements(config.objective).hidden_states:
        fix = (
            "has another LM head at each version, and the objective is over the whole vocabulary; choose "
            "objective=student_topk_reverse_kl, or weights=fixed"
        )
        yield Fault(name, value, fix)
    if config.scoring.cache_dir is not None:
        fix = f"keeps what a teacher said, and {name}={value} says something else at each version; set null"
        yield Fault("scoring.cache_dir", config.scoring.cache_dir, fix)
    if teacher.weights is TeacherWeights.ema and not 0 < teacher.ema_rate < 1:
        yield Fault(f"{setting(key)}.ema_rate", teacher.ema_rate, "must lie between 0 and 1; 0.99 is common")


def _workers(config: "RunConfig") -> Iterator[Fault]:
    gpus, cache_dir = config.scoring.gpus_per_worker, config.scoring.cache_dir
    if gpus > 1 and gpus != int(gpus):
        fix = "a share of one GPU, or whole GPUs over which the teacher is spread; round it"
        yield Fault("scoring.gpus_per_worker", gpus, fix)
    if cache_dir is not None and config.cluster.address != "local" and not Path(cache_dir).expanduser().is_absolute():
        fix = "means another place on each machine of a cluster; give the absolute path of a shared directory"
        yield Fault("scoring.cache_dir", cache_dir, fix)


def _kept(key: str, teacher: TeacherConfig, config: "RunConfig") -> Iterator[Fault]:
    """Whether marks that are kept are enough."""
    if teacher.backend is not TeacherBackend.cache:
        return
    name, states = f"{setting(key)}.backend", config.objective.states
    if config.scoring.cache_dir is None:
        fix = (
            "has only what is kept in scoring.cache_dir, which is null; name the directory that python -m "
            "orchestration.precompute has filled"
        )
        yield Fault(name, "cache", fix)
    if states.student_share != 0 or states.others is not OtherStates.dataset:
        fix = (
            "cannot mark what the student samples in this run; set objective.states.student_share=0 and "
            "objective.states.others=dataset, or a backend that computes"
        )
        yield Fault(name, "cache", fix)


def _context(key: str, teacher: TeacherConfig, config: "RunConfig") -> Iterator[Fault]:
    name = f"{setting(key)}.context"
    if teacher.context is None:
        return
    if teacher.mixture:
        yield Fault(name, "…", "a mixture is told nothing itself; give its teachers their contexts")
        return
    fields = ContextTemplate(teacher.context).waits_for
    if not fields:
        return
    shown = ", ".join(f"{{{field}}}" for field in fields)
    graded = [field for field in fields if field in ("feedback", SIBLING)]
    if graded and config.data.verifier is VerifierKind.none:
        yield Fault(name, shown, "needs graded responses; set data.verifier")
    if SIBLING in fields and config.sampling.samples_per_prompt < 2:
        yield Fault(name, shown, "needs other samples of the same prompt; set sampling.samples_per_prompt=4")
    if SIBLING in fields and config.pipeline.batch_size % config.sampling.samples_per_prompt:
        fix = "samples of a prompt are marked together; make it a multiple of sampling.samples_per_prompt"
        yield Fault("pipeline.batch_size", config.pipeline.batch_size, fix)
    if config.objective.states.student_share < 1:
        yield Fault(name, shown, "is about the student's own responses; set objective.states.student_share=1")
