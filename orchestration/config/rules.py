"""Rules that span several rooms' settings: small functions that say what cannot work together.

What is wrong with one part alone is said by that part (`Settings.refusals`) and its room; what needs files is said in
`orchestration.prepare`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from diagnostics.metrics import unknown_metric
from learner.objectives import requirements
from learner.objectives.rules import refusals as objective_rules
from orchestration.config.facts import (
    learns_from_teacher,
    named_teachers,
    run_facts,
    signal_needs,
    weight_transfer,
)
from orchestration.config.keys import unknown_key_refusals
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from rollout.data.sources import data_refusals
from scoring.backends.base import BackendUse
from scoring.backends.factory import BACKENDS, kind_of
from scoring.config import Quantization, TeacherConfig, TeacherWeights, teacher_setting
from scoring.context import SIBLING, ContextTemplate
from scoring.rules import backend_refusals, domain_refusals, mixture_refusals, name_refusals
from tutelage.settings import Refusal, WeightTransfer


def refusals(config: RunConfig) -> Iterator[Refusal]:
    """Everything that is wrong with the values alone, first of each part, then of their company."""
    yield from unknown_key_refusals(config)
    yield from config.refusals()
    unknown = STAGES.refusal(config.stage)
    if unknown is None:
        yield from _stage(config)
    else:
        yield unknown
        config = replace(config, stage=RunConfig.stage)  # the rules below ask what the stage needs
    yield from _lengths(config)
    yield from objective_rules.refusals(config.objective, run_facts(config))
    yield from _teachers(config)
    yield from _engines(config)
    yield from data_refusals(config.data)
    yield from _alignment(config)
    yield from _alarms(config)


def _alarms(config: RunConfig) -> Iterator[Refusal]:
    """Alarms that could never be raised."""
    if not STAGES[config.stage].implementation.startswith("orchestration."):
        return  # a stage of a user's own may measure what it likes
    for name, rule in config.alarms.rules.items():
        meant = unknown_metric(rule.metric, config.objective.further_terms) if rule.metric else None
        if meant is not None:
            fix = (
                f"no run has such a number in metrics.jsonl, so the alarm could never be raised; did you mean {meant}?"
            )
            yield Refusal(f"alarms.rules.{name}.metric", rule.metric, fix)


def _lengths(config: RunConfig) -> Iterator[Refusal]:
    longest = max(config.sampling.max_tokens, config.evaluation.max_tokens)
    if longest >= config.rollout.max_model_len:
        fix = f"leaves no room for a prompt before {longest} response tokens; raise it"
        yield Refusal("rollout.max_model_len", config.rollout.max_model_len, fix)


def _stage(config: RunConfig) -> Iterator[Refusal]:
    kind, replaced = STAGES[config.stage], config.pipeline.max_replaced_groups
    yield from kind.refusals(config)
    if replaced > 0 and not kind.drops_groups:
        fix = "only where rewards alone are learned from are some groups worthless; set stage=reinforce, or 0"
        yield Refusal("pipeline.max_replaced_groups", replaced, fix)


def _engines(config: RunConfig) -> Iterator[Refusal]:
    transfer, gpus = config.learner.weight_transfer, config.rollout.gpus_per_worker
    if transfer in (WeightTransfer.shared_memory, WeightTransfer.object_store) and gpus > 0:
        fix = "serves CPU engines; with rollout.gpus_per_worker > 0 use auto, nccl or ipc"
        yield Refusal("learner.weight_transfer", transfer, fix)
    if gpus > 0 == config.learner.gpus_per_rank:
        fix = "weights reach engines on GPUs from GPUs only; set learner=gpu, or rollout=cpu"
        yield Refusal("learner.gpus_per_rank", config.learner.gpus_per_rank, fix)
    if transfer in (WeightTransfer.nccl, WeightTransfer.ipc) and gpus == 0:
        fix = "needs GPU engines; with rollout.gpus_per_worker=0 use auto, shared_memory or object_store"
        yield Refusal("learner.weight_transfer", transfer, fix)
    if config.rollout.tensor_parallel_size > 1 and gpus == 0:
        fix = "needs rollout.gpus_per_worker > 0; on CPU use 1"
        yield Refusal("rollout.tensor_parallel_size", config.rollout.tensor_parallel_size, fix)


def _alignment(config: RunConfig) -> Iterator[Refusal]:
    if not config.alignment.enabled:
        return
    if not config.data.is_graded:
        fix = (
            "the gradient alignment asks after which tokens the student succeeds; choose exact, math, final_answer or "
            "reasoning_gym, or set alignment.enabled=false"
        )
        yield Refusal("data.verifier", config.data.verifier, fix)
    if not STAGES[config.stage].learns_from_scores:
        fix = f"compares a teacher's gradient with the ideal one, and stage={config.stage} has none; set stage=distil"
        yield Refusal("alignment.enabled", True, fix)


def _teachers(config: RunConfig) -> Iterator[Refusal]:
    if not STAGES[config.stage].has_teacher:
        if config.further_teachers:
            fix = f"no teacher takes part in stage={config.stage}; leave it empty"
            yield Refusal("further_teachers", ", ".join(config.further_teachers), fix)
        return
    teachers, use = named_teachers(config), _backend_use(config)
    yield from name_refusals(config.further_teachers)
    yield from domain_refusals(teachers)
    if config.further_teachers and learns_from_teacher(config):
        fix = "sequences of the teacher's own come from one teacher; leave it empty, or learn from the student's"
        yield Refusal("further_teachers", ", ".join(config.further_teachers), fix)
    yield from _cache(config)
    for key, teacher in teachers.items():
        if teacher.mixture:
            yield from mixture_refusals(key, teacher, teachers)
            yield from _mixed_scores(key, teacher, teachers, config)
        else:
            yield from _moving(key, teacher, config)
            yield from backend_refusals(teacher_setting(key), teacher, use)
        yield from _context(key, teacher, config)


def _backend_use(config: RunConfig) -> BackendUse:
    """What the objective and the learner's monitors want of every backend."""
    sequences = config.objective.sequences
    return BackendUse(
        needs=signal_needs(config),
        scoring=config.scoring,
        writes=learns_from_teacher(config),
        new_responses=sequences.on_policy_fraction > 0,
    )


def _cache(config: RunConfig) -> Iterator[Refusal]:
    cache_dir = config.scoring.cache_dir
    if cache_dir is not None and config.cluster.address != "local" and not Path(cache_dir).expanduser().is_absolute():
        fix = "means another place on each machine of a cluster; give the absolute path of a shared directory"
        yield Refusal("scoring.cache_dir", cache_dir, fix)


def _mixed_scores(
    key: str, teacher: TeacherConfig, teachers: Mapping[str, TeacherConfig], config: RunConfig
) -> Iterator[Refusal]:
    """What a mixture cannot tell: its entropy; its most likely ids are sought among ids that its teachers are given."""
    gpus = config.scoring.gpus_per_worker
    members = [member for member in teacher.mixture if member in teachers]
    known = {member: teachers[member] for member in members if teachers[member].backend in BACKENDS}
    blind = [member for member, one in known.items() if not kind_of(one).capabilities(one, gpus).given_ids]
    wanted = signal_needs(config)
    if wanted.teacher_entropy:
        fix = "the entropy of a mixture does not follow from its teachers'; choose an objective without bounds on it"
        yield Refusal(f"{teacher_setting(key)}.mixture", dict(teacher.mixture), fix)
    if blind and (wanted.teacher_top_k or (wanted.watched_top_k and not wanted.hidden_states)):
        fix = (
            f"backend={teachers[blind[0]].backend} scores no given ids, among which a mixture's most likely ones "
            "are sought; set learner.overlap_k=0 and an objective without them, for instance "
            "objective=sampled_reverse_kl"
        )
        yield Refusal(f"{teacher_setting(key)}.mixture", blind[0], fix)


def _moving(key: str, teacher: TeacherConfig, config: RunConfig) -> Iterator[Refusal]:
    """Weights that follow the student's."""
    if teacher.weights is TeacherWeights.fixed:
        return
    name, value = f"{teacher_setting(key)}.weights", teacher.weights.value
    if teacher.quantization is not Quantization.none:
        yield Refusal(
            name, value, f"new weights are not quantised; set fixed, or {teacher_setting(key)}.quantization=none"
        )
    if teacher.model != config.student.model:
        yield Refusal(
            name, value, f"follows the student's weights; set {teacher_setting(key)}.model={config.student.model}"
        )
    if (transfer := weight_transfer(config)).backend != WeightTransfer.shared_memory.value:
        fix = f"follows the student in CPU memory, and learner.weight_transfer={transfer.value}; use weights=fixed"
        yield Refusal(name, value, fix)
    if requirements(config.objective).hidden_states:
        fix = (
            "has another LM head at each version, and the objective is over the whole vocabulary; choose "
            "objective=student_topk_reverse_kl, or weights=fixed"
        )
        yield Refusal(name, value, fix)
    if config.scoring.cache_dir is not None:
        fix = f"keeps what a teacher said, and {name}={value} says something else at each version; set null"
        yield Refusal("scoring.cache_dir", config.scoring.cache_dir, fix)


def _context(key: str, teacher: TeacherConfig, config: RunConfig) -> Iterator[Refusal]:
    name = f"{teacher_setting(key)}.context"
    if teacher.context is None:
        return
    if teacher.mixture:
        yield Refusal(name, "…", "a mixture is told nothing itself; give its teachers their contexts")
        return
    fields = ContextTemplate(teacher.context).waits_for
    if not fields:
        return
    shown = ", ".join(f"{{{field}}}" for field in fields)
    graded = [field for field in fields if field in ("feedback", SIBLING)]
    if graded and not config.data.is_graded:
        yield Refusal(name, shown, "needs graded responses; set data.verifier")
    if SIBLING in fields and config.sampling.samples_per_prompt < 2:
        yield Refusal(name, shown, "needs other samples of the same prompt; set sampling.samples_per_prompt=4")
    if SIBLING in fields and config.pipeline.batch_size % config.sampling.samples_per_prompt:
        fix = "samples of a prompt are scored together; make it a multiple of sampling.samples_per_prompt"
        yield Refusal("pipeline.batch_size", config.pipeline.batch_size, fix)
    if config.objective.sequences.on_policy_fraction < 1:
        yield Refusal(name, shown, "is about the student's own responses; set objective.sequences.on_policy_fraction=1")
