"""Rules that span several rooms' settings."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from diagnostics.alarms import faults
from diagnostics.config import AlarmsConfig, ProbeConfig
from learner.config import LearnerConfig, LoraConfig
from learner.objectives import requirements
from learner.objectives.config import OtherSource
from learner.objectives.rules.refusals import refusals
from orchestration.config.facts import run_facts
from orchestration.config.schema import RunConfig, Stage, WandbMode
from rollout.config import PromptSourceConfig, SourceKind, VerifierKind
from rollout.data.digit_tasks import DIGIT_TASKS, tasks_in
from scoring.capabilities import capabilities
from scoring.config import TEACHER, Quantization, TeacherBackend, TeacherConfig, TeacherWeights, setting
from scoring.context import SIBLING, ContextTemplate
from scoring.rules import backend_refusals, cross_tokenizer_faults, domain_faults, mixture_faults, name_faults
from tutelage.settings import ConfigError, Refusal, WeightTransfer, require

MAX_PROBED = 200  # prompts: a probe is a matter of minutes
_TASK_FIXES = {
    SourceKind.reasoning_gym: "name a reasoning-gym task family, for instance basic_arithmetic",
    SourceKind.digit_tasks: f"name one of {', '.join(DIGIT_TASKS)}",
}


def check(config: RunConfig) -> None:
    """Every rule on the values alone; what needs files or models is checked in `preparation`."""
    _check_ranges(config)
    _check_learner(config.learner)
    _check_lora(config.student.lora)
    _check_objective(config)
    _check_rewards(config)
    _check_stage(config)
    _check_teachers(config)
    _check_engines(config)
    _check_data(config)
    _check_probe(config.probe)
    _check_alignment(config)
    _check_alarms(config.alarms)


def _check_ranges(config: RunConfig) -> None:
    at_least_one = {
        "pipeline.steps": config.pipeline.steps,
        "pipeline.batch_size": config.pipeline.batch_size,
        "sampling.max_tokens": config.sampling.max_tokens,
        "sampling.samples_per_prompt": config.sampling.samples_per_prompt,
        "rollout.workers": config.rollout.workers,
        "scoring.workers": config.scoring.workers,
        "learner.ranks": config.learner.ranks,
        "evaluation.prompts": config.evaluation.prompts,
        "evaluation.max_tokens": config.evaluation.max_tokens,
        "checkpoint.keep": config.checkpoint.keep,
        "cold_start.repetition_tokens": config.cold_start.repetition_tokens,
    }
    for key, value in at_least_one.items():
        require(value >= 1, key, value, "must be at least 1")
    require(
        config.pipeline.max_staleness >= 0,
        "pipeline.max_staleness",
        config.pipeline.max_staleness,
        "must be 0 (strictly on-policy) or more",
    )
    restarts = config.scoring.max_restarts
    require(restarts >= 0, "scoring.max_restarts", restarts, "must be 0 (a teacher's lost worker ends the run) or more")
    for key, temperature in (
        ("sampling", config.sampling.temperature),
        ("evaluation", config.evaluation.temperature),
    ):
        require(
            temperature > 0,
            f"{key}.temperature",
            temperature,
            "must be above 0; greedy sampling has no sampling distribution",
        )
    require(
        0 <= config.cold_start.max_repetition <= 1,
        "cold_start.max_repetition",
        config.cold_start.max_repetition,
        "is a share; must lie between 0 and 1 (1: repetition is not looked at)",
    )
    longest = max(config.sampling.max_tokens, config.evaluation.max_tokens)
    require(
        longest < config.rollout.max_model_len,
        "rollout.max_model_len",
        config.rollout.max_model_len,
        f"leaves no room for a prompt before {longest} response tokens; raise it",
    )


def _check_learner(learner: LearnerConfig) -> None:
    require(
        learner.overlap_k >= 0,
        "learner.overlap_k",
        learner.overlap_k,
        "counts most likely ids; must be 0 (the overlap is not measured) or more",
    )
    require(
        learner.zero_stage in (0, 1, 2, 3),
        "learner.zero_stage",
        learner.zero_stage,
        "must be 0, 1, 2 or 3",
    )
    require(
        learner.learning_rate > 0,
        "learner.learning_rate",
        learner.learning_rate,
        "must be above 0",
    )


def _check_lora(lora: LoraConfig) -> None:
    require(lora.rank >= 0, "student.lora.rank", lora.rank, "must be 0 (all weights are trained) or more")
    require(lora.alpha > 0, "student.lora.alpha", lora.alpha, "multiplies what adapters add; must be above 0")
    require(
        0 <= lora.dropout < 1,
        "student.lora.dropout",
        lora.dropout,
        "is a share of an adapter's inputs; must be at least 0 and below 1",
    )
    for name, value in (("dropout", lora.dropout), ("targets", lora.targets)):
        fix = "there are no adapters with student.lora.rank=0; set a rank, for instance 16, or leave it out"
        require(lora.rank > 0 or not value, f"student.lora.{name}", value, fix)


def _check_objective(config: RunConfig) -> None:
    wrong = refusals(config.objective, run_facts(config))
    if wrong:
        raise ConfigError("\n".join(wrong))


def _check_rewards(config: RunConfig) -> None:
    replaced = config.pipeline.max_replaced_groups
    require(replaced >= 0, "pipeline.max_replaced_groups", replaced, "must be 0 (train on every group) or more")
    if config.stage is Stage.reinforce:
        _check_reinforcement(config)
    else:
        fix = "only where rewards alone are learned from are some groups worthless; set stage=reinforce, or 0"
        require(replaced == 0, "pipeline.max_replaced_groups", replaced, fix)


def _check_reinforcement(config: RunConfig) -> None:
    """Rewards are learned from, and what else is compared is compared with the reference."""
    objective, needs = config.objective, requirements(config.objective)
    reference = objective.reference
    require(
        needs.task_advantages,
        "objective.task_reward.mix",
        objective.task_reward.mix.value,
        "stage=reinforce learns from rewards; choose objective=grpo, or stage=distil",
    )
    require(
        not needs.teacher or reference.model is not None,
        "objective.reference.model",
        "null",
        "the objective compares the student with another model, and stage=reinforce has no teacher: set it to student "
        "(its initial weights) or a checkpoint, or learn from rewards alone with objective.task_reward.share=0",
    )
    require(
        needs.teacher or reference.model is None,
        "objective.reference.model",
        reference.model,
        "nothing is compared with it; set objective.task_reward.share=0.01, or null",
    )
    require(
        reference.extrapolation == 1,
        "objective.reference.extrapolation",
        reference.extrapolation,
        "goes from a reference beyond a teacher, and stage=reinforce has no teacher; set 1",
    )
    require(
        not objective.gate.only_with_context,
        "objective.gate.only_with_context",
        "true",
        "stage=reinforce has no teacher that could see more than the student; set false",
    )


def _check_stage(config: RunConfig) -> None:
    """Whether the objective learns from what the stage has."""
    needs_teacher, chosen = requirements(config.objective).teacher, f"objective={config.objective.name}"
    if config.stage is Stage.cold_start:
        require(
            not needs_teacher and config.objective.sequences.on_policy_fraction == 0,
            "stage",
            f"cold_start with {chosen}",
            "sequences that another wrote are learned as they are, and this objective needs the teacher's scores or "
            "the student's own samples; set objective=supervised, or stage=distil",
        )
    if config.stage is Stage.distil:
        require(
            needs_teacher,
            "stage",
            f"distil with {chosen}",
            "nothing of it is learned from a teacher's scores; set stage=cold_start for a supervised objective, "
            "stage=reinforce for one of rewards alone, or choose another objective",
        )


def _check_teachers(config: RunConfig) -> None:
    if config.stage is Stage.reinforce:
        named = ", ".join(config.further_teachers)
        require(not named, "further_teachers", named, "no teacher takes part in stage=reinforce; leave it empty")
        return
    wrong = teacher_faults(config)
    if wrong:
        raise ConfigError("\n".join(wrong))


def _check_engines(config: RunConfig) -> None:
    transfer, gpus = config.learner.weight_transfer, config.rollout.gpus_per_worker
    if transfer is WeightTransfer.shared_memory:
        require(
            gpus == 0,
            "learner.weight_transfer",
            transfer.value,
            "serves CPU engines on the learner's node; with rollout.gpus_per_worker > 0 use nccl or ipc",
        )
    else:
        require(
            gpus > 0,
            "learner.weight_transfer",
            transfer.value,
            "needs GPU engines; with rollout.gpus_per_worker=0 use shared_memory",
        )
    require(
        config.rollout.tensor_parallel_size == 1 or gpus > 0,
        "rollout.tensor_parallel_size",
        config.rollout.tensor_parallel_size,
        "needs rollout.gpus_per_worker > 0; on CPU use 1",
    )


def _check_data(config: RunConfig) -> None:
    for name, source in (("train", config.data.train), ("heldout", config.data.heldout)):
        if source.kind is SourceKind.dataset:
            require(
                bool(source.path),
                f"data.{name}.path",
                repr(source.path),
                "name a Hugging Face dataset, a directory, or a JSONL or Parquet file",
            )
        else:
            require(bool(source.task), f"data.{name}.task", repr(source.task), _TASK_FIXES[source.kind])
        if config.data.verifier is VerifierKind.reasoning_gym:
            require(
                source.kind is SourceKind.reasoning_gym,
                "data.verifier",
                "reasoning_gym",
                f"grades reasoning-gym tasks only, and data.{name}.kind={source.kind.value}; use exact, math, "
                "final_answer or none",
            )
    _check_task_seeds(config.data.train, config.data.heldout)
    _check_task_splits(config.data.train, config.data.heldout)
    if config.tracking.wandb is WandbMode.online and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError("tracking.wandb=online: no key found; set WANDB_API_KEY in the environment, or use offline")


def _check_task_seeds(train: PromptSourceConfig, heldout: PromptSourceConfig) -> None:
    """Refuse held-out tasks that are training tasks: reasoning-gym makes task i from seed + i."""
    alike = train.kind is heldout.kind is SourceKind.reasoning_gym and train.task == heldout.task
    if not alike or train.task_options != heldout.task_options:
        return
    apart = train.seed + train.size <= heldout.seed or heldout.seed + heldout.size <= train.seed
    require(
        apart,
        "data.heldout.seed",
        heldout.seed,
        f"reasoning-gym makes task i from seed + i, so held-out tasks would be training tasks; use "
        f"{train.seed + train.size} or more",
    )


def _check_task_splits(train: PromptSourceConfig, heldout: PromptSourceConfig) -> None:
    """Refuse held-out problems of digits that may be training problems."""
    alike = train.kind is heldout.kind is SourceKind.digit_tasks and bool(tasks_in(train) & tasks_in(heldout))
    require(
        not alike or train.split != heldout.split,
        "data.heldout.split",
        heldout.split,
        "is that of data.train, so held-out problems may be training problems; use data.train.split=train and "
        "data.heldout.split=heldout",
    )


def _check_probe(probe: ProbeConfig) -> None:
    require(1 <= probe.prompts <= MAX_PROBED, "probe.prompts", probe.prompts, f"must lie between 1 and {MAX_PROBED}")
    for name in ("samples_per_prompt", "max_tokens"):
        require(getattr(probe, name) >= 1, f"probe.{name}", getattr(probe, name), "must be at least 1")
    for name in ("shown", "representation"):
        require(getattr(probe, name) >= 0, f"probe.{name}", getattr(probe, name), "must be 0 (none) or more")
    require(
        bool(probe.depths) and all(0 < depth < 1 for depth in probe.depths),
        "probe.depths",
        probe.depths,
        "are shares of a student's answer; give one or more between 0 and 1, for instance [0.125,0.25,0.5,0.75]",
    )


def _check_alignment(config: RunConfig) -> None:
    settings = config.alignment
    for name in ("questions", "rollouts_per_question", "rollouts_per_stratum", "nodes_per_window", "candidates"):
        require(getattr(settings, name) >= 1, f"alignment.{name}", getattr(settings, name), "must be at least 1")
    require(
        2 <= settings.min_completions <= settings.completions,
        "alignment.min_completions",
        settings.min_completions,
        f"must lie between 2, so that there are halves to compare, and alignment.completions={settings.completions}",
    )
    require(settings.alpha > 0, "alignment.alpha", settings.alpha, "must be above 0; 0.5 is the Jeffreys prior")
    ratio = settings.min_signal_to_noise
    require(ratio >= 0, "alignment.min_signal_to_noise", ratio, "counts standard errors; must be 0 or more")
    require(settings.max_tokens >= 1, "alignment.max_tokens", settings.max_tokens, "must be at least 1")
    require(
        not settings.enabled or config.data.verifier is not VerifierKind.none,
        "data.verifier",
        config.data.verifier.value,
        "the gradient alignment asks after which tokens the student succeeds; choose exact, math, final_answer or "
        "reasoning_gym, or set alignment.enabled=false",
    )
    require(
        not settings.enabled or config.stage is Stage.distil,
        "alignment.enabled",
        "true",
        f"compares a teacher's gradient with the ideal one, and stage={config.stage.value} has none; set stage=distil",
    )


def _check_alarms(alarms: AlarmsConfig) -> None:
    for name, rule in alarms.rules.items():
        for fault in faults(rule):
            require(False, f"alarms.rules.{name}.{fault.setting}", fault.value, fault.fix)


def teacher_faults(config: "RunConfig") -> list[str]:
    """What cannot work, of a run in which teachers take part: each text names the key, the value and the fix."""
    found = [f"{fault.key}={fault.value}: {fault.fix}" for fault in _faults(config)]
    return [*found, *_unfit_backends(config)]


def _faults(config: "RunConfig") -> Iterator[Refusal]:
    teachers = {TEACHER: config.teacher, **config.further_teachers}
    yield from name_faults(config.further_teachers)
    yield from domain_faults(teachers)
    yield from _company(config)
    yield from _workers(config)
    for key, teacher in teachers.items():
        if teacher.mixture:
            yield from mixture_faults(key, teacher, teachers)
            yield from _mixed_scores(key, teacher, teachers, config)
        else:
            yield from _moving(key, teacher, config)
            yield from _kept(key, teacher, config)
            yield from cross_tokenizer_faults(key, teacher)
        yield from _context(key, teacher, config)


def _unfit_backends(config: "RunConfig") -> Iterator[str]:
    """Whether each backend gives what the objective and the learner's monitors want."""
    sequences, wanted = config.objective.sequences, requirements(config.objective)
    overlap_k = config.learner.overlap_k if config.stage.value == "distil" else 0
    writes = sequences.on_policy_fraction < 1 and sequences.other_source is OtherSource.teacher
    for key, teacher in {TEACHER: config.teacher, **config.further_teachers}.items():
        if not teacher.mixture:
            gpus = config.scoring.gpus_per_worker
            yield from backend_refusals(setting(key), teacher, wanted, gpus, overlap_k, writes)


def _company(config: "RunConfig") -> Iterator[Refusal]:
    """Where one teacher writes the sequences, there is one."""
    sequences = config.objective.sequences
    if config.further_teachers and sequences.on_policy_fraction < 1 and sequences.other_source is OtherSource.teacher:
        fix = "sequences of the teacher's own come from one teacher; leave it empty, or learn from the student's"
        yield Refusal("further_teachers", ", ".join(config.further_teachers), fix)


def _mixed_scores(
    key: str, teacher: TeacherConfig, teachers: Mapping[str, TeacherConfig], config: "RunConfig"
) -> Iterator[Refusal]:
    """What a mixture cannot tell: its entropy; its most likely ids are sought among ids that its teachers are given."""
    gpus = config.scoring.gpus_per_worker
    members = [member for member in teacher.mixture if member in teachers]
    blind = [member for member in members if not capabilities(teachers[member], gpus).given_ids]
    wanted = requirements(config.objective)
    if wanted.teacher_entropy:
        fix = "the entropy of a mixture does not follow from its teachers'; choose an objective without bounds on it"
        yield Refusal(f"{setting(key)}.mixture", dict(teacher.mixture), fix)
    if blind and (wanted.teacher_top_k or (config.learner.overlap_k and not wanted.hidden_states)):
        fix = (
            f"backend={teachers[blind[0]].backend.value} scores no given ids, among which a mixture's most likely ones "
            "are sought; set learner.overlap_k=0 and an objective without them, for instance "
            "objective=sampled_reverse_kl"
        )
        yield Refusal(f"{setting(key)}.mixture", blind[0], fix)


def _moving(key: str, teacher: TeacherConfig, config: "RunConfig") -> Iterator[Refusal]:
    """Weights that follow the student's."""
    if teacher.weights is TeacherWeights.fixed:
        return
    name, value = f"{setting(key)}.weights", teacher.weights.value
    if teacher.quantization is not Quantization.none:
        yield Refusal(name, value, f"new weights are not quantised; set fixed, or {setting(key)}.quantization=none")
    if teacher.model != config.student.model:
        yield Refusal(name, value, f"follows the student's weights; set {setting(key)}.model={config.student.model}")
    if config.learner.weight_transfer is not WeightTransfer.shared_memory:
        transfer = config.learner.weight_transfer.value
        fix = f"follows the student through shared memory, and learner.weight_transfer={transfer}; use weights=fixed"
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
    if teacher.weights is TeacherWeights.ema and not 0 < teacher.ema_rate < 1:
        yield Refusal(f"{setting(key)}.ema_rate", teacher.ema_rate, "must lie between 0 and 1; 0.99 is common")


def _workers(config: "RunConfig") -> Iterator[Refusal]:
    gpus, cache_dir = config.scoring.gpus_per_worker, config.scoring.cache_dir
    if gpus > 1 and gpus != int(gpus):
        fix = "a share of one GPU, or whole GPUs over which the teacher is spread; round it"
        yield Refusal("scoring.gpus_per_worker", gpus, fix)
    if cache_dir is not None and config.cluster.address != "local" and not Path(cache_dir).expanduser().is_absolute():
        fix = "means another place on each machine of a cluster; give the absolute path of a shared directory"
        yield Refusal("scoring.cache_dir", cache_dir, fix)


def _kept(key: str, teacher: TeacherConfig, config: "RunConfig") -> Iterator[Refusal]:
    """Whether scores that are kept are enough."""
    if teacher.backend is not TeacherBackend.cache:
        return
    name, sequences = f"{setting(key)}.backend", config.objective.sequences
    if config.scoring.cache_dir is None:
        fix = (
            "has only what is kept in scoring.cache_dir, which is null; name the directory that python -m "
            "orchestration.precompute has filled"
        )
        yield Refusal(name, "cache", fix)
    if sequences.on_policy_fraction != 0 or sequences.other_source is not OtherSource.dataset:
        fix = (
            "cannot score what the student samples in this run; set objective.sequences.on_policy_fraction=0 and "
            "objective.sequences.other_source=dataset, or a backend that computes"
        )
        yield Refusal(name, "cache", fix)


def _context(key: str, teacher: TeacherConfig, config: "RunConfig") -> Iterator[Refusal]:
    name = f"{setting(key)}.context"
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
    if graded and config.data.verifier is VerifierKind.none:
        yield Refusal(name, shown, "needs graded responses; set data.verifier")
    if SIBLING in fields and config.sampling.samples_per_prompt < 2:
        yield Refusal(name, shown, "needs other samples of the same prompt; set sampling.samples_per_prompt=4")
    if SIBLING in fields and config.pipeline.batch_size % config.sampling.samples_per_prompt:
        fix = "samples of a prompt are scored together; make it a multiple of sampling.samples_per_prompt"
        yield Refusal("pipeline.batch_size", config.pipeline.batch_size, fix)
    if config.objective.sequences.on_policy_fraction < 1:
        yield Refusal(name, shown, "is about the student's own responses; set objective.sequences.on_policy_fraction=1")
